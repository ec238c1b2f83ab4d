"""The composition root: everything that one worker process is made of, opened and closed in order."""

from __future__ import annotations

import os
import socket
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import trio
from attrs import define

from db.database import Database, open_database
from db.errors import DatabaseError
from db.records import Worker
from llm_proxy.config import Mistake, SettingsError
from llm_proxy.config.database import database_options, database_target, open_keyring
from llm_proxy.gateway.providers import provider_file
from llm_proxy.gateway.relay import Relay
from llm_proxy.gateway.upstream import UpstreamPool, outbound_proxy
from llm_proxy.health import startup_checks
from llm_proxy.health.database_collector import Survey
from llm_proxy.health.probe import Probe
from llm_proxy.identifiers import new_id
from llm_proxy.ledger import Ledger
from llm_proxy.ledger.outage import OutageMode, open_outage_mode, replay_orphans
from llm_proxy.ledger.prune import Pruner
from llm_proxy.ledger.writer import MISSED_HEARTBEATS
from llm_proxy.logging import log
from llm_proxy.metrics import Metrics, Slate, families
from llm_proxy.secrets.encryption import KeyRing
from llm_proxy.version import VERSION

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping

    from llm_proxy.config import Settings
    from llm_proxy.gateway.providers.provider import Providers
    from llm_proxy.logging.log import Log

#: Seconds that the last settlements may take to reach the database when the process ends.
DRAIN_DEADLINE = 10.0
#: Seconds between the moments at which a worker writes down what it does not count as it happens.
PUBLISH_INTERVAL = 1.0
#: Seconds that `/ready` waits for the database.
READY_DEADLINE = 2.0


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


def _open_upstreams(providers: Providers, stack: AsyncExitStack) -> Mapping[str, UpstreamPool]:
    upstreams: dict[str, UpstreamPool] = {}
    for name, provider in providers.by_name.items():
        try:
            upstream = UpstreamPool(
                provider.origin,
                provider.timeouts,
                max_idle=provider.max_idle_conns_per_host,
                keep_alive=provider.keep_alive,
                proxy=outbound_proxy(provider.origin, os.environ),
            )
        except ValueError as error:
            # An outbound proxy's variable, which the message names, cannot be used.
            raise SettingsError([Mistake("", str(error))]) from error
        stack.callback(upstream.close)
        upstreams[name] = upstream
    return upstreams


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
        await trio.to_thread.run_sync(startup_checks.prepare, database, settings, keyring, events.warning)
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
