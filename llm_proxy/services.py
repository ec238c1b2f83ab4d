"""The composition root: everything that one worker process is made of, opened and closed in order."""

from __future__ import annotations

import os
import socket
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import trio
from attrs import define

from db import dsn, migrate
from db.database import Database, open_database
from db.options import Options
from db.records import Worker
from llm_proxy import log
from llm_proxy.crypto import KeyRing, load_or_create_key_file
from llm_proxy.identifiers import new_id
from llm_proxy.ledger import Ledger
from llm_proxy.metrics import Metrics
from llm_proxy.probe import Probe
from llm_proxy.proxy import provider_file
from llm_proxy.proxy.relay import Relay
from llm_proxy.proxy.upstream import open_pool
from llm_proxy.proxy.upstream.origin import Timeouts
from llm_proxy.settings.problems import Problem, SettingsError
from llm_proxy.version import VERSION

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping
    from pathlib import Path

    from llm_proxy.log import Log
    from llm_proxy.proxy.providers import Provider, Providers
    from llm_proxy.proxy.upstream.interface import Upstream
    from llm_proxy.settings import Settings

#: Seconds that the last settlements may take to reach the database when the process ends.
DRAIN_DEADLINE = 10.0
#: Seconds that `/ready` waits for the database.
READY_DEADLINE = 2.0


def database_target(settings: Settings) -> dsn.Target:
    """Where the database is; raises `db.errors.BadDsn`."""
    return dsn.parse(settings.db_driver, settings.database_url, str(settings.database_path))


def database_options(settings: Settings) -> Options:
    """How to connect to it."""
    return Options(
        pool_size=settings.database_pool_size,
        max_idle=settings.database_max_idle_conns,
        max_lifetime=settings.database_conn_max_lifetime,
        connect_timeout=settings.database_connect_timeout,
        statement_timeout=settings.database_statement_timeout,
        tls_ca=settings.database_tls_ca,
        tls_cert=settings.database_tls_cert,
        tls_key=settings.database_tls_key,
        sqlite_synchronous=settings.sqlite_synchronous,
    )


def open_keyring(settings: Settings) -> KeyRing:
    """The keys that seal the providers' API keys: from the settings, or on SQLite from a file beside the database.

    Raises:
        llm_proxy.crypto.KeyRingError: there is no usable key.
    """
    if settings.encryption_key is not None:
        return KeyRing.from_setting(settings.encryption_key, allow_plaintext=settings.allow_plaintext_api_keys)
    path = key_file(settings)
    return KeyRing.plaintext() if path is None else load_or_create_key_file(path)


def key_file(settings: Settings) -> Path | None:
    """Where the key is kept that no setting gives, beside the SQLite file; None where there is no such file."""
    if settings.encryption_key is not None or settings.allow_plaintext_api_keys:
        return None
    return settings.database_path.with_name(settings.database_path.name + ".key")


@define(eq=False)
class Services:
    """What a running worker offers to its routes."""

    settings: Settings
    database: Database
    keyring: KeyRing
    ledger: Ledger
    providers: Providers
    relay: Relay
    metrics: Metrics
    probe: Probe

    def begin_drain(self) -> None:
        """Turn new requests away and report not ready; running ones go on."""
        self.relay.draining = True

    async def not_ready(self) -> list[str]:
        """What keeps this worker from serving, named; empty when it is ready."""
        reasons = []
        if self.relay.draining:
            reasons.append("draining")
        if not self.ledger.alive:
            reasons.append("writer")
        return [*reasons, *await self.probe.reasons()]


def _timeouts(provider: Provider) -> Timeouts:
    times = provider.timeouts
    return Timeouts(connect=times.connect, response_header=times.response_header, idle=times.request)


def _open_upstreams(providers: Providers, stack: AsyncExitStack) -> Mapping[str, Upstream]:
    upstreams: dict[str, Upstream] = {}
    for name, provider in providers.by_name.items():
        try:
            upstream = open_pool(
                provider.origin,
                _timeouts(provider),
                max_idle=provider.max_idle_conns_per_host,
                idle_expiry=provider.timeouts.idle,
                environ=os.environ,
            )
        except ValueError as error:
            # An outbound proxy's variable, which the message names, cannot be used.
            raise SettingsError([Problem("", str(error))]) from error
        stack.callback(upstream.close)
        upstreams[name] = upstream
    return upstreams


@asynccontextmanager
async def open_services(settings: Settings, request_log: Log) -> AsyncIterator[Services]:
    """Migrate the database, open everything, and close it again in order.

    The body runs while the writer does; should the writer die, the body is cancelled and its error raised, because a
    proxy that cannot write its books must not serve.

    Raises:
        db.errors.DatabaseError, llm_proxy.crypto.KeyRingError, llm_proxy.proxy.provider_file.ProviderFileError: with
            words for the operator.
    """
    events = log.logger("services")
    target, options = database_target(settings), database_options(settings)
    providers = provider_file.load(settings)
    keyring = open_keyring(settings)
    metrics = Metrics(providers.by_name, VERSION)
    async with AsyncExitStack() as stack:
        database = await stack.enter_async_context(open_database(target, options))
        await trio.to_thread.run_sync(migrate.up, database)
        now = datetime.now(UTC)
        worker = Worker(new_id(), socket.gethostname()[:255], os.getpid(), VERSION, now, now)
        ledger = Ledger(
            database, worker, metrics, exclusive=target.driver == "sqlite", heartbeat=settings.ledger_heartbeat
        )
        metrics.watch_ledger(waiting=lambda: ledger.waiting, unsettled=lambda: ledger.unsettled, lag=lambda: ledger.lag)
        metrics.counter(
            "llm_proxy_log_lines_lost", "Log lines that could not be written.", lambda: request_log.lines_lost
        )
        metrics.watch_database(
            up=lambda: ledger.alive,
            pool=lambda: {"in_use": database.checked_out, "limit": options.pool_size},
        )
        upstreams = _open_upstreams(providers, stack)
        metrics.watch_upstreams(
            idle=lambda: sum(upstream.idle for upstream in upstreams.values()),
            in_use=lambda: sum(upstream.in_use for upstream in upstreams.values()),
        )
        relay = Relay(
            providers=providers,
            upstreams=upstreams,
            ledger=ledger,
            keyring=keyring,
            metrics=metrics,
            request_log=request_log,
            max_request_size=settings.max_request_size,
            max_concurrent=settings.max_concurrent_requests,
        )
        async with trio.open_nursery() as nursery:
            await nursery.start(ledger.run)
            try:
                probe = Probe(database, nursery, READY_DEADLINE)
                yield Services(settings, database, keyring, ledger, providers, relay, metrics, probe)
            finally:
                with trio.CancelScope(shield=True, deadline=trio.current_time() + DRAIN_DEADLINE) as drain:
                    await ledger.drain()
                if drain.cancelled_caught:
                    events.error("the database did not take the last settlements", unsettled=ledger.unsettled)
                nursery.cancel_scope.cancel()
