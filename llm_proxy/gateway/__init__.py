"""The data plane: ASGI in, upstream bytes out.

In the order of a request's way:

- `relay`: opens the request's nursery, answers where the proxy itself has to, and settles
- `inbound`: the client's side of a request, and the news that the client has gone
- `paths`, `headers`, `parameters`, `endpoints`: what may pass, and in which form
- `json_members`, `multipart`, `codings`: bodies, read as they arrive
- `providers`: the providers: URL, credential, allow-lists, timeouts
- `admission`: all that is decided before a byte goes upstream
- `exchange`: request out, response back, byte for byte
- `upstream/`: connections to providers
- `usage/`: token usage, read as it passes
- `faults`: refusals in the provider's own words
"""
