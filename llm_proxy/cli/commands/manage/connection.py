"""What all commands over the management API share: how the server is named, and how pages are read."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote

import click

from llm_proxy.cli.base_url import BaseUrl
from llm_proxy.cli.client import ManagementClient
from llm_proxy.cli.configuration import config_option, load_setting
from llm_proxy.cli.failures import WrongUsage
from llm_proxy.cli.management_token import find_management_token
from llm_proxy.config import ListenAddress

F = TypeVar("F", bound=Callable[..., None])

#: Entries that are asked for at once: the most that the API gives.
_PAGE = 500


def with_client(function: Callable[..., None]) -> Callable[..., None]:
    """Add the options that name the server and its token, and call the command with a client as first argument."""

    @functools.wraps(function)
    def command(
        *, manage_api_base_url: str | None, management_token: str | None, config: Path | None, **parameters: Any
    ) -> None:
        url = find_server(manage_api_base_url, config)
        token = find_management_token(url, management_token, config)
        with ManagementClient(url, token) as client:
            function(client, **parameters)

    url = click.option(
        "--manage-api-base-url",
        type=BaseUrl(),
        help="Where the server is.  [LLM_PROXY_URL; default: this machine, at LISTEN_ADDR]",
    )
    token = click.option("--management-token", metavar="TOKEN", help="The server's.  [MANAGEMENT_TOKEN]")
    return url(token(config_option(command)))


def find_server(url: str | None, config: Path | None) -> str:
    """Find the server's base URL: the given one, LLM_PROXY_URL, or the address at which a server here listens."""
    configured = load_setting("LLM_PROXY_URL", config, LLM_PROXY_URL=url)
    if configured is not None:
        if str(configured).endswith(("/v1", "/manage")):
            base, _, end = str(configured).rpartition("/")
            raise WrongUsage(f"the URL must not end in /{end}: use {base}")
        return str(configured)
    address: ListenAddress = load_setting("LISTEN_ADDR", config)
    host = "127.0.0.1" if address.host in ("", "0.0.0.0", "::") else address.host  # noqa: S104 - compared, not bound
    scheme = "https" if load_setting("ENABLE_TLS", config) else "http"
    return f"{scheme}://{ListenAddress(host, address.port)}"


def json_option(function: F) -> F:
    """Add `--json`."""
    return click.option("--json", "as_json", is_flag=True, help="Print JSON.")(function)


def path(*segments: str) -> str:
    """Give a path of the management API; what a segment holds cannot lead anywhere else."""
    return "/manage/" + "/".join(quote(segment, safe="") for segment in segments)


def entries(client: ManagementClient, collection: str, **query: object) -> Iterator[dict[str, Any]]:
    """Read a whole list, page by page."""
    cursor: str | None = None
    while True:
        page = client.get(collection, **query, limit=_PAGE, cursor=cursor)
        yield from page["data"]
        cursor = page["next_cursor"]
        if cursor is None:
            return
