"""One admitted request on its way: to the provider, back to the client, into the books."""

from __future__ import annotations

import re
from itertools import islice
from typing import TYPE_CHECKING, Any, Final

import trio
from attrs import define, field

from db.records import Result
from llm_proxy.errors import ProxyError, RequestTimeout, UpstreamTimeout, UpstreamUnreachable
from llm_proxy.gateway.http import headers
from llm_proxy.gateway.http.headers import is_event_stream
from llm_proxy.gateway.upstream.failures import (
    ConnectFailed,
    ConnectTimeout,
    HeaderTimeout,
    MalformedResponse,
    ReadTimeout,
    UpstreamFailure,
)
from llm_proxy.gateway.upstream.request import Dispatch
from llm_proxy.gateway.usage import NOTHING, meter_for

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Mapping

    from db.records import Outcome
    from llm_proxy.gateway.faults import Shape
    from llm_proxy.gateway.inbound import Inbound
    from llm_proxy.gateway.providers.provider import Provider
    from llm_proxy.gateway.upstream.pool import UpstreamPool, UpstreamResponse
    from llm_proxy.gateway.usage import UsageMeter

#: Steps of reading usage that may go before a piece is sent: all of a piece that is not compressed. Which event ends a
#: stream has to be known before the client has it, and leaves.
_STEPS_AHEAD: Final = 32
#: Bytes that are read behind the event that ends a stream, once the client has left.
_REST: Final = 64 * 1024
#: Seconds that the body may go on behind that event while the client stays. Most end at once; a few report something
#: late, or finish another of several answers. A provider that only keeps its connection alive must not hold a slot.
_REST_PATIENCE: Final = 60.0

#: Where providers put the id of a request: OpenAI and those like it, Anthropic, Azure's gateway, AWS. The first is what
#: the SDK shows.
_REQUEST_IDS: Final[Mapping[Shape, tuple[bytes, ...]]] = {
    "openai": (b"x-request-id", b"request-id", b"apim-request-id", b"x-amzn-requestid"),
    "anthropic": (b"request-id", b"x-request-id", b"apim-request-id", b"x-amzn-requestid"),
}
_REQUEST_ID: Final = re.compile(rb"[\x21-\x7e]{1,255}")


@define(eq=False)
class Exchange:
    """What is known of an exchange while it runs; `result` reads it when it is over.

    Attributes:
        admitted, asked: trio's clock when the request was admitted, and when it was handed to the upstream.
        dispatch: knows whether a byte of the request can have reached the provider.
        status: what the client was sent, None before that.
        finished: the client was sent all that it waits for: the whole response, or the event that ends a stream.
        whole: the whole response was received.
        outcome: how it ended, as far as is known.
        code: the error code of the answer, where the proxy itself had to answer.
        reason: what the provider did wrong, in words for the operator.
        provider_request_id: the id that the provider gave the request, which SDKs show.
    """

    inbound: Inbound
    send: Callable[[Any], Awaitable[None]]
    admitted: float = field(factory=trio.current_time)
    asked: float = 0.0
    dispatch: Dispatch = field(factory=Dispatch)
    status: int | None = None
    started: bool = False
    streamed: bool = False
    first_byte: float | None = None
    relayed: int = 0
    finished: bool = False
    whole: bool = False
    outcome: Outcome = "proxy_error"
    code: str = ""
    reason: str = ""
    provider_request_id: str | None = None
    meter: UsageMeter = NOTHING

    async def run(self, provider: Provider, upstream: UpstreamPool, api_key: str) -> None:
        """Forward the request and relay the response.

        Raises:
            ProxyError: the upstream failed before a response was started; afterwards the response is cut off instead,
                which the client can tell from its framing.
        """
        response: UpstreamResponse | None = None
        try:
            response = await self._ask(provider, upstream, api_key)
            await self._relay(response, provider.shape_for(self.inbound.route.path))
        except (ConnectTimeout, HeaderTimeout) as failure:
            self._fail(failure, "upstream_timeout")
        except ReadTimeout as failure:
            self._fail(failure, "client_closed" if failure.waiting_for == "body" else "upstream_timeout")
        except UpstreamFailure as failure:
            self._fail(failure, "upstream_error")
        except RequestTimeout:
            # Only the body raises it, when it comes too slowly.
            self.outcome = "client_closed"
            raise
        except UpstreamUnreachable:
            # The provider answered with something that must not be passed on.
            self.outcome = "upstream_error"
            raise
        except OSError:
            # Only `send` raises it: the client has gone, or reads too slowly to be waited for.
            self.outcome = "client_closed"
        except BaseException as error:
            # Who was cancelled in two tasks at once, as during an upload, sees a group and not `trio.Cancelled` itself.
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
        self.asked = trio.current_time()
        return await upstream.send(
            inbound.method.encode("ascii"),
            provider.target(inbound.route.path, inbound.query),
            headers.request_headers(inbound.headers, provider.credential(api_key), provider.judged_headers),
            body,
            dispatch=self.dispatch,
        )

    async def _relay(self, response: UpstreamResponse, shape: Shape) -> None:
        """Pass the response on as it arrives."""
        status = response.status
        overhead_ms = (self.asked - self.inbound.arrived) * 1000
        request_id = self.inbound.id.encode("ascii")
        head = headers.response_headers(response.headers, request_id, overhead_ms)
        self.meter = meter_for(status, response.headers, self.inbound.method)
        names = dict(head)
        self.provider_request_id = _provider_request_id(names, request_id, shape)
        self.streamed = is_event_stream(names.get(b"content-type", b""))
        send = self.send
        await send({"type": "http.response.start", "status": status, "headers": head})
        self.started = True
        self.status = status
        if not response.ready:
            # Servers hold the head back until there is a body to go with it; a slow one must not delay it.
            await send({"type": "http.response.body", "body": b"", "more_body": True})
        while not self.finished:
            await self._pass_on(response, await response.receive())
        if not self.whole:
            await self._relay_rest(response)

    async def _pass_on(self, response: UpstreamResponse, data: bytes) -> None:
        """Send a piece of the body to the client; an empty one ends it."""
        meter = self.meter
        work: Iterable[None] = ()
        if data:
            if self.first_byte is None:
                self.first_byte = trio.current_time()
            self.relayed += len(data)
            if work := meter.feed(data):
                work = iter(work)
                for _ in islice(work, _STEPS_AHEAD):
                    await trio.lowlevel.checkpoint()
        if not data or response.ended:
            # All of it is here, and the provider is free.
            self.whole = True
            response.close()
        last = self.whole or (self.streamed and (meter.ended or meter.failed))
        if last:
            # The client may leave as soon as it has this piece, and that is no failure.
            self.inbound.answered = True
        await self.send({"type": "http.response.body", "body": data, "more_body": not self.whole})
        if last:
            self.finished = True
            self.outcome = "ok"
        for _ in work:
            await trio.lowlevel.checkpoint()

    async def _relay_rest(self, response: UpstreamResponse) -> None:
        """Relay what comes behind the event that ends a stream, which is little or nothing.

        A client that leaves now misses nothing. If the body ends in a moment, the connection can be used again. A body
        that does not end is cut off after a while, and not ended as if it were whole: there may be more in it.
        """
        inbound = self.inbound
        enough = self.relayed + _REST
        with trio.move_on_after(_REST_PATIENCE) as inbound.rest:
            if inbound.left:
                inbound.leave()
            while not self.whole and not (inbound.left and self.relayed > enough):
                data = await response.receive()
                try:
                    await self._pass_on(response, data)
                except OSError:
                    if not inbound.left:
                        inbound.leave()

    def _fail(self, failure: UpstreamFailure, outcome: Outcome) -> None:
        if self.finished:
            return
        error = _in_words(failure)
        self.outcome = outcome
        self.code = error.code
        self.reason = str(failure)
        if not self.started:
            raise error

    def refused_with(self, error: ProxyError) -> None:
        """Note what the client is about to be answered instead of a response of the provider."""
        self.status = error.status
        self.code = error.code

    def result(self) -> Result:
        """The final row's figures."""
        usage = self.meter.result(whole=self.whole)
        return Result(
            outcome=self._judged() if self.dispatch.sent else "void",
            status=self.status,
            model=usage.model,
            streamed=self.streamed,
            first_byte_us=None if self.first_byte is None else round((self.first_byte - self.admitted) * 1e6),
            duration_us=round((trio.current_time() - self.admitted) * 1e6),
            request_bytes=self.inbound.received,
            response_bytes=self.relayed,
            input_tokens=usage.input_tokens,
            output_tokens=usage.output_tokens,
            cached_tokens=usage.cached_tokens,
            unmetered=self.meter.unmetered,
            provider_request_id=self.provider_request_id,
        )

    def _judged(self) -> Outcome:
        """The outcome, with a look at what the provider itself said."""
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


def _provider_request_id(names: Mapping[bytes, bytes], request_id: bytes, shape: Shape) -> str | None:
    """The id that the provider gave the request, by the client's response headers; `request_id` is the proxy's own."""
    for name in _REQUEST_IDS[shape]:
        value = names.get(name)
        if value is not None and value != request_id and _REQUEST_ID.fullmatch(value):
            return value.decode("ascii")
    return None


def _in_words(failure: UpstreamFailure) -> ProxyError:
    """What the client is told; the operator finds more in the log."""
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
            return UpstreamUnreachable("The provider's answer is not valid HTTP, and was not passed on.")
        case _:
            return UpstreamUnreachable("The provider broke off before it had answered.")
