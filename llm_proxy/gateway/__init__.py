"""The data plane: ASGI in, upstream bytes out.

In the order of a request's path:

- `relay`: handles a request from its head to its settlement
- `inbound`: the client's side of a request: its body and its disconnect
- `http/`: headers, paths, parameters and bodies of requests
- `providers/`: the providers: URL, credential, allow-lists, timeouts
- `routing`: the providers that are configured now, with their connections
- `auth/`: credentials without a long-lived key: tokens, signatures
- `admission`: checks before the ledger is asked
- `objects/`: files, batches and other objects that requests create, name or list
- `requested_model`: the model that a request names; `named_models`: all of them
- `labels`: for whom and for what a request is
- `demand`: what a request will use, for limits; `worst_case`: the most that it can use
- `limit_reports`: warnings of limits, and reservations that were too small
- `stream_usage`: streams of chats are asked for their usage
- `exchange`: request out, response back, byte for byte
- `upstream/`: connections to providers
- `usage/`: token usage of responses, read as they pass
- `late_usage`: asks for usage that comes later, if no client does
"""
