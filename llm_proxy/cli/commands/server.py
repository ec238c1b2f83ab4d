"""`llm-proxy server`."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from socket import socket

import click
from attrs import evolve

from db import migrate
from db.database import opened
from llm_proxy.cli.failures import explain
from llm_proxy.cli.options import config_option, db_option, load_settings
from llm_proxy.cli.program import Command
from llm_proxy.config import Settings
from llm_proxy.config.database import database_options, database_target
from llm_proxy.health.startup_checks import check_connections
from llm_proxy.logging import log
from llm_proxy.metrics import MetricStores
from llm_proxy.secrets import management_token
from llm_proxy.server.supervisor import Supervisor, print_to_stderr
from llm_proxy.worker import bind_listeners, check_files, serve_until_stopped


@click.command(cls=Command)
@click.option("--addr", metavar="[HOST]:PORT", help="Address to listen on.  [LISTEN_ADDR; default: :8080]")
@db_option
@click.option(
    "--workers", metavar="N", help="Number of worker processes; more than 1 needs PostgreSQL or MySQL.  [WORKERS]"
)
@config_option
def command(addr: str | None, db: str | None, workers: str | None, config: Path | None) -> None:
    """Migrate the database, then serve.

    SIGTERM or Ctrl-C stops the server after running requests have ended, or after SHUTDOWN_GRACE. With SHUTDOWN_DELAY,
    it first continues to serve for that time with /ready at 503, so that load balancers notice. SIGHUP reads the
    provider and price files again; with several workers also settings and certificates, and it replaces the workers
    one by one.

    On SQLite, if MANAGEMENT_TOKEN is not set, the server makes a token and keeps it in a file beside the database.
    """
    load = partial(load_settings, config, db, serving=True, LISTEN_ADDR=addr, WORKERS=workers)
    settings = load()
    check_files(settings)
    if settings.management_token is None:
        file = management_token.path_beside(settings.database_path)
        settings = evolve(settings, management_token=management_token.read_or_create(file))
        click.echo(f"The management token is in {file}", err=True)
    sockets = bind_listeners(settings)
    if settings.workers == 1:
        serve_until_stopped(settings, sockets)
    else:
        _supervise(settings, sockets, load)


def _supervise(settings: Settings, sockets: Sequence[socket], load: Callable[[], Settings]) -> None:
    # A mistake that stops every worker is reported here, once.
    with opened(database_target(settings), database_options(settings)) as database:
        migrate.prepare(database, print_to_stderr)
        check_connections(database, settings, _warn)
    stores = MetricStores(settings.workers)

    def run_worker(sockets: Sequence[socket], number: int, on_serving: Callable[[], None]) -> None:
        try:
            serve_until_stopped(settings, sockets, stores.take(number), on_serving=on_serving)
        except Exception as error:  # noqa: BLE001 (every error becomes a line and an exit code)
            log.logger("server").debug("the worker failed", exc_info=error)
            sys.exit(_report(error))

    def reload() -> bool:
        """Load the settings for the next workers. If they are wrong, report it and keep the current ones."""
        nonlocal settings
        try:
            new = load()
            check_files(new)
        except Exception as error:  # noqa: BLE001 (the running workers must continue)
            _report(error)
            print_to_stderr("the workers keep their current settings")
            return False
        for name in ("listen_addr", "workers"):
            if getattr(new, name) != getattr(settings, name):
                _warn(f"{name.upper()} has changed; restart the server to apply it")
        settings = new
        return True

    supervisor = Supervisor(
        run_worker,
        sockets,
        workers=settings.workers,
        shutdown_grace=settings.shutdown_delay + settings.shutdown_grace,
        before_replacing=reload,
    )
    raise click.exceptions.Exit(supervisor.run())


def _warn(message: str) -> None:
    print_to_stderr(f"warning: {message}")


def _report(error: Exception) -> int:
    message, code = explain(error)
    print_to_stderr(f"error: {message}")
    return code
