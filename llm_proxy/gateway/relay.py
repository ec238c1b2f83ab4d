"""The path of a request through the data plane: from the ASGI channel to the provider and back."""

from __future__ import annotations

from contextlib import suppress
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

import trio
from attrs import define, field

from db.records import RefusedRequest
from llm_proxy.errors import BadRequest, BodyNotRead, Overloaded, ProxyError, provider_response
from llm_proxy.gateway import admission, stream_usage
from llm_proxy.gateway.auth import token_sources
from llm_proxy.gateway.demand import RequestDemand
from llm_proxy.gateway.exchange import Exchange
from llm_proxy.gateway.http import parameters
from llm_proxy.gateway.http.headers import with_rate_limits
from llm_proxy.gateway.inbound import HeldBodies, Inbound
from llm_proxy.gateway.labels import Labels
from llm_proxy.gateway.limit_reports import LimitReports
from llm_proxy.gateway.objects.request import RequestObjects
from llm_proxy.gateway.requested_model import requested_model
from llm_proxy.gateway.usage import model_name
from llm_proxy.identifiers import request_id
from llm_proxy.logging import log
from llm_proxy.logging.log import LONGEST_PATH, Refusal, RequestLine
from llm_proxy.net.disconnect import ClientDisconnected
from llm_proxy.prices import Prices

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    from structlog.typing import FilteringBoundLogger

    from db.records import Result
    from llm_proxy.gateway.auth.token_source import TokenSource
    from llm_proxy.gateway.http.parameters import Parameters
    from llm_proxy.gateway.providers.provider import Provider, Route
    from llm_proxy.gateway.routing import Routing
    from llm_proxy.ledger import AdmissionRequest, Checked, Grant, Objects, ObjectUsage
    from llm_proxy.ledger.refusals import RefusalRecorder
    from llm_proxy.logging.log import Log
    from llm_proxy.metrics import Metrics
    from llm_proxy.secrets.encryption import KeyRing

    Receive = Callable[[], Awaitable[Any]]
    Send = Callable[[Any], Awaitable[None]]

#: Seconds that a client has to receive the answer to a refused request.
REFUSAL_PATIENCE = 10.0


class Admissions(Protocol):
    """Decides on requests and records them: `Ledger`, or the outage mode in front of it."""

    async def check(self, request: AdmissionRequest) -> Checked:
        """Judge a request by its head before its body is read; raises ProxyError if the request is refused."""

    async def admit(self, request: AdmissionRequest) -> Grant:
        """Wait for the decision; raises ProxyError if the request is refused."""

    async def record(self, grant: Grant, made: Objects) -> bool:
        """Record objects that a running request has created; if False, they must be given to `settle`."""

    async def requested_model(self, grant: Grant, object_id: str) -> str:
        """The model that the request named which made an object; empty if that is not known."""

    def settle(self, grant: Grant, result: Result, objects: Objects = (), usage: ObjectUsage | None = None) -> None:
        """Record how an admitted request ended, and the objects that it changed; exactly one call per grant.

        `usage` is that of an object, if the request has seen its final state.
        """


@define(eq=False, kw_only=True)
class Relay:
    """Handles every request whose path belongs to a provider.

    Attributes:
        routing: for new requests.
        prices: for requests that end.
        labels: reads the labels of requests.
        max_request_size: bytes of the longest request body that is accepted.
        max_concurrent: maximum number of requests at once; further ones are refused.
        refusals: records refused requests; None if they are not recorded.
        running: number of requests with a valid token that are in the relay now.
        held: memory of the long bodies that a rule has to read.
        token_sources: for credentials that are exchanged for a token, by the kind of `auth`.
    """

    routing: Routing
    prices: Prices
    labels: Labels
    ledger: Admissions
    keyring: KeyRing
    metrics: Metrics
    request_log: Log
    max_request_size: int
    max_concurrent: int
    refusals: RefusalRecorder | None = None
    running: int = 0
    held: HeldBodies = field(factory=HeldBodies)
    token_sources: Mapping[str, TokenSource] = field(factory=token_sources)
    _limit_reports: LimitReports = field(init=False)
    _events: FilteringBoundLogger = field(factory=lambda: log.logger("relay"), init=False)

    @_limit_reports.default
    def _make_limit_reports(self) -> LimitReports:
        return LimitReports(self.metrics)

    def route(self, raw_path: bytes) -> Route | None:
        """The route of a path; None if it is not a provider's."""
        return self.routing.providers.route(raw_path)

    def close_connections(self) -> None:
        """Close the idle connections to all providers; those in use close after their request."""
        self.routing.close()

    async def __call__(
        self, route: Route, scope: dict[str, Any], receive: Receive, send: Send, refusal: ProxyError | None = None
    ) -> None:
        """Serve one request, or answer it with `refusal`."""
        inbound = Inbound(request_id(), trio.current_time(), route, scope, receive, self.max_request_size)
        routing = self.routing
        try:
            if refusal is not None:
                raise refusal
            if self.running >= self.max_concurrent:
                raise Overloaded
            await self._handle(inbound, routing, send)
        except ProxyError as error:
            if not inbound.admitted:
                self._report_refusal(inbound, routing, error)
            elif isinstance(error, Overloaded):
                # It was refused after its admission; operators look for that among the refusals.
                self.metrics.refusal(error.code)
            with suppress(OSError), trio.move_on_after(REFUSAL_PATIENCE):
                await _answer(inbound, error, send)
        except ClientDisconnected:
            # Nothing was admitted, so there is nothing to record.
            return
        finally:
            inbound.release()
            if inbound.has_slot:
                self.running -= 1

    async def _handle(self, inbound: Inbound, routing: Routing, send: Send) -> None:
        """Judge what needs no database, then run the request until it ends or the client disconnects.

        If the server reports disconnects by itself and the body is complete, nothing else is needed; else a second task
        reads from the client. An upload is watched by both: the task reads a bounded number of bytes ahead, so it sees
        nothing while the provider accepts nothing.
        """
        inbound.check_size()
        digest, providers = admission.checked_digest(inbound, self.keyring), routing.providers
        self.labels.read(inbound)
        await inbound.begin()
        path = self.request_log.path(inbound.path.decode("ascii"))
        demand = RequestDemand(inbound, providers, self.prices)
        found: Parameters | BadRequest | None = None
        objects = RequestObjects.of(inbound)
        if inbound.ended:
            if objects.may_name(inbound) or admission.needs_body(inbound, providers):
                found = await self._read_or_fault(inbound, objects)
        else:
            # Wait for a body only if the token is valid; only then the request may take a slot.
            head = admission.admission_request(inbound, digest, providers, {}, path, objects.named)
            checked = await self.ledger.check(head)
            provider = providers.by_name[checked.provider]
            try:
                self._take_slot(inbound)
                found = await self._await_body(inbound, objects, provider, checked, demand)
            except ProxyError as error:
                error.about(checked.token.id, checked.project.id, provider.name)
                raise
        request = admission.admission_request(inbound, digest, providers, found, path, objects.named, demand)
        if inbound.notify is not None:
            inbound.notify(inbound.leave)
            if inbound.ended:
                await self._serve(request, demand, objects, inbound, routing, send)
                return
        refusal: ProxyError | None = None
        async with trio.open_nursery() as nursery:
            inbound.scope = nursery.cancel_scope
            nursery.start_soon(inbound.watch)
            try:
                await self._serve(request, demand, objects, inbound, routing, send)
            except ProxyError as error:
                refusal = error
            inbound.scope = None
            nursery.cancel_scope.cancel()
        if refusal is not None:
            raise refusal

    async def _await_body(
        self,
        inbound: Inbound,
        objects: RequestObjects,
        provider: Provider,
        checked: Checked,
        demand: RequestDemand,
    ) -> Parameters | None:
        """Wait for as much of the body as is needed before the admission; its parameters, if it must be read."""
        found: Parameters | None = None
        if checked.needs_body or provider.needs_body:
            found = await self._read(inbound, objects)
        elif provider.holds_body or (checked.limited and (demand.names_models(provider.name) or not _is_form(inbound))):
            await inbound.hold(self.held)
        elif stream_usage.is_wanted(checked.project, provider, inbound):
            await inbound.gather()
        else:
            await inbound.first_piece()
        if checked.limited:
            await demand.read(provider.name)
        return found

    async def _read_or_fault(self, inbound: Inbound, objects: RequestObjects) -> Parameters | BadRequest:
        """Read the whole body; whether a fault of it matters depends on the provider, and on who uses its account."""
        try:
            return await self._read(inbound, objects)
        except BadRequest as error:
            objects.fault = error
            return error

    async def _read(self, inbound: Inbound, objects: RequestObjects) -> Parameters:
        """Read the whole body, and its parameters as it arrives; raises `BadRequest` if they are ambiguous."""
        reader = parameters.reader(inbound.headers, inbound.route.path, objects.json, objects.form)

        async def see(piece: bytes) -> None:
            for start in range(0, len(piece), parameters.SLICE):
                if start:
                    await trio.lowlevel.checkpoint()
                reader.feed(piece[start : start + parameters.SLICE])

        await inbound.hold(self.held, see)
        found = reader.end()
        objects.take(reader, found)
        inbound.model = model_name(next(iter(found.get("model", ())), None))
        return found

    def _take_slot(self, inbound: Inbound) -> None:
        """Count the request as running; raises `Overloaded` if `max_concurrent` are running."""
        if not inbound.has_slot:
            if self.running >= self.max_concurrent:
                raise Overloaded
            self.running += 1
            inbound.has_slot = True

    async def _serve(
        self,
        request: AdmissionRequest,
        demand: RequestDemand,
        objects: RequestObjects,
        inbound: Inbound,
        routing: Routing,
        send: Send,
    ) -> None:
        """Admit, exchange, settle. Whatever happens after the admission, there is exactly one settlement."""
        try:
            grant = await self.ledger.admit(request)
        except BodyNotRead as error:
            found = await self._read_or_fault(inbound, objects)
            await demand.read(error.provider)
            digest, providers, path = request.digest, routing.providers, request.path
            request = admission.admission_request(inbound, digest, providers, found, path, objects.named, demand)
            grant = await self.ledger.admit(request)
        inbound.admitted = True
        if grant.limits:
            self._limit_reports.judged(grant.limits)
        labels, summed = self.labels.of(grant, inbound.labels)
        exchange = Exchange(inbound, send, labels, summed, redact=self.request_log.path, usage_of=objects.usage_of)
        if grant.limits:
            exchange.limits, exchange.limited_at = grant.limits, grant.reservation.admitted_at
        if objects.yields:
            exchange.yields, exchange.record = objects.yields, partial(self.ledger.record, grant)
        name = grant.reservation.provider
        self.metrics.upstream_started(name)
        try:
            provider = exchange.provider = routing.providers.by_name[name]
            exchange.asks_usage = stream_usage.is_wanted(grant.account.project, provider, inbound)
            # The token of a request that came in one piece was not known before. Beyond the bound it is void.
            self._take_slot(inbound)
            if provider.rewriting is not None:
                exchange.upload_url = partial(provider.rewriting.with_session, self.keyring, request.digest)
            if objects.usage_of:
                exchange.origin_model = await self.ledger.requested_model(grant, objects.usage_of)
            secret = api_key = self.keyring.open(grant.key.sealed, grant.key.owner)
            tokens = self.token_sources.get(provider.auth)
            if tokens is not None:
                api_key = await tokens.token(secret)
            await exchange.run(provider, routing.upstreams[name], api_key)
            if tokens is not None and exchange.status == 401:
                tokens.drop(secret, api_key)
        except ProxyError as error:
            exchange.refused_with(error)
            raise
        except Exception as error:
            # A bug. The client gets a plain 500, the log the exception, the ledger a row.
            self._events.exception("a request failed inside the proxy", request_id=inbound.id)
            if not exchange.started:
                failure = ProxyError()
                exchange.refused_with(failure)
                raise failure from error
        finally:
            self._settle(inbound, grant, exchange, objects)

    def _settle(self, inbound: Inbound, grant: Grant, exchange: Exchange, objects: RequestObjects) -> None:
        provider, reservation = grant.reservation.provider, grant.reservation
        self.metrics.upstream_ended(provider)
        unrecorded = objects.deleted(exchange.status) or exchange.unrecorded()
        usage: ObjectUsage | None = None
        try:
            result, usage = exchange.divided(exchange.result(self.prices))
        except Exception:  # noqa: BLE001 - whatever a reader raises
            # A bug in what reads usage and computes costs must not lose the request.
            self._events.exception("the usage of a request could not be read", request_id=inbound.id)
            result = exchange.unread_result()
        self.ledger.settle(grant, result, unrecorded, usage)
        if grant.limits:
            self._limit_reports.settled(grant, result)
        self.metrics.request(provider, result)
        self.request_log.request(
            RequestLine(
                inbound.id,
                inbound.method,
                reservation.path,
                provider,
                reservation.token_id,
                reservation.project_id,
                inbound.client,
                exchange.code,
                exchange.reason,
            ),
            result,
        )

    def _report_refusal(self, inbound: Inbound, routing: Routing, error: ProxyError) -> None:
        named = inbound.route.provider
        name = error.provider or ("" if named is None else named.name)
        path, model = inbound.path.decode("latin-1"), inbound.model
        # Anybody can send requests without a valid token: their bodies are not read.
        if not model and error.token_id and (provider := routing.providers.by_name.get(name)) is not None:
            model = requested_model(inbound, provider)
        self.metrics.refusal(error.code)
        if error.limits:
            self._limit_reports.judged(error.limits)
        if self.refusals is not None:
            self.refusals.add(
                RefusedRequest(
                    inbound.id,
                    datetime.now(UTC),
                    error.token_id,
                    error.project_id,
                    name,
                    inbound.method[:64],
                    self.request_log.path(path[:LONGEST_PATH].replace("\0", "\ufffd")),
                    error.code,
                    error.status,
                    self.request_log.path(model),
                    inbound.client[:64],
                    error.limit_id or None,
                )
            )
        self.request_log.request(
            RequestLine(
                inbound.id,
                inbound.method,
                path,
                name,
                error.token_id,
                error.project_id,
                inbound.client,
                error.code,
                limit_id=error.limit_id,
            ),
            Refusal(
                outcome="refused",
                status=error.status,
                model=model,
                duration_us=round((trio.current_time() - inbound.arrived) * 1e6),
                request_bytes=inbound.received,
            ),
        )


def _is_form(inbound: Inbound) -> bool:
    """Whether the body is a form, which is an upload that is not held."""
    return any(name == b"content-type" and value.lower().startswith(b"multipart/") for name, value in inbound.content)


async def _answer(inbound: Inbound, error: ProxyError, send: Send) -> None:
    """Answer in the provider's error shape."""
    status, fields, body = provider_response(error, inbound.shape, inbound.id)
    if error.judged_at is not None:
        fields = with_rate_limits(fields, error.limits, error.judged_at, anthropic=inbound.shape == "anthropic")
    await send({"type": "http.response.start", "status": status, "headers": fields})
    await send({"type": "http.response.body", "body": body, "more_body": False})
