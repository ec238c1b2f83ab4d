"""The providers that requests can go to.

- `provider.py`: a provider, its allow-lists, and which provider a path names
- `endpoints.py`: patterns of allowed paths
- `provider_file.py`: loads the providers; `builtin.yaml` has those that need no file
- `document.py`: YAML into structs, with the line of each mistake
"""

from __future__ import annotations
