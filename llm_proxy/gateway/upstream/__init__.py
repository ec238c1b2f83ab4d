"""HTTP/1.1 client for providers: a connection pool per origin, outbound proxies, and errors that say what was sent.

- `pool`: the connections to one origin; sends a request and returns its response
- `connector`: an origin from the configuration; opens connections to it, directly or through an outbound proxy
- `connection`: one connection, one exchange after the other
- `request`, `parser`: requests to bytes, responses from bytes; without I/O
- `outbound_proxy`: the outbound proxy that the environment configures
- `failures`: every error
"""

from __future__ import annotations
