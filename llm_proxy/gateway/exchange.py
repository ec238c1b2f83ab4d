"""One admitted request: sent to the provider, its answer relayed to the client, its result for the ledger."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from itertools import islice
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import unquote_to_bytes

import msgspec
import trio
from attrs import define, field

from db.records import Result
from llm_proxy.errors import ProxyError, RequestTimeout, UpstreamTimeout, UpstreamUnreachable
from llm_proxy.gateway import named_models, stream_usage
from llm_proxy.gateway.auth import aws
from llm_proxy.gateway.http import headers
from llm_proxy.gateway.objects import answers
from llm_proxy.gateway.providers.rewriting import EDIT
from llm_proxy.gateway.requested_model import requested_model
from llm_proxy.gateway.upstream.failures import (
    ConnectFailed,
    ConnectTimeout,
    HeaderTimeout,
    MalformedResponse,
    ReadTimeout,
    UpstreamFailure,
)
from llm_proxy.gateway.upstream.request import Dispatch
from llm_proxy.gateway.usage import GENERATED, NOTHING, estimate, meter_for
from llm_proxy.identifiers import request_id_beside
from llm_proxy.ledger import ObjectUsage
from llm_proxy.ledger.late import without_usage

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator, Mapping

    from db.records import CostBasis, Outcome
    from llm_proxy.errors import Shape
    from llm_proxy.gateway.inbound import Inbound
    from llm_proxy.gateway.objects.answers import AnswerReader
    from llm_proxy.gateway.providers.provider import Provider
    from llm_proxy.gateway.providers.rewriting import WholeResponse
    from llm_proxy.gateway.stream_usage import StreamEditor
    from llm_proxy.gateway.upstream.pool import UpstreamPool, UpstreamResponse
    from llm_proxy.gateway.usage import Usage, UsageMeter
    from llm_proxy.ledger import Objects
    from llm_proxy.ledger.limits import LimitState
    from llm_proxy.prices import Prices

#: Steps of reading usage before a piece is sent: enough for a piece that is not compressed. The event that ends a
#: stream must be recognised before the client has it and disconnects.
_STEPS_AHEAD: Final = 32
_NO_WORK: Final[Iterator[None]] = iter(())
#: Bytes that are read after the event that ends a stream, once the client has disconnected.
_REST: Final = 64 * 1024
#: Seconds that the body may continue after that event while the client stays. Most end at once; a few send a late
#: report, or finish another of several answers. A provider that only keeps its connection open must not hold a slot.
_REST_PATIENCE: Final = 60.0

#: Headers in which providers send the id of a request: OpenAI and similar, Anthropic, Azure's gateway, AWS. The first
#: is the one that the SDK shows.
_REQUEST_IDS: Final[Mapping[Shape, tuple[bytes, ...]]] = {
    "openai": (b"x-request-id", b"request-id", b"apim-request-id", b"x-amzn-requestid"),
    "anthropic": (b"request-id", b"x-request-id", b"apim-request-id", b"x-amzn-requestid"),
    "google": (b"x-request-id",),
    "aws": (b"x-amzn-requestid",),
}
#: Outcomes of requests without an answer that the provider may bill all the same.
_UNANSWERED: Final = frozenset({"client_closed", "upstream_timeout", "proxy_error"})

_REQUEST_ID: Final = re.compile(rb"[\x21-\x7e]{1,255}")


@define(eq=False)
class Exchange:
    """The state of an exchange while it runs; `result` reads it at the end.

    Attributes:
        labels, summed_labels: its labels, and those of them that the hourly sums distinguish.
        admitted: trio's clock when the request was admitted.
        dispatch: knows whether a byte of the request can have reached the provider.
        status: the status that the client was sent, None before that.
        finished: the client was sent a complete answer: the whole response, or the event that ends a stream.
        whole: the whole response was received.
        outcome: how it ended, as far as known.
        code: the error code of the answer, if the proxy itself answered.
        reason: what the provider did wrong, for the operator.
        provider_request_id: the id that the provider gave the request; SDKs show it.
        yields: where the answer has ids of objects that the request creates, see `objects/table.py`.
        limits: those that it passed, with what is left of them.
        limited_at: the database's time of its admission; None if it has none.
        usage_of: the object whose usage the answer may have, see `objects/table.py`.
        origin_model: the model that the request named which made this object.
        provider: where it is sent; None before that is known.
        asks_usage: whether it is asked for its usage, if it is streamed; later, whether it was.
        upload_url: completes the URL of an upload session in the answer.
        redact: removes credentials from a text of the client that is recorded.
        record: records these objects; True if they are in the database then.
    """

    inbound: Inbound
    send: Callable[[Any], Awaitable[None]]
    labels: dict[str, str] | None = None
    summed_labels: dict[str, str] | None = None
    admitted: float = field(factory=trio.current_time)
    dispatch: Dispatch = field(factory=Dispatch)
    status: int | None = None
    started: bool = False
    streamed: bool = False
    first_byte: float | None = None
    relayed: int = 0
    removed: int = 0
    finished: bool = False
    whole: bool = False
    outcome: Outcome = "proxy_error"
    code: str = ""
    reason: str = ""
    provider_request_id: str | None = None
    meter: UsageMeter = NOTHING
    yields: Mapping[str, str] = field(factory=dict)
    record: Callable[[Objects], Awaitable[bool]] | None = None
    usage_of: str = ""
    origin_model: str = ""
    upload_url: Callable[[str], str] = str
    redact: Callable[[str], str] = str
    provider: Provider | None = None
    asks_usage: bool = False
    limits: tuple[LimitState, ...] = ()
    limited_at: datetime | None = None
    #: The beginning of the body, and its content coding, for an estimate.
    _sample: bytearray = field(factory=bytearray)
    _coding: bytes = b""
    _editor: StreamEditor | None = None
    _answer: AnswerReader | None = None
    #: What the meter has to do with the last piece.
    _work: Iterator[None] = _NO_WORK
    _unrecorded: Objects = ()

    async def run(self, provider: Provider, upstream: UpstreamPool, api_key: str) -> None:
        """Forward the request and relay the response.

        Raises:
            ProxyError: the upstream failed before a response was started. Later the response is cut off instead; the
                client detects that by its framing.
        """
        response: UpstreamResponse | None = None
        self.provider = provider
        try:
            response = await self._ask(provider, upstream, api_key)
            await self._relay(response, provider)
        except (ConnectTimeout, HeaderTimeout) as failure:
            self._fail(failure, "upstream_timeout")
        except ReadTimeout as failure:
            self._fail(failure, "client_closed" if failure.waiting_for == "body" else "upstream_timeout")
        except UpstreamFailure as failure:
            self._fail(failure, "upstream_error")
        except RequestTimeout:
            # Raised by the client's body only, when it comes too slowly.
            self.outcome = "client_closed"
            raise
        except UpstreamUnreachable:
            # The provider's answer must not be relayed.
            self.outcome = "upstream_error"
            raise
        except OSError:
            # Raised by `send` only: the client has disconnected, or reads too slowly.
            self.outcome = "client_closed"
        except BaseException as error:
            # If two tasks are cancelled at once, as during an upload, this is a group and not `trio.Cancelled` itself.
            was_cancelled = not isinstance(error, Exception)
            if not (was_cancelled and self.finished):
                self.outcome = "client_closed" if was_cancelled and self.inbound.gone else "proxy_error"
            raise
        finally:
            if response is not None:
                response.close()

    async def _ask(self, provider: Provider, upstream: UpstreamPool, api_key: str) -> UpstreamResponse:
        inbound = self.inbound
        body: bytes | Inbound | None = inbound if inbound.has_body else None
        if body is not None and (whole := inbound.complete()) is not None:
            body = whole
        path = inbound.route.path
        target = provider.target(path, inbound.query, api_key)
        credential = provider.credential(api_key, path)
        sent, own = inbound.headers, inbound.not_forwarded
        if own:
            sent = [field for field in sent if field[0] not in own]
        fields = headers.request_headers(sent, credential, provider.required_headers, provider.headers)
        edited: bytes | None = None
        if self.asks_usage and isinstance(body, bytes):
            edited = stream_usage.with_option(body, inbound.headers)
            body = edited or body
        self.asks_usage = edited is not None
        if self.asks_usage or (provider.rewriting is not None and provider.rewriting.edits_body(path)):
            fields = [field for field in fields if field[0] != b"accept-encoding"]
            fields.append((b"accept-encoding", b"identity"))
        if provider.auth == "sigv4":
            digest = await inbound.sha256() if edited is None else sha256(edited).hexdigest()
            fields = aws.sign(api_key, inbound.method, provider.origin, target, fields, digest)
        method = inbound.method.encode("ascii")
        response = await upstream.send(method, target, fields, body, dispatch=self.dispatch)
        if provider.auth == "query":
            # Such a provider may repeat the URL of the request, as in the Location of a redirect.
            key = api_key.encode()
            response.headers = [
                field for field in response.headers if key not in field[1] and key not in unquote_to_bytes(field[1])
            ]
        return response

    async def _relay(self, received: UpstreamResponse, provider: Provider) -> None:
        """Relay the response as it arrives, unless it must be edited."""
        path = self.inbound.route.path
        response: UpstreamResponse | WholeResponse = received
        edits: tuple[bytes, ...] = ()
        if provider.rewriting is not None and path in provider.rewriting:
            response, edited = await provider.rewriting.edit(received, path, self.upload_url)
            edits = (EDIT,) if edited else ()
        kind, self._coding = headers.content_of(response.headers)
        self.streamed = kind == headers.EVENT_STREAM
        status = response.status
        if self.asks_usage:
            edits = (*edits, stream_usage.EDIT)
            if status == 200 and self.streamed and not self._coding:
                self._editor = stream_usage.StreamEditor()
                response.headers = [field for field in response.headers if field[0].lower() != b"content-length"]
        overhead_ms = (self.admitted - self.inbound.arrived) * 1000
        own_id = self.inbound.id.encode("ascii")
        head = headers.response_headers(response.headers, own_id, overhead_ms, edits)
        if self.limited_at is not None:
            now = self.limited_at + timedelta(seconds=trio.current_time() - self.admitted)
            shape = provider.shape_for(path)
            head = headers.with_rate_limits(head, self.limits, now, anthropic=shape == "anthropic")
        self.meter = meter_for(status, response.headers, self.inbound.method, path, shows_usage=bool(self.usage_of))
        names = dict(head)
        if self.record is not None:
            self._answer = answers.reader_for(self.yields, status, response.headers)
        self.provider_request_id = _provider_request_id(names, own_id, provider.shape_for(path))
        send = self.send
        await send({"type": "http.response.start", "status": status, "headers": head})
        self.started = True
        self.status = status
        if not response.ready:
            # Servers hold the head back until there is a piece of body; a slow body must not delay it.
            await send({"type": "http.response.body", "body": b"", "more_body": True})
        while not self.finished:
            await self._relay_piece(response, await response.receive())
        if not self.whole:
            await self._relay_rest(response)

    async def _relay_piece(self, response: UpstreamResponse | WholeResponse, data: bytes) -> None:
        """Send a piece of the body to the client; an empty one ends it."""
        meter = self.meter
        if data:
            if self.first_byte is None:
                self.first_byte = trio.current_time()
            self.relayed += len(data)
            self._sample += data[: estimate.SAMPLE - len(self._sample)]
            if work := meter.feed(data):
                self._work = iter(work)
                for _ in islice(self._work, _STEPS_AHEAD):
                    await trio.lowlevel.checkpoint()
        if not data or response.ended:
            # The response is complete: its connection can be used again.
            self.whole = True
            response.close()
        if self._answer is not None and not self._answer.done:
            await self._record(self._answer.feed(data, whole=self.whole))
        last = self.whole or (self.streamed and (meter.ended or meter.failed))
        if last:
            # The client may disconnect as soon as it has this piece, and that is no failure.
            self.inbound.answered = True
        if self._editor is not None:
            received = len(data)
            data = self._editor.feed(data) + (self._editor.end() if self.whole else b"")
            self.removed += received - len(data)
        if data or self.whole:
            await self.send({"type": "http.response.body", "body": data, "more_body": not self.whole})
        if last:
            self.finished = True
            self.outcome = "ok"
        for _ in self._work:
            await trio.lowlevel.checkpoint()

    async def _record(self, made: list[tuple[str, str]]) -> None:
        """Record the objects in a piece of the answer before the client has it and can use them."""
        if made and self.record is not None:
            self._unrecorded += tuple(made)
            if await self.record(tuple(made)):
                self._unrecorded = self._unrecorded[: -len(made)]

    def unrecorded(self) -> Objects:
        """The objects that the request created, and that may not be in the database."""
        if self._answer is not None and not self._answer.done:
            self._unrecorded += tuple(self._answer.end())
        return self._unrecorded

    async def _relay_rest(self, response: UpstreamResponse | WholeResponse) -> None:
        """Relay the rest after the event that ends a stream: little or nothing.

        A client that disconnects now misses nothing. If the body ends soon, the connection can be used again. A body
        that does not end is cut off after a while, not ended as if it were complete: there may be more.
        """
        inbound = self.inbound
        enough = self.relayed + _REST
        with trio.move_on_after(_REST_PATIENCE) as inbound.rest:
            if inbound.left:
                inbound.leave()
            while not self.whole and not (inbound.left and self.relayed > enough):
                data = await response.receive()
                try:
                    await self._relay_piece(response, data)
                except OSError:
                    if not inbound.left:
                        inbound.leave()

    def _fail(self, failure: UpstreamFailure, outcome: Outcome) -> None:
        if self.finished:
            return
        error = _error_of(failure)
        self.outcome = outcome
        self.code = error.code
        self.reason = str(failure)
        if not self.started:
            raise error

    def refused_with(self, error: ProxyError) -> None:
        """Note the error that the client gets instead of a response of the provider."""
        self.status = error.status
        self.code = error.code

    def result(self, prices: Prices) -> Result:
        """The result for the ledger row."""
        for _ in self._work:
            pass  # the client has left before the end of the last piece was read
        usage = self.meter.result(whole=self.whole)
        provider = self.provider
        requested = "" if provider is None else self.redact(requested_model(self.inbound, provider))
        outcome = self._final_outcome() if self.dispatch.sent else "void"
        estimated = self._estimate(usage, outcome)
        if estimated is not None:
            usage = estimated
        elif self._is_uncounted(usage, outcome):
            usage = msgspec.structs.replace(usage, details={})
        cost, basis, version = cost_of(usage, prices, provider, requested or self.origin_model)
        if estimated is not None and basis == "price":
            basis = "estimate"
        return Result(
            outcome=outcome,
            status=self.status,
            model=usage.model,
            requested_model=requested,
            streamed=self.streamed,
            first_byte_us=None if self.first_byte is None else round((self.first_byte - self.admitted) * 1e6),
            duration_us=round((trio.current_time() - self.admitted) * 1e6),
            request_bytes=self.inbound.received,
            response_bytes=self.relayed - self.removed,
            input_tokens=usage.input_tokens,
            output_tokens=usage.output_tokens,
            cached_tokens=usage.cached_tokens,
            cache_write_tokens=usage.cache_write_tokens,
            cache_write_1h_tokens=usage.cache_write_1h_tokens,
            reasoning_tokens=usage.reasoning_tokens,
            usage_details=usage.details,
            service_tier=usage.service_tier or None,
            cost_nanousd=cost,
            cost_basis=basis,
            price_version=version,
            unmetered=self.meter.unmetered,
            estimated=estimated is not None,
            provider_request_id=self.provider_request_id,
            labels=self.labels,
            summed_labels=self.summed_labels,
        )

    def unread_result(self) -> Result:
        """The result if its usage cannot be read because of a bug."""
        outcome = self.outcome if self.dispatch.sent else "void"
        return Result(outcome=outcome, status=self.status, requested_model="", unmetered=True)

    def divided(self, result: Result) -> tuple[Result, ObjectUsage | None]:
        """The result without the usage that is not this request's own, and what was seen of an object."""
        final = self.meter.final
        known = result.input_tokens is not None or result.usage_details is not None
        if not self.usage_of:
            awaited = "" if self._answer is None else self._answer.awaited
            if not awaited:
                return result, None
            if final and known:
                return result, ObjectUsage(awaited, self.inbound.id)
            return without_usage(result), None
        own = msgspec.structs.replace(without_usage(result), model="")
        is_cut_off = not self.whole or self.meter.unmetered
        if not final or (not known and is_cut_off):  # the usage may come with the next answer
            return own, None
        if not known:
            path = self.inbound.route.path
            is_elsewhere = b"/batches/" in path or b"/deferred-completion/" in path
            if is_elsewhere or final not in GENERATED:
                # Of a batch that was worked on, the lines of its output have the usage.
                nothing_done = final == "failed" or not is_elsewhere
                return own, ObjectUsage(self.usage_of, self.inbound.id) if nothing_done else None
            result = msgspec.structs.replace(result, usage_details={})
        nothing = {"first_byte_us": None, "duration_us": None, "request_bytes": 0, "response_bytes": 0}
        late = msgspec.structs.replace(
            result, kind="late", outcome="ok", streamed=False, requested_model="", unmetered=False, **nothing
        )
        return own, ObjectUsage(self.usage_of, request_id_beside(self.inbound.id), late)

    def _estimate(self, usage: Usage, outcome: Outcome) -> Usage | None:
        """The usage with an estimate of what is missing; None if nothing is, or if nothing was billed.

        If a stream is cut off, Anthropic has reported the input only, and some servers no output yet.
        """
        inbound, path = self.inbound, self.inbound.route.path
        begun, output = usage.input_tokens is not None, usage.output_tokens
        if begun and (output or (output is not None and (self.finished or not self.streamed))):
            return None
        has_text = inbound.has_body and inbound.ended and estimate.reads(path, streamed=self.streamed)
        if not (has_text and self._is_billed(outcome)):
            return None
        if not output and estimate.generates_text(path, streamed=self.streamed):
            output = estimate.output_tokens(bytes(self._sample), self.relayed, path, self._coding)
        output = output or 0
        if begun:
            return msgspec.structs.replace(usage, output_tokens=output)
        if self.meter.failed and not output:
            return None
        tokens = estimate.input_tokens(*inbound.ends(), inbound.received)
        return msgspec.structs.replace(usage, input_tokens=tokens, output_tokens=output)

    def _is_billed(self, outcome: Outcome) -> bool:
        """Whether the provider bills the request itself, not an object that it made; or may do so."""
        inbound, provider, status = self.inbound, self.provider, self.status
        if inbound.method != "POST" or self.usage_of or (self._answer is not None and self._answer.awaited):
            return False
        if provider is None or not named_models.bills(inbound, provider):
            return False
        if status is None or (self.code and not self.started):
            return outcome in _UNANSWERED
        return 200 <= status < 300 and outcome != "void"

    def _is_uncounted(self, usage: Usage, outcome: Outcome) -> bool:
        """Whether the request is billed, and nothing says what was used: speech, images of some models."""
        if usage.is_known or usage.output_tokens is not None or usage.cost_nanousd is not None:
            return False
        if self.meter.failed or not self._is_billed(outcome):
            return False
        is_sent = self.inbound.ended or not self.inbound.has_body
        return is_sent and (self.relayed > 0 or not self.started)

    def _final_outcome(self) -> Outcome:
        """The outcome, corrected by what the provider itself reported."""
        if self.started and self.status is not None and self.outcome in ("ok", "client_closed"):
            if self.meter.failed:
                self.reason = "an event in the stream says that the answer has failed"
                return "upstream_error"
            if self.status >= 500:
                self.reason = f"the provider answered {self.status}"
                return "upstream_error"
            if self.status >= 400:
                return "rejected"
        return self.outcome


def cost_of(
    usage: Usage, prices: Prices, provider: Provider | None, requested: str
) -> tuple[int | None, CostBasis | None, str | None]:
    """The cost, where it is from, and the version of the prices; None if the cost is unknown."""
    if usage.cost_nanousd is not None:
        return usage.cost_nanousd, "provider", None
    if provider is None or not usage.is_known:
        return None, None, None
    # The requests of a batch name models of their own.
    named = requested if usage.requests == 1 else ""
    found = prices.cost(provider.name, usage.parts or (usage,), datetime.now(UTC), named)
    return (None, None, None) if found is None else (found.nanousd, "price", found.version)


def _provider_request_id(names: Mapping[bytes, bytes], request_id: bytes, shape: Shape) -> str | None:
    """The provider's id of the request, from the response headers without the proxy's own `request_id`."""
    for name in _REQUEST_IDS[shape]:
        value = names.get(name)
        if value is not None and value != request_id and _REQUEST_ID.fullmatch(value):
            return value.decode("ascii")
    return None


def _error_of(failure: UpstreamFailure) -> ProxyError:
    """The error for the client; the log has the details for the operator."""
    match failure:
        case ConnectTimeout():
            return UpstreamTimeout("The provider could not be reached in time. Nothing was sent to it.")
        case ReadTimeout(waiting_for="body"):
            return RequestTimeout()
        case HeaderTimeout() | ReadTimeout():
            return UpstreamTimeout()
        case ConnectFailed():
            return UpstreamUnreachable("The provider could not be reached. Nothing was sent to it.")
        case MalformedResponse():
            return UpstreamUnreachable("The provider's answer is not valid HTTP and was not relayed.")
        case _:
            return UpstreamUnreachable("The provider closed the connection before it responded.")
