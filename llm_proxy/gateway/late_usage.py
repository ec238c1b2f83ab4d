"""Asks providers for the usage of background responses, runs and batches that no client has asked for.

One worker of all does it, with the key of the object's project. An object is asked for less and less often, until its
usage is known or lost. Clients may ask at the same time: the usage is booked once.

xAI's deferred completions are never asked for: xAI hands each out once only, and a client still wants it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote

import msgspec
import trio
from attrs import define, field

from db.errors import DatabaseError
from db.queries import objects, pruning
from db.queries.ledger import find_accounts
from db.queries.rows import Position
from db.records import TOKENS, ProviderObject, Reservation, Result, SettledRequest
from llm_proxy.errors import ProxyError
from llm_proxy.gateway.auth import aws
from llm_proxy.gateway.exchange import cost_of
from llm_proxy.gateway.http import headers
from llm_proxy.gateway.upstream.failures import UpstreamFailure
from llm_proxy.gateway.usage import GENERATED, UNKNOWN, Usage, meter_for
from llm_proxy.identifiers import request_id
from llm_proxy.ledger import ObjectUsage, book_late
from llm_proxy.ledger.late import LOST_AFTER, log_booked
from llm_proxy.logging import log

if TYPE_CHECKING:
    from db.database import Database
    from llm_proxy.gateway.providers.provider import Provider
    from llm_proxy.gateway.relay import Relay

#: Kinds of objects that are asked for, each with the headers that its API requires.
_KINDS: Final[Mapping[str, headers.HeaderList]] = {
    "background_response": [],
    "run": [(b"openai-beta", b"assistants=v2")],
    "batch": [],
    "message_batch": [(b"anthropic-version", b"2023-06-01")],
}
#: Those of them whose results may be in a file of their own.
_BATCHES: Final = frozenset({"batch", "message_batch"})
#: The bodies are metered as they are; providers send other codings only if they are asked to.
_HEADERS: Final = [(b"accept", b"*/*"), (b"accept-encoding", b"identity")]
#: States of a batch that has ended, at OpenAI, Anthropic, Mistral and Together, in lower case.
_ENDED: Final = frozenset({"completed", "failed", "expired", "cancelled", "ended", "success", "timeout_exceeded"})

#: Objects that are read at once, and that are asked for at once.
_PAGE: Final = 100
_AT_ONCE: Final = 4
#: Seconds that one answer may take: the results of a batch can have a gigabyte.
_PATIENCE: Final = 900.0
#: Longest time between two questions about an object, in seconds, if the interval is not longer.
_LONGEST_WAIT: Final = 3600.0
#: Bytes of the description of a batch.
_KEPT: Final = 64 * 1024

_log = log.logger("poller")


class _Failed(Exception):
    """An object cannot be asked for; the message has no secret."""


class _BatchObject(msgspec.Struct):
    """The description of a batch."""

    status: str | None = None
    processing_status: str | None = None
    output_file_id: str | None = None
    output_file: str | None = None


@define
class _Waiting:
    """When an object is asked for next, and how long the wait after that is."""

    due: float
    wait: float
    failed: bool = False


@define
class _Answer:
    """What an answer has said.

    Attributes:
        final: the usage does not change any more.
        body: its beginning.
    """

    usage: Usage
    final: bool
    body: bytes


@define(eq=False)
class LateUsagePoller:
    """Asks every `interval` seconds while it runs, if this worker is the first of the live ones."""

    _database: Database
    _relay: Relay
    _worker_id: str
    _interval: float = field(kw_only=True)
    _dead_after: timedelta = field(kw_only=True)
    _waiting: dict[tuple[str, str], _Waiting] = field(factory=dict, init=False)
    #: Objects that were made before this are known to be lost.
    _lost_before: datetime | None = field(default=None, init=False)

    async def run(self) -> None:
        """Ask until cancelled. While the database is unavailable, nothing is asked."""
        while True:
            try:
                if await self._database.read(pruning.is_first, self._worker_id, self._dead_after):
                    await self.ask_all()
                    await self._count_lost()
            except DatabaseError as error:
                _log.warning("asking for late usage was interrupted and is tried again", reason=str(error))
            await trio.sleep(self._interval)

    async def ask_all(self) -> None:
        """Ask for all objects that are due. Raises DatabaseError."""
        since = datetime.now(UTC) - LOST_AFTER
        after: Position | None = None
        former, self._waiting = self._waiting, {}
        limiter = trio.CapacityLimiter(_AT_ONCE)
        found: list[tuple[ProviderObject, str, str | None]] = []
        while after is None or len(found) == _PAGE:
            found = await self._database.read(objects.list_awaited, _KINDS, since, _PAGE, after)
            async with trio.open_nursery() as nursery:
                for one, path, model in found:
                    key = (one.provider, one.object_id)
                    waiting = self._waiting[key] = former.get(key) or _Waiting(0.0, self._interval)
                    if trio.current_time() >= waiting.due:
                        nursery.start_soon(self._ask_one, one, path, model or "", waiting, limiter)
            if not found:
                break
            after = Position(found[-1][0].created_at, found[-1][0].request_id)

    async def _count_lost(self) -> None:
        before = datetime.now(UTC) - LOST_AFTER
        since, self._lost_before = self._lost_before, before
        # Objects that were lost while no worker polled are counted nowhere, but listed.
        if since is not None and (lost := await self._database.read(objects.count_unbooked, since, before)):
            self._relay.metrics.late_usage("lost", lost)
            _log.warning("late usage is lost; llm-proxy manage usage --unbooked lists it", objects=lost)

    async def _ask_one(
        self, one: ProviderObject, path: str, model: str, waiting: _Waiting, limiter: trio.CapacityLimiter
    ) -> None:
        """Ask for one object; whatever fails is tried again later."""
        async with limiter:
            failure = ""
            try:
                with trio.fail_after(_PATIENCE):
                    await self._ask(one, path, model)
            except (_Failed, ProxyError, UpstreamFailure) as error:
                failure = str(error)
            except trio.TooSlowError:
                failure = f"the answer took longer than {_PATIENCE:.0f} s"
            except DatabaseError as error:
                failure = f"the usage was not written: {error}"
            except Exception as error:  # noqa: BLE001 - a bug must not end the worker
                # The message may contain a secret.
                failure = f"there was an unexpected error ({type(error).__name__})"
            waiting.due = trio.current_time() + waiting.wait
            waiting.wait = min(2 * waiting.wait, max(_LONGEST_WAIT, self._interval))
            if failure and not waiting.failed:
                waiting.failed = True
                self._relay.metrics.late_usage("failed")
                _log.warning(
                    "the usage of an object could not be asked for and is tried again",
                    provider=one.provider,
                    object_id=one.object_id,
                    kind=one.kind,
                    project_id=one.project_id,
                    reason=failure,
                )

    async def _ask(self, one: ProviderObject, made_at: str, model: str) -> None:
        provider = self._relay.routing.providers.by_name.get(one.provider)
        if provider is None:
            raise _Failed(f"the provider '{one.provider}' is not configured any more")
        collection = self._relay.routing.providers.route(made_at.encode("latin-1", "replace"))
        path = made_at if collection is None else collection.path.decode("latin-1")
        if path.endswith("/threads/runs"):
            thread = await self._database.read(objects.find_thread, one)
            if thread is None:
                raise _Failed("the thread of the run is not known")
            path = f"{path.removesuffix('/runs')}/{quote(thread, safe='')}/runs"
        path = f"{path}/{quote(one.object_id, safe='')}"
        api_key = await self._key(one, provider)
        answer = await self._get(provider, api_key, path, one.kind)
        if not (answer.final and answer.usage.is_known) and one.kind in _BATCHES:
            answer = await self._read_results(provider, api_key, path, one.kind, answer)
        if answer.final:
            await self._book(one, provider, path, model, answer)

    async def _key(self, one: ProviderObject, provider: Provider) -> str:
        accounts = await self._database.read(find_accounts, [one.project_id])
        account = accounts.get(one.project_id)
        key = None if account is None else account.keys.get(one.provider)
        if key is None or not key.active:
            raise _Failed(f"the project has no active key for the provider '{one.provider}'")
        return self._relay.keyring.open(key.sealed, key.owner)

    async def _read_results(
        self, provider: Provider, api_key: str, path: str, kind: str, description: _Answer
    ) -> _Answer:
        """The usage in the results of a batch; not final while it is not complete."""
        try:
            batch = msgspec.json.decode(description.body, type=_BatchObject)
        except msgspec.DecodeError:
            raise _Failed("the description of the batch cannot be read") from None
        state = batch.processing_status if kind == "message_batch" else batch.status
        if (state or "").lower() not in _ENDED:
            return _Answer(UNKNOWN, final=False, body=b"")
        if kind == "message_batch":
            results = f"{path}/results"
        elif output := batch.output_file_id or batch.output_file:
            collection, _, _ = path.rpartition("/")
            root = collection[: collection.rindex("/batch")]
            results = f"{root}/files/{quote(output, safe='')}/content"
        else:
            return _Answer(UNKNOWN, final=True, body=b"")
        answer = await self._get(provider, api_key, results, kind)
        if not answer.final:
            raise _Failed("the results of the batch cannot be read")
        return answer

    async def _get(self, provider: Provider, secret: str, path: str, kind: str) -> _Answer:
        """Read an answer through the meter, whatever its length."""
        tokens = self._relay.token_sources.get(provider.auth)
        api_key = secret if tokens is None else await tokens.token(secret)
        route = path.encode("latin-1")
        target = provider.target(route, b"", api_key)
        credential = provider.credential(api_key, route)
        fields = headers.request_headers([*_HEADERS, *_KINDS[kind]], credential, static=provider.headers)
        if provider.auth == "sigv4":
            fields = aws.sign(api_key, "GET", provider.origin, target, fields, hashlib.sha256().hexdigest())
        response = await self._relay.routing.upstreams[provider.name].send(b"GET", target, fields, None)
        try:
            if response.status == 401 and tokens is not None:
                tokens.drop(secret, api_key)
            if response.status != 200:
                raise _Failed(f"the provider answered {response.status}")
            meter = meter_for(200, response.headers, "GET", route, shows_usage=True)
            body = bytearray()
            while data := await response.receive():
                body += data[: _KEPT - len(body)]
                for _ in meter.feed(data):
                    await trio.lowlevel.checkpoint()
                await trio.lowlevel.checkpoint()
        finally:
            response.close()
        usage = meter.result(whole=True)
        if meter.unmetered:
            raise _Failed("the usage in the answer cannot be read")
        if kind not in _BATCHES and meter.final in GENERATED and not usage.is_known:
            usage = msgspec.structs.replace(usage, details={})
        return _Answer(usage, bool(meter.final), bytes(body))

    async def _book(self, one: ProviderObject, provider: Provider, path: str, model: str, answer: _Answer) -> None:
        now = datetime.now(UTC)
        whose = Reservation(request_id(), self._worker_id, one.token_id, one.project_id, one.provider, "GET", path, now)
        usage, late = ObjectUsage(one.object_id, one.request_id), None
        if answer.usage.is_known:
            late = _late_result(answer.usage, provider, model, self._relay)
            usage = ObjectUsage(one.object_id, whose.id, late)
        seen = SettledRequest(whose, late or Result(outcome="ok"), now)
        booked = await self._database.write(book_late, seen, usage)
        if booked:
            log_booked(booked)
            self._relay.metrics.late_usage("booked", len(booked))


def _late_result(usage: Usage, provider: Provider, model: str, relay: Relay) -> Result:
    cost, basis, version = cost_of(usage, relay.prices, provider, model)
    tokens: dict[str, Any] = {name: getattr(usage, name) for name in TOKENS}
    return Result(
        outcome="ok",
        status=200,
        kind="late",
        model=usage.model.strip(),
        requested_model="",
        usage_details=usage.details,
        service_tier=usage.service_tier or None,
        cost_nanousd=cost,
        cost_basis=basis,
        price_version=version,
        **tokens,
    )
