"""`llm-proxy server`."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from socket import socket

import click

from db import migrate
from db.database import opened
from llm_proxy.cli.configuration import config_option, load_settings
from llm_proxy.cli.failures import explain
from llm_proxy.cli.management_token import with_management_token
from llm_proxy.cli.program import Command
from llm_proxy.cli.worker import bind_listeners, check_files, work
from llm_proxy.config import Settings
from llm_proxy.health import capacity
from llm_proxy.logging import log
from llm_proxy.metrics import Slates
from llm_proxy.server.supervisor import Supervisor, print_to_stderr
from llm_proxy.services import database_options, database_target


@click.command(cls=Command)
@click.option("--addr", metavar="[HOST]:PORT", help="Where to listen.  [LISTEN_ADDR; default: :8080]")
@click.option("--db", metavar="PATH", help="File of the SQLite database.  [DATABASE_PATH]")
@click.option("--workers", metavar="N", help="Worker processes; more than one needs PostgreSQL or MySQL.  [WORKERS]")
@config_option
def command(addr: str | None, db: str | None, workers: str | None, config: Path | None) -> None:
    """Serve the proxy, after migrating its database.

    SIGTERM or Ctrl-C lets running requests end, for at most SHUTDOWN_GRACE, and then ends the server. With
    SHUTDOWN_DELAY it first goes on for a while, not ready, for load balancers to notice. SIGHUP, with several workers,
    reads settings, provider file and certificates anew and replaces the workers one by one.

    On SQLite with no MANAGEMENT_TOKEN set, the server makes one and keeps it in a file beside the database.
    """
    load = partial(load_settings, config, db, serving=True, LISTEN_ADDR=addr, WORKERS=workers)
    settings = load()
    check_files(settings)
    settings, token_file = with_management_token(settings)
    if token_file is not None:
        click.echo(f"The management token is in {token_file}", err=True)
    sockets = bind_listeners(settings)
    if settings.workers == 1:
        work(settings, sockets)
    else:
        _supervise(settings, sockets, load)


def _supervise(settings: Settings, sockets: Sequence[socket], load: Callable[[], Settings]) -> None:
    current = [settings]
    # What keeps every worker from starting is found here, and said once.
    with opened(database_target(settings), database_options(settings)) as database:
        migrate.prepare(database, print_to_stderr)
        if complaint := capacity.complaint(database, settings):
            print_to_stderr(f"warning: {complaint}")
    supervisor = Supervisor(
        partial(_be_worker, current, Slates(settings.workers)),
        sockets,
        workers=settings.workers,
        shutdown_grace=settings.shutdown_delay + settings.shutdown_grace,
        before_replacing=partial(_read_anew, current, load),
    )
    raise click.exceptions.Exit(supervisor.run())


def _read_anew(current: list[Settings], load: Callable[[], Settings]) -> bool:
    """Give the workers to come the settings as they are now; where these are wrong, say so, and keep those before."""
    try:
        settings = load()
        check_files(settings)
    except Exception as error:  # noqa: BLE001 (whatever it is, the running workers go on)
        _say_why(error)
        print_to_stderr("the workers go on with the settings that they have")
        return False
    before = current[0]
    for name in ("listen_addr", "workers"):
        if getattr(settings, name) != getattr(before, name):
            print_to_stderr(f"warning: {name.upper()} has changed; restart the server to apply it")
    current[0] = settings
    return True


def _be_worker(
    current: list[Settings], slates: Slates, sockets: Sequence[socket], number: int, on_serving: Callable[[], None]
) -> None:
    try:
        work(current[0], sockets, slates.take(number), on_serving=on_serving)
    except Exception as error:  # noqa: BLE001 (whatever it is becomes a line and an exit code)
        log.logger("server").debug("the worker failed", exc_info=error)
        sys.exit(_say_why(error))


def _say_why(error: Exception) -> int:
    """Say what went wrong, and give the exit code."""
    message, code = explain(error)
    print_to_stderr(f"error: {message}")
    return code
