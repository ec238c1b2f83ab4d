"""An ASGI server on Trio for any ASGI 3 application.

- `supervisor`: keeps worker processes running, and replaces them one by one
- `process`: one serving process and its signals
- `server`: sockets, lifespan, connections and graceful shutdown; `listener` binds and accepts
- `context`: configuration, and what all connections share
- `transport`, `tls`: an accepted connection
- `http1`: our own HTTP/1.1
- `http2`: HTTP/2 on Hypercorn's protocol
- `asgi`: the types of ASGI, and the lifespan
"""
