"""The providers that requests can go to.

- `provider.py`: a provider, its allow-lists, and which provider a path names
- `endpoints.py`: patterns of allowed paths
- `rewriting.py`: URLs of a provider in its answers become URLs of this proxy, and those of upload sessions get a token
- `provider_file.py`: loads the providers; `builtin.yaml` has those that need no file
"""

from __future__ import annotations
