"""Secrets at rest.

- `encryption`: providers' API keys, encrypted under the keys of `ENCRYPTION_KEY`
- `keys`: checks and re-encrypts the API keys of all projects
- `management_token`: the management token that a server on SQLite makes for itself
- `private_file`: files that only their owner can read
"""

from __future__ import annotations


class SecretError(Exception):
    """A secret cannot be read or stored. The message is for the operator and never contains a secret."""
