"""The ASGI application: gateway and management API behind one interface.

- `app`: the application, and which of the two a path belongs to
- `cors`: web pages that may call the proxy
- `forwarded`: the client's address behind reverse proxies
"""
