"""Where a server is, as commands are told."""

from __future__ import annotations

from typing import Any

import click

from llm_proxy.config.kinds import BASE_URL


class BaseUrl(click.ParamType[str]):
    """The type of an option that takes a base URL."""

    name = "URL"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Return the URL as it is joined with paths; a wrong one ends the command."""
        try:
            return BASE_URL.parse(value)
        except ValueError:
            # What has an @ in it may be an address with a password.
            shown = "the value" if "@" in value else repr(value)
            self.fail(f"{shown} is not a URL without user or query, such as http://localhost:8080", param, ctx)
