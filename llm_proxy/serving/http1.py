"""An HTTP/1.1 connection: requests from a stream to an ASGI application, and its responses back."""

from __future__ import annotations

import contextlib
import math
from typing import Any
from urllib.parse import unquote

import trio

from llm_proxy.serving.asgi import VERSIONS, Address, Application
from llm_proxy.serving.config import ServeConfig
from llm_proxy.serving.exchange import ClientGone, Exchange
from llm_proxy.serving.refusal import PriorKnowledge, Refusal
from llm_proxy.serving.request import RequestReader
from llm_proxy.serving.response import ResponseWriter
from llm_proxy.serving.traffic import Traffic
from llm_proxy.serving.transport import RECEIVE_SIZE, SocketTransport


class Http1Connection:
    """Serves the requests of one connection, one after another, in the task that runs it.

    The application runs in that same task. Nothing is read from the client but by this class between two requests, and
    by `receive` within one; nothing is written but by `send`, or here for a request that never reached the application.
    """

    def __init__(
        self,
        app: Application,
        config: ServeConfig,
        traffic: Traffic,
        transport: SocketTransport,
        stream: SocketTransport | trio.SSLStream[SocketTransport],
        *,
        client: Address | None,
        server: Address | None,
        state: dict[str, Any],
    ) -> None:
        """Serve `app` on `stream`, which is `transport` itself or TLS on it; `state` is what the lifespan left."""
        self.app = app
        self.config = config
        self.traffic = traffic
        self.transport = transport
        self.stream = stream
        self.reader = RequestReader(config.max_header_size)
        self.idle_since: float | None = None
        self._client = client
        self._server = server
        self._scheme = "http" if stream is transport else "https"
        self._state = state
        self.deadline = trio.CancelScope()

    def close_if_idle(self) -> None:
        """Close the connection at once unless a request is running or has begun to arrive on it."""
        if self.idle_since is not None and not self.transport.readable:
            self.transport.close()

    def abort(self) -> None:
        """Reset the connection at once, whoever is reading or writing."""
        self.transport.abort()

    async def run(self) -> None:
        """Serve until either side ends the connection. Leaves it closed."""
        try:
            with self.deadline:
                while await self._next_head() and await self._respond():
                    self.reader.next_request()
            if self.deadline.cancelled_caught and self.reader.pending:
                raise Refusal(408, "The head of the request did not arrive in time.")
            await self._close()
        except Refusal as refusal:
            await self.answer(refusal)
            await self.transport.linger()
        except PriorKnowledge:
            await self.transport.linger()
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass
        finally:
            self.transport.close()

    async def answer(self, refusal: Refusal) -> None:
        """Answer for the application; nothing can follow on the connection. A client that is gone is no error."""
        body = refusal.body
        head = self.reader.head
        writer = ResponseWriter(method="GET" if head is None else head.method, version="1.1", keep_alive=False)
        fields = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
        with contextlib.suppress(trio.BrokenResourceError, trio.ClosedResourceError):
            await self.stream.send_all(writer.start(refusal.status, fields) + writer.body(body, more=False))

    async def _close(self) -> None:
        if self.reader.pending or (self.reader.head is not None and not self.reader.complete):
            await self.transport.linger()
        elif not self.transport.closed:
            await self.stream.aclose()

    async def _next_head(self) -> bool:
        """Wait for the head of a request; False when the client has ended the connection instead."""
        reader, config, deadline = self.reader, self.config, self.deadline
        if reader.head is not None:
            await trio.lowlevel.checkpoint()
            return True
        now = trio.current_time()
        if reader.pending:
            deadline.deadline = now + config.header_timeout
        else:
            deadline.deadline = now + config.keep_alive_timeout
            self.idle_since = now
            if self.traffic.draining:
                self.close_if_idle()
        while reader.head is None:
            data = await self.stream.receive_some(RECEIVE_SIZE)
            if not data:
                return False
            reader.feed(bytes(data))
            if self.idle_since is not None and reader.pending:
                deadline.deadline = trio.current_time() + config.header_timeout
                self.idle_since = None
        self.idle_since = None
        deadline.deadline = math.inf
        return True

    async def _respond(self) -> bool:
        """Let the application answer the request; True when another one may follow."""
        head = self.reader.head
        assert head is not None
        target, _, query = head.target.partition(b"?")
        path = target.decode("ascii")
        scope = {
            "type": "http",
            "asgi": VERSIONS,
            "http_version": head.version,
            "method": head.method,
            "scheme": self._scheme,
            "path": unquote(path) if "%" in path else path,
            "raw_path": target,
            "query_string": query,
            "root_path": "",
            "headers": head.headers,
            "client": self._client,
            "server": self._server,
            "state": self._state.copy(),
        }
        exchange = Exchange(self, head)
        self.traffic.begin_request()
        try:
            await self.app(scope, exchange.receive, exchange.send)
        except Exception as error:
            if _is_news(error):
                self.config.report(error)
        except BaseException:
            exchange.tear()
            raise
        finally:
            self.traffic.end_request()
        return await exchange.finish()


def _is_news(error: Exception) -> bool:
    """Tell a fault of the application from its noticing that the client has left."""
    if isinstance(error, ExceptionGroup):
        return error.split(ClientGone)[1] is not None
    return not isinstance(error, ClientGone)
