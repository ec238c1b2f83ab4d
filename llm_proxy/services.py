"""The composition root: opens the components of a worker process, and closes them in order."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from datetime import UTC, datetime, timedelta

import trio
from attrs import define, field

from db.database import Database, open_database
from db.errors import DatabaseError
from db.queries.ledger import MISSED_HEARTBEATS
from db.records import Worker
from llm_proxy import __version__
from llm_proxy.config import Settings
from llm_proxy.config.database import database_options, database_target, open_keyring
from llm_proxy.gateway.labels import Labels
from llm_proxy.gateway.late_usage import LateUsagePoller
from llm_proxy.gateway.providers import provider_file
from llm_proxy.gateway.providers.provider import Providers
from llm_proxy.gateway.relay import Relay
from llm_proxy.gateway.routing import Routing
from llm_proxy.health import startup_checks
from llm_proxy.health.database_collector import DatabaseCollector
from llm_proxy.health.readiness import READY_TIMEOUT, Readiness
from llm_proxy.identifiers import new_id
from llm_proxy.ledger import Ledger
from llm_proxy.ledger.outage import OutageMode, open_outage_mode, replay_orphans
from llm_proxy.ledger.prune import Pruner
from llm_proxy.ledger.refusals import RefusalRecorder
from llm_proxy.logging import log
from llm_proxy.logging.log import Log
from llm_proxy.metrics import Metrics, MetricStore, families
from llm_proxy.prices import Prices
from llm_proxy.secrets.encryption import KeyRing

#: Seconds in which the last settlements must be written when the process ends.
DRAIN_TIMEOUT = 10.0


@define(eq=False)
class Services:
    """The components of a running worker. Tasks in `nursery` are cancelled before the database is closed."""

    settings: Settings
    database: Database
    keyring: KeyRing
    relay: Relay
    metrics: Metrics
    collector: DatabaseCollector
    readiness: Readiness
    nursery: trio.Nursery
    _reloading: trio.Lock = field(factory=trio.Lock, init=False)

    @property
    def providers(self) -> Providers:
        """The configured providers as they are now."""
        return self.relay.routing.providers

    async def reload(self, record: Callable[[Providers], Awaitable[object]] | None = None) -> None:
        """Read provider file and price file again; new requests use them, running requests keep the old configuration.

        If there are several workers, the supervisor replaces them after that. `record` gets the new providers before
        they are used. If it fails, nothing changes. Raises `SettingsError` if a file is wrong; then nothing changes.
        """
        async with self._reloading:
            providers, prices = await trio.to_thread.run_sync(load_files, self.settings)
            former = self.relay.routing
            routing = Routing.open(providers, former)
            if record is not None:
                await record(providers)
            self.metrics.add_providers(providers.by_name)
            self.relay.routing, self.relay.prices = routing, prices
            former.close(routing)
            if self.settings.workers > 1:
                os.kill(os.getppid(), signal.SIGHUP)


def load_files(settings: Settings) -> tuple[Providers, Prices]:
    """Read the provider file and the price file. Raises `SettingsError` with all mistakes of the first wrong one."""
    providers = provider_file.load(settings)
    base_urls = {name: provider.base_url for name, provider in providers.by_name.items()}
    return providers, Prices.load(settings.prices_path, base_urls, providers.unconfigured)


async def _drain(ledger: Ledger, outage: OutageMode | None, refusals: RefusalRecorder) -> None:
    """Write what is not written yet. What remains after the timeout is for the next start."""
    events = log.logger("services")
    with trio.move_on_after(DRAIN_TIMEOUT) as drain:
        if outage is not None:
            await outage.drain()
        try:
            await ledger.drain()
        except DatabaseError as error:
            # All is settled; other workers will find that this one has no heartbeat.
            events.warning("the database does not know that this worker has ended", why=str(error))
        with suppress(DatabaseError):
            await refusals.drain()
    if drain.cancelled_caught:
        spooled = outage is not None and outage.spooled
        if ledger.unsettled or not spooled:
            events.error("the database did not take the last settlements", unsettled=ledger.unsettled)
        if outage is not None and spooled:
            with trio.move_on_after(READY_TIMEOUT):
                await outage.leave()


@asynccontextmanager
async def open_services(settings: Settings, request_log: Log, store: MetricStore) -> AsyncIterator[Services]:
    """Migrate the database, open all components, and close them in reverse order.

    If the writer of the ledger fails, the body is cancelled: a proxy must not serve requests that it cannot record.
    Raises `db.errors.DatabaseError`, `KeyRingError` or `SettingsError` if a component cannot be opened.
    """
    target = database_target(settings)
    providers, prices = load_files(settings)
    keyring = open_keyring(settings)
    metrics = Metrics(providers.by_name, __version__, store)
    metrics.show_provider(providers.default.name)
    async with AsyncExitStack() as stack:
        stack.enter_context(request_log.writing_together())
        database = await stack.enter_async_context(open_database(target, database_options(settings)))
        warn = log.logger("services").warning
        await trio.to_thread.run_sync(startup_checks.prepare, database, settings, keyring, warn)
        now = datetime.now(UTC)
        worker = Worker(new_id(), socket.gethostname()[:255], os.getpid(), __version__, now, now)
        ledger = Ledger(
            database, worker, metrics, exclusive=target.driver == "sqlite", heartbeat=settings.ledger_heartbeat
        )
        outage = await trio.to_thread.run_sync(open_outage_mode, settings, ledger, database, worker)
        dead_after = timedelta(seconds=MISSED_HEARTBEATS * settings.ledger_heartbeat)
        pruner = Pruner(
            database,
            worker.id,
            retention=timedelta(seconds=settings.ledger_retention),
            audit_retention=timedelta(seconds=settings.audit_retention),
            dead_after=dead_after,
        )
        metrics.set_function(families.LOG_LINES_LOST, lambda: request_log.lines_lost)
        refusals = RefusalRecorder(database)
        metrics.set_function(families.REFUSALS_UNRECORDED, lambda: refusals.unrecorded)
        relay = Relay(
            routing=Routing.open(providers),
            prices=prices,
            labels=Labels({name.encode(): key for name, key in settings.label_headers}, settings.label_keys),
            ledger=outage or ledger,
            keyring=keyring,
            metrics=metrics,
            refusals=refusals if settings.record_refusals else None,
            request_log=request_log,
            max_request_size=settings.max_request_size,
            max_concurrent=settings.max_concurrent_requests,
        )
        stack.callback(relay.close_connections)
        metrics.set_function(
            families.UPSTREAM_CONNECTIONS,
            lambda: {
                "in_use": sum(upstream.in_use for upstream in relay.routing.upstreams.values()),
                "idle": sum(upstream.idle for upstream in relay.routing.upstreams.values()),
            },
        )
        async with trio.open_nursery() as nursery:
            collector = DatabaseCollector(database, nursery)
            collector.register(metrics, ledger, pruner, outage)
            readiness = Readiness(database, ledger, outage, nursery)
            await nursery.start(ledger.run)
            nursery.start_soon(metrics.run)
            nursery.start_soon(pruner.run)
            if settings.record_refusals:
                nursery.start_soon(refusals.run)
            if settings.late_usage_poll is not None:
                poller = LateUsagePoller(
                    database, relay, worker.id, interval=settings.late_usage_poll, dead_after=dead_after
                )
                nursery.start_soon(poller.run)
            if outage is None:
                nursery.start_soon(replay_orphans, settings, database, worker)
            else:
                await nursery.start(outage.run)
            try:
                yield Services(settings, database, keyring, relay, metrics, collector, readiness, nursery)
            finally:
                with trio.CancelScope(shield=True):
                    await _drain(ledger, outage, refusals)
                nursery.cancel_scope.cancel()
