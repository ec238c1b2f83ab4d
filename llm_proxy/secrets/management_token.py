"""The management token that a server on SQLite makes for itself, in a file beside its database."""

from __future__ import annotations

import secrets
from pathlib import Path
from typing import Final

from llm_proxy.secrets import SecretError, private_file

#: Characters. Only its length protects the management token from being guessed.
MIN_LENGTH: Final = 20
_RANDOM_BYTES = 32


def path_beside(database: Path) -> Path:
    """The token file of a server that uses this SQLite file."""
    return database.with_name(f"{database.name}.management-token")


def read_or_create(path: Path) -> str:
    """Read the token file. If it does not exist, create it with a random token first. Raises as `read` does."""
    private_file.create(path, secrets.token_urlsafe(_RANDOM_BYTES) + "\n")
    return read(path)


def read(path: Path) -> str:
    """Read the token file. Raises `SecretError` if other users can read it or it is damaged, or `OSError`."""
    try:
        token = private_file.read(path).decode("ascii", "replace").strip()
    except private_file.ExposedFile as error:
        raise SecretError(f"the management token's file {path} {error}") from None
    if not token.isascii() or not token.isprintable() or len(token) < MIN_LENGTH:
        raise SecretError(f"the management token's file {path} is damaged; remove it, and the server makes a new one")
    return token
