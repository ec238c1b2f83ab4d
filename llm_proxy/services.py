"""The composition root: everything that one worker process is made of, opened and closed in order."""

from __future__ import annotations

import os
import socket
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import trio
from attrs import define

from db import dsn, migrate
from db.database import Database, open_database
from db.errors import DatabaseError
from db.options import Options
from db.records import Worker
from llm_proxy.config import Mistake, SettingsError
from llm_proxy.gateway.providers import provider_file
from llm_proxy.gateway.relay import Relay
from llm_proxy.gateway.upstream import Timeouts, UpstreamPool, outbound_proxy
from llm_proxy.health import capacity
from llm_proxy.health.database_collector import Survey
from llm_proxy.health.probe import Probe
from llm_proxy.identifiers import new_id
from llm_proxy.ledger import Ledger
from llm_proxy.ledger.outage import OutageMode, open_outage_mode, replay_orphans
from llm_proxy.ledger.prune import Pruner
from llm_proxy.ledger.writer import MISSED_HEARTBEATS
from llm_proxy.logging import log
from llm_proxy.metrics import Metrics, Slate, families
from llm_proxy.secrets import keys
from llm_proxy.secrets.encryption import KeyRing, KeyRingError, load_or_create_key_file
from llm_proxy.version import VERSION

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Mapping

    from llm_proxy.config import Settings
    from llm_proxy.gateway.providers.provider import Provider, Providers
    from llm_proxy.logging.log import Log

#: Seconds that the last settlements may take to reach the database when the process ends.
DRAIN_DEADLINE = 10.0
#: Seconds between the moments at which a worker writes down what it does not count as it happens.
PUBLISH_INTERVAL = 1.0
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
        migration_lock_timeout=settings.migration_lock_timeout,
        tls_ca=settings.database_tls_ca,
        tls_cert=settings.database_tls_cert,
        tls_key=settings.database_tls_key,
        sqlite_synchronous=settings.sqlite_synchronous,
    )


def open_keyring(settings: Settings) -> KeyRing:
    """The keys that seal the providers' API keys: from the settings, or on SQLite from a file beside the database.

    Raises:
        llm_proxy.secrets.encryption.KeyRingError: there is no usable key.
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
    outage: OutageMode | None
    providers: Providers
    relay: Relay
    metrics: Metrics
    survey: Survey
    probe: Probe
    leaving: bool = False

    @property
    def carries_on(self) -> bool:
        """Whether requests are served although the database is away."""
        return self.outage is not None and self.outage.admits_offline

    def leave(self) -> None:
        """Report not ready from now on, and serve as ever."""
        self.leaving = True

    async def not_ready(self) -> list[str]:
        """What keeps this worker from serving, named; empty when it is ready."""
        reasons = []
        if self.leaving:
            reasons.append("draining")
        if not self.ledger.alive or (self.outage is not None and self.outage.refuses_all):
            reasons.append("writer")
        if self.carries_on:
            # It is known to be away, and who asks may not be as patient as a connection.
            return [*reasons, "database"]
        return [*reasons, *await self.probe.reasons()]


def _timeouts(provider: Provider) -> Timeouts:
    times = provider.timeouts
    return Timeouts(connect=times.connect, response_header=times.response_header, read=times.read)


def _open_upstreams(providers: Providers, stack: AsyncExitStack) -> Mapping[str, UpstreamPool]:
    upstreams: dict[str, UpstreamPool] = {}
    for name, provider in providers.by_name.items():
        try:
            upstream = UpstreamPool(
                provider.origin,
                _timeouts(provider),
                max_idle=provider.max_idle_conns_per_host,
                keep_alive=provider.timeouts.keep_alive,
                proxy=outbound_proxy(provider.origin, os.environ),
            )
        except ValueError as error:
            # An outbound proxy's variable, which the message names, cannot be used.
            raise SettingsError([Mistake("", str(error))]) from error
        stack.callback(upstream.close)
        upstreams[name] = upstream
    return upstreams


def _check_keys(database: Database, keyring: KeyRing) -> None:
    """Refuse to serve with a key that is wrong beyond doubt; name what is missing where only some projects need it."""
    locked = keys.look_for_locked(database, keyring)
    if locked is None:
        return
    if locked.all_of_them:
        raise KeyRingError(f"{locked}: ENCRYPTION_KEY is not the one that this database was used with")
    log.logger("services").warning("some projects cannot be served", reason=str(locked), key_ids=keyring.key_ids)


def _pruner(settings: Settings, database: Database, worker: Worker, metrics: Metrics) -> Pruner | None:
    """What keeps the ledger to its retention; None where all rows stay."""
    if not settings.ledger_retention:
        return None
    pruner = Pruner(
        database,
        worker.id,
        retention=timedelta(seconds=settings.ledger_retention),
        dead_after=timedelta(seconds=MISSED_HEARTBEATS * settings.ledger_heartbeat),
    )
    metrics.watch(families.PRUNED, lambda: pruner.rows)
    metrics.watch(families.LAST_PRUNING, lambda: pruner.last_pass)
    return pruner


def _prepare(settings: Settings, database: Database, keyring: KeyRing, warn: Callable[[str], None]) -> None:
    """Bring the database to where this worker can serve from it, and say what its operator should know. Blocks."""
    newer = migrate.prepare(database, warn)
    if newer is not None:
        warn(newer)
    _check_keys(database, keyring)
    if settings.workers == 1:  # else whoever started the workers has looked, once for all of them
        complaint = capacity.complaint(database, settings)
        if complaint is not None:
            warn(complaint)


async def _drain(ledger: Ledger, outage: OutageMode | None) -> None:
    """Write what is not written yet, for as long as that may take; then it is left for the next start."""
    events = log.logger("services")
    with trio.move_on_after(DRAIN_DEADLINE) as drain:
        if outage is not None:
            await outage.drain()
        try:
            await ledger.drain()
        except DatabaseError as error:
            # Nothing is unsettled by then; the others will find that its heartbeat has stopped.
            events.warning("the database does not know that this worker has ended", why=str(error))
    if drain.cancelled_caught:
        left = outage is not None and outage.spooled
        if ledger.unsettled or not left:
            events.error("the database did not take the last settlements", unsettled=ledger.unsettled)
        if outage is not None and left:
            with trio.move_on_after(READY_DEADLINE):
                await outage.leave()


async def _publish(metrics: Metrics) -> None:
    while True:
        metrics.publish()
        await trio.sleep(PUBLISH_INTERVAL)


@asynccontextmanager
async def open_services(settings: Settings, request_log: Log, slate: Slate) -> AsyncIterator[Services]:
    """Migrate the database, open everything, and close it again in order.

    The body runs while the writer does; should the writer die, the body is cancelled and its error raised, because a
    proxy that cannot write its books must not serve.

    Raises:
        db.errors.DatabaseError, KeyRingError, ProviderFileError: with
            words for the operator.
    """
    events = log.logger("services")
    target, options = database_target(settings), database_options(settings)
    providers = provider_file.load(settings)
    keyring = open_keyring(settings)
    metrics = Metrics(providers.by_name, VERSION, slate)
    async with AsyncExitStack() as stack:
        database = await stack.enter_async_context(open_database(target, options))
        await trio.to_thread.run_sync(_prepare, settings, database, keyring, events.warning)
        now = datetime.now(UTC)
        worker = Worker(new_id(), socket.gethostname()[:255], os.getpid(), VERSION, now, now)
        ledger = Ledger(
            database, worker, metrics, exclusive=target.driver == "sqlite", heartbeat=settings.ledger_heartbeat
        )
        outage = await trio.to_thread.run_sync(open_outage_mode, settings, ledger, database, worker)
        pruner = _pruner(settings, database, worker, metrics)
        metrics.watch(families.GRACE_ADMISSIONS, lambda: 0 if outage is None else outage.admissions)
        metrics.watch(families.SPOOLED, lambda: 0 if outage is None else outage.spooled)
        upstreams = _open_upstreams(providers, stack)
        metrics.watch(families.LOG_LINES_LOST, lambda: request_log.lines_lost)
        metrics.watch(
            families.UPSTREAM_CONNECTIONS,
            lambda: {
                "in_use": sum(upstream.in_use for upstream in upstreams.values()),
                "idle": sum(upstream.idle for upstream in upstreams.values()),
            },
        )
        relay = Relay(
            providers=providers,
            upstreams=upstreams,
            ledger=outage or ledger,
            keyring=keyring,
            metrics=metrics,
            request_log=request_log,
            max_request_size=settings.max_request_size,
            max_concurrent=settings.max_concurrent_requests,
        )
        async with trio.open_nursery() as nursery:
            survey = Survey(database, ledger, nursery)
            survey.watch(metrics)
            await nursery.start(ledger.run)
            if metrics.shared:
                nursery.start_soon(_publish, metrics)
            if pruner is not None:
                nursery.start_soon(pruner.run)
            if outage is None:
                nursery.start_soon(replay_orphans, settings, database, worker)
            else:
                await nursery.start(outage.run)
            try:
                probe = Probe(database, nursery, READY_DEADLINE)
                yield Services(settings, database, keyring, ledger, outage, providers, relay, metrics, survey, probe)
            finally:
                with trio.CancelScope(shield=True):
                    await _drain(ledger, outage)
                nursery.cancel_scope.cancel()
