"""HTTP/2 (RFC 9113) on Hypercorn's protocol.

- `connection`: the only module that uses Hypercorn's internals
- `stream`: one request and its response, as the application sees them
"""
