"""`llm-proxy reload`."""

from __future__ import annotations

import click

from llm_proxy.cli.client import ManagementClient, path, with_client
from llm_proxy.cli.output import print_record
from llm_proxy.cli.program import Command


@click.command(cls=Command)
@with_client
def command(client: ManagementClient, *, as_json: bool) -> None:
    """Let a running server read its provider and price files again.

    No request fails: running requests keep the old configuration. If a file is wrong, nothing changes, and every
    mistake is shown. With several workers, the server also reads its settings and certificates again, and replaces the
    workers one by one. With one worker, as always on SQLite, other settings need a restart. Of several servers, only
    the one that answers is reloaded.
    """
    found = client.post(path("reload"))
    none = "none; with one worker, a new {} needs a restart"
    files = {
        "provider file": found["provider_file"] or none.format("API_CONFIG_PATH"),
        "price file": found["price_file"] or none.format("PRICES_PATH"),
    }
    print_record(found, {"providers": ", ".join(found["providers"]), **files}, as_json=as_json)
