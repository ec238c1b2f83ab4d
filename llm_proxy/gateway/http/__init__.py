"""HTTP of the data plane: forwarded headers, allowed paths, content codings, and parameters in request bodies.

- `headers`: forwarded and stripped headers, the client's token
- `paths`: allowed request paths
- `codings`: decoders of content codings
- `parameters`: the parameters of a body, from `json_members` or `multipart`
"""

from __future__ import annotations
