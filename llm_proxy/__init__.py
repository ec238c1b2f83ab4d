"""LLM Proxy: keeps a provider's API key, hands out withering tokens, and its books balance.

The map, from the outside in; imports go downwards only.

- `cli`: the command line, one file per command
- `app`: the ASGI application, put together from services
- `asgi`: sends a provider's paths to `proxy`, all others to the control plane
- `cors`, `forwarded`: which web pages may call, and whose request a reverse proxy passes on, pure
- `manage`: the control plane's JSON API
- `services`: opens everything that a server process holds
- `capacity`: whether the connections of a server fit into what its database takes
- `proxy`: the data plane, ASGI in and upstream bytes out
- `ledger`: admits, counts and settles requests in shared transactions
- `keys`: the seals of all API keys, and their rotation
- `tokens`: the rules of withering tokens, pure
- `settings`, `errors`, `crypto`, `private_file`, `identifiers`, `log`, `log_sink`, `redaction`, `metrics`, `version`:
  what all stands on
- `survey`: what there is to say about the database, for the metrics
- `probe`: whether the database can be used, for `/ready`
- `looks`: looks at the database for those two, answered in time
- `serving`: sockets, HTTP/1.1 and HTTP/2, workers; serves any ASGI application and knows nothing of the above
- `net`: what that server and clients share: trust in certificates, deadlines, the news that a peer has left
- `load`: a load generator, which knows nothing of the above either

Below the package stands `db`, the database layer, which knows nothing of it.
"""
