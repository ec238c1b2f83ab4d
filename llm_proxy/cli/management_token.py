"""The management token that a server on SQLite makes for itself, and how commands on the same machine find it."""

from __future__ import annotations

import ipaddress
import secrets
from pathlib import Path
from urllib.parse import urlsplit

import attrs

from llm_proxy.cli.configuration import load_setting
from llm_proxy.cli.failures import Failure, WrongUsage
from llm_proxy.config import Settings
from llm_proxy.config.checks import SHORTEST_MANAGEMENT_TOKEN
from llm_proxy.secrets import private_file

_RANDOM_BYTES = 32


def file_beside(database: Path) -> Path:
    """Where the token of a server on this SQLite file is kept."""
    return database.with_name(f"{database.name}.management-token")


def with_management_token(settings: Settings) -> tuple[Settings, Path | None]:
    """Complete the settings of a server on SQLite by its own token, made where there is none yet.

    Returns:
        The settings, and the file that the token is from; None where the settings had one.
    """
    if settings.management_token is not None:
        return settings, None
    path = file_beside(settings.database_path)
    private_file.create(path, secrets.token_urlsafe(_RANDOM_BYTES) + "\n")
    return attrs.evolve(settings, management_token=_read(path)), path


def find_management_token(base_url: str, token: str | None, config: Path | None) -> str:
    """Find the token for a server: the given one, the one of the settings, or the file of a server on this machine.

    Raises:
        WrongUsage: there is none.
    """
    configured = load_setting("MANAGEMENT_TOKEN", config, MANAGEMENT_TOKEN=token)
    if configured is not None:
        return str(configured)
    # The file's token belongs to the server on this machine, and is sent to no other.
    if is_loopback(base_url):
        path = file_beside(load_setting("DATABASE_PATH", config))
        if path.exists():
            return _read(path)
    raise WrongUsage("there is no management token; give the server's with MANAGEMENT_TOKEN or --management-token")


def is_loopback(base_url: str) -> bool:
    """Whether a URL leads to this machine."""
    host = urlsplit(base_url).hostname or ""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _read(path: Path) -> str:
    try:
        token = private_file.read(path).decode("ascii", "replace").strip()
    except private_file.ExposedFile as error:
        raise Failure(f"the management token's file {path} {error}") from None
    if not token.isascii() or not token.isprintable() or len(token) < SHORTEST_MANAGEMENT_TOKEN:
        raise Failure(f"the management token's file {path} is damaged; remove it, and the server makes a new one")
    return token
