"""An ASGI server on Trio. It serves any ASGI 3 application and knows nothing of this one.

From the outside in: `workers` keeps processes running; `server` is one of them, with `listener` (sockets), `lifespan`
(the application's start and end) and `traffic` (what is going on, for an orderly end). An accepted connection is a
`transport`, perhaps with `tls` on it. `http1` serves it with our own HTTP/1.1: `request` and `response` are that
protocol without I/O, `exchange` is one request as the application sees it. `http2` serves it with Hypercorn's HTTP/2,
where `stream` is one request and `frames` guards the way in.
"""
