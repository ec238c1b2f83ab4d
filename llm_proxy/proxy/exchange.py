"""One admitted request on its way: to the provider, back to the client, into the books."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import trio
from attrs import define, field

from llm_proxy.errors import ProxyError, RequestTimeout, UpstreamTimeout, UpstreamUnreachable
from llm_proxy.ledger import Result
from llm_proxy.proxy import headers
from llm_proxy.proxy.headers import is_event_stream
from llm_proxy.proxy.upstream.failures import (
    ConnectFailed,
    ConnectTimeout,
    HeaderTimeout,
    IdleTimeout,
    MalformedResponse,
    UpstreamFailure,
)
from llm_proxy.proxy.upstream.interface import Dispatch
from llm_proxy.proxy.usage import meter_for

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from db.records import Outcome
    from llm_proxy.proxy.inbound import Inbound
    from llm_proxy.proxy.providers import Provider
    from llm_proxy.proxy.upstream.interface import Upstream, UpstreamResponse
    from llm_proxy.proxy.usage import UsageMeter


@define(eq=False)
class Exchange:
    """What is known of an exchange while it runs; `result` reads it when it is over.

    Attributes:
        admitted, asked: trio's clock when the request was admitted, and when it was handed to the upstream.
        dispatch: knows whether a byte of the request can have reached the provider.
        status: what the client was sent, None before that.
        outcome: how it ended, as far as is known.
        code: the error code of the answer, where the proxy itself had to answer.
        reason: what the provider did wrong, in words for the operator.
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
    outcome: Outcome = "proxy_error"
    code: str = ""
    reason: str = ""
    meter: UsageMeter | None = None

    async def run(self, provider: Provider, upstream: Upstream, api_key: str) -> None:
        """Forward the request and relay the response.

        Raises:
            ProxyError: the upstream failed before a response was started; afterwards the response is cut off instead,
                which the client can tell from its framing.
        """
        response: UpstreamResponse | None = None
        try:
            response = await self._ask(provider, upstream, api_key)
            await self._relay(response)
        except (ConnectTimeout, HeaderTimeout) as failure:
            self._fail(failure, "upstream_timeout")
        except IdleTimeout as failure:
            self._fail(failure, "client_closed" if failure.waiting_for == "body" else "upstream_timeout")
        except UpstreamFailure as failure:
            self._fail(failure, "upstream_error")
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
            self.outcome = "client_closed" if was_cancelled and self.inbound.gone else "proxy_error"
            raise
        finally:
            if response is not None:
                response.close()

    async def _ask(self, provider: Provider, upstream: Upstream, api_key: str) -> UpstreamResponse:
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

    async def _relay(self, response: UpstreamResponse) -> None:
        """Pass the response on as it arrives."""
        status = response.status
        overhead_ms = (self.asked - self.inbound.arrived) * 1000
        head = headers.response_headers(response.headers, self.inbound.id.encode("ascii"), overhead_ms)
        self.meter = meter_for(status, response.headers, self.inbound.method)
        self.streamed = is_event_stream(dict(head).get(b"content-type", b""))
        send = self.send
        await send({"type": "http.response.start", "status": status, "headers": head})
        self.started = True
        self.status = status
        if not response.ready:
            # Servers hold the head back until there is a body to go with it; a slow one must not delay it.
            await send({"type": "http.response.body", "body": b"", "more_body": True})
        more = True
        while more:
            data = await response.receive()
            if data:
                if self.first_byte is None:
                    self.first_byte = trio.current_time()
                for _ in self.meter.feed(data):
                    await trio.lowlevel.checkpoint()
                self.relayed += len(data)
            if response.ended or not data:
                # All of it is here: the client may leave as soon as it has the last piece, and that is no failure.
                more = False
                self.outcome = "ok"
                self.inbound.answered = True
                response.close()
            await send({"type": "http.response.body", "body": data, "more_body": more})

    def _fail(self, failure: UpstreamFailure, outcome: Outcome) -> None:
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
        usage = None if self.meter is None else self.meter.result()
        return Result(
            outcome=self.outcome if self.dispatch.sent else "void",
            status=self.status,
            model="" if usage is None else usage.model,
            streamed=self.streamed,
            first_byte_us=None if self.first_byte is None else round((self.first_byte - self.admitted) * 1e6),
            duration_us=round((trio.current_time() - self.admitted) * 1e6),
            request_bytes=self.inbound.received,
            response_bytes=self.relayed,
            input_tokens=None if usage is None else usage.input_tokens,
            output_tokens=None if usage is None else usage.output_tokens,
            cached_tokens=None if usage is None else usage.cached_tokens,
        )


def _in_words(failure: UpstreamFailure) -> ProxyError:
    """What the client is told; the operator finds more in the log."""
    match failure:
        case ConnectTimeout():
            return UpstreamTimeout("The provider could not be reached in time. Nothing was sent to it.")
        case IdleTimeout(waiting_for="body"):
            return RequestTimeout()
        case HeaderTimeout() | IdleTimeout():
            return UpstreamTimeout()
        case ConnectFailed():
            return UpstreamUnreachable("The provider could not be reached. Nothing was sent to it.")
        case MalformedResponse():
            return UpstreamUnreachable("The provider's answer is not valid HTTP, and was not passed on.")
        case _:
            return UpstreamUnreachable("The provider broke off before it had answered.")
