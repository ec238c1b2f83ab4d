"""LLM Proxy: keeps a provider's API key, issues expiring tokens, and records every request exactly.

The map, from the outside in; imports go downwards only.

- `cli`: the command line, one file per command
- `worker`: one serving process: signals, drain
- `web`: the ASGI application; routes a provider's paths to `gateway`, all others to the management API; CORS,
  forwarded client addresses
- `api`: the management API, JSON over HTTP
- `services`: the composition root: opens and closes the components of a worker
- `gateway`: the data plane: one request from the client to the provider and back; `gateway.auth`,
  `gateway.http`, `gateway.objects`, `gateway.providers`, `gateway.upstream`, `gateway.usage`
- `health`: checks of the database for `/ready`, metrics and start-up
- `ledger`: admits, counts and settles requests in shared transactions; `ledger.outage` is the outage mode
- `prices`: what requests cost: built-in prices, and those of the operator
- `limits`: windows of limits, and when a request is refused
- `tokens`: everything about a token: format, digest, rules
- `config`: settings, declared once; the kinds of values that provider file and management API share
- `metrics`: counters of all workers in shared memory, and their exposition
- `errors`, `identifiers`
- `secrets`: encryption of API keys at rest, key rotation, private files
- `logging`: structured logs, redaction
- `server`: the ASGI server: sockets, HTTP/1.1 and HTTP/2, workers; knows nothing of the product
- `net`: client sockets, TLS, timeouts and disconnects, shared by the server and by clients
- `load`: the load generator; knows nothing of the product

`db`, the database layer, is below the package and does not import it.
"""

from __future__ import annotations

#: The same as the version of the distribution.
__version__ = "0.1.0"
