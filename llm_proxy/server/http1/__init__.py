"""HTTP/1.1 (RFC 9112).

- `connection`: serves the requests of one connection, one after another
- `cycle`: one request and its response, as the application sees them
- `request`, `response`: the protocol without I/O
"""
