"""The shapes of ASGI 3 that pass between this server and an application.

Source: https://asgi.readthedocs.io/en/latest/specs/www.html
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, TypeAlias

Scope: TypeAlias = dict[str, Any]
Message: TypeAlias = dict[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[Message]]
Send: TypeAlias = Callable[[Message], Awaitable[None]]
Application: TypeAlias = Callable[[Scope, Receive, Send], Awaitable[None]]
Address: TypeAlias = tuple[str, int | None]
"""Host and port; of a Unix socket, its path and None."""

VERSIONS = {"version": "3.0", "spec_version": "2.4"}
"""Spec 2.4: `send` raises `OSError` once the client is gone."""
