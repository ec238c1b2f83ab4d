"""An HTTP/1.1 connection: requests from a stream to an ASGI application, and its responses back."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any, TypeAlias
from urllib.parse import unquote

import trio

from llm_proxy.net.disconnect import EXTENSION
from llm_proxy.net.timeouts import TimeoutWheel
from llm_proxy.server.asgi import VERSIONS
from llm_proxy.server.exchange import ClientGone, Exchange, report_each
from llm_proxy.server.listener import address_of
from llm_proxy.server.refusal import PriorKnowledge, Refusal
from llm_proxy.server.request import Head, RequestReader
from llm_proxy.server.response import ResponseWriter
from llm_proxy.server.traffic import Site
from llm_proxy.server.transport import RECEIVE_SIZE, SocketTransport

ByteStream: TypeAlias = SocketTransport | trio.SSLStream[SocketTransport]


class Http1Connection:
    """Serves the requests of one connection, one after another, in the task that runs it.

    The application runs in that same task. Nothing is read from the client but here between two requests, and by
    `receive` within one; nothing is written but by `send`, and here for a request that never reached the application.
    One cancel scope covers the whole connection. It is cancelled when the next head is overdue, and when the client
    leaves while an application runs that wants to be cancelled then.

    Attributes:
        site, transport, stream: as given.
        reader: the parser of this connection.
        idle_since: see `traffic.Connection`.
    """

    def __init__(self, site: Site, transport: SocketTransport, stream: ByteStream) -> None:
        """Serve on `stream`, which is `transport` itself or TLS on it."""
        self.site = site
        self.transport = transport
        self.stream = stream
        self.reader = RequestReader(site.config.max_header_size)
        self.idle_since: float | None = trio.current_time()
        self._scope = trio.CancelScope()
        self._overdue = False
        self._exchange: Exchange | None = None
        self._ending = False
        self._scope_of_all: dict[str, Any] = {
            "type": "http",
            "asgi": VERSIONS,
            "scheme": "http" if stream is transport else "https",
            "root_path": "",
            "client": address_of(transport.socket, peer=True),
            "server": address_of(transport.socket),
        }
        self._left = False
        self._half_closed = False
        self._on_hang_up: Callable[[], bool | None] | None = None
        self._descriptor = transport.socket.fileno()
        if site.disconnects is not None:
            self._scope_of_all["extensions"] = {
                EXTENSION: {"on_disconnect": self._notify, "body_arrived": self._body_arrived}
            }

    @property
    def busy(self) -> bool:
        """Whether a request is running, or something of one has arrived."""
        return not self._ending and (self.idle_since is None or self.transport.readable)

    def close_if_idle(self) -> None:
        """Close the connection at once, unless a request is running or something of one has arrived."""
        if self.idle_since is not None and not self.transport.readable:
            self.transport.close()

    def drain(self) -> None:
        """Close the connection behind the running request, whose response head will say so if it is not sent yet.

        One that has had no request is left alone: nobody opens one without meaning to send the first.
        """
        if self._exchange is not None:
            self.close_if_idle()

    def cut(self) -> None:
        """End the connection at once, so that the client cannot take half a response for a whole."""
        if self._exchange is not None:
            self._exchange.tear()  # nothing to be done when it is complete
        self.transport.close()

    async def run(self) -> None:
        """Serve until either side ends the connection; leaves it closed."""
        disconnects = self.site.disconnects
        if disconnects is not None:
            disconnects.add(self._descriptor, self._hang_up)
        try:
            with self._scope:
                while (head := await self._next_head()) is not None and await self._respond(head):
                    self.reader.next_request()
            self._end()
            if self._scope.cancelled_caught and self._exchange is not None:
                self._exchange.tear()  # nothing to be done when it is complete
            if self._overdue and self.reader.pending:
                await self.answer(Refusal(408, "The head of the request did not arrive in time."))
            unread = self.reader.pending or (self.reader.head is not None and not self.reader.complete)
            if unread or self.transport.readable:
                await self.transport.linger()
            elif not self.transport.closed:
                await self.stream.aclose()
        except Refusal as refusal:
            self._end()
            await self.answer(refusal)
            await self.transport.linger()
        except PriorKnowledge:
            self._end()
            await self.transport.linger()
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass
        finally:
            if disconnects is not None:
                disconnects.remove(self._descriptor, self._hang_up)
            self.cut()
            # What refers back to the connection would keep it in memory until the garbage collector comes round.
            self._scope_of_all.clear()
            self._exchange = None
            self.reader.close()

    def _notify(self, listener: Callable[[], bool | None]) -> None:
        """Tell the application that runs when the client leaves."""
        self._on_hang_up = listener
        self.check_client()

    def _body_arrived(self) -> bool:
        """Whether the application would get a piece of the body, or its end, without waiting."""
        return self.reader.has_body or self.reader.complete

    def _hang_up(self, gone: bool) -> None:  # noqa: FBT001 - as `DisconnectWatcher` tells it
        self._half_closed = True
        self._left = self._left or gone
        if self._on_hang_up is not None or (self._exchange is not None and self._exchange.parked):
            self.check_client()

    def check_client(self) -> None:
        """Act on what is known of the client of the running request: it is gone, or has ended its side.

        A client that has ended its side may wait for its answer (RFC 9112 section 9.6), unless the end of its request
        is missing. Under TLS it would say so within TLS (RFC 8446 section 6.1): the end of TCP is the end of both.
        """
        exchange = self._exchange
        if exchange is None or not self._half_closed:
            return
        if not self._left and self.stream is self.transport and not self._is_cut_off():
            exchange.probe()
            return
        self._left = True
        exchange.leave()
        if self._on_hang_up is not None and self._on_hang_up():
            self._scope.cancel()

    def _is_cut_off(self) -> bool:
        """Whether the body of the request cannot become complete with what the kernel still holds of it."""
        reader = self.reader
        return not reader.complete and self.transport.unread < (reader.remaining or 1)

    def expire(self, watch: TimeoutWheel) -> None:
        """The next head did not come in time."""
        self._overdue = True
        self._scope.cancel()

    def _end(self) -> None:
        self._ending = True
        self.idle_since = None
        self.site.traffic.notify()

    async def answer(self, refusal: Refusal) -> None:
        """Answer for the application; nothing can follow on the connection. A client that is gone is no error."""
        head = self.reader.head
        writer = ResponseWriter(method="GET" if head is None else head.method, version="1.1", keep_alive=False)
        with contextlib.suppress(trio.BrokenResourceError, trio.ClosedResourceError):
            answer = writer.start(refusal.status, refusal.headers) + writer.body(refusal.body, more=False)
            await self.stream.send_all(answer)

    async def _next_head(self) -> Head | None:
        """Wait for the head of a request; None when the client has ended the connection instead."""
        reader, site = self.reader, self.site
        head = reader.head
        if head is not None:
            await trio.lowlevel.checkpoint()
            return head
        watch = site.head_watch if reader.pending else site.idle_watch
        due = watch.start(self)
        if watch is site.idle_watch:
            self.idle_since = due - watch.seconds
            if site.traffic.draining and self._exchange is not None:
                self.close_if_idle()
                site.traffic.notify()
        try:
            while True:
                data = await self.stream.receive_some(RECEIVE_SIZE)
                if not data:
                    return None
                reader.feed(bytes(data))
                head = reader.head
                if head is not None:
                    self.idle_since = None
                    return head
                if reader.pending and watch is site.idle_watch:
                    watch.stop(self)
                    watch = site.head_watch
                    watch.start(self)
                    self.idle_since = None
        finally:
            watch.stop(self)

    async def _respond(self, head: Head) -> bool:
        """Let the application answer the request; True when another one may follow."""
        target, _, query = head.target.partition(b"?")
        path = target.decode("ascii")
        scope = {
            **self._scope_of_all,
            "http_version": head.version,
            "method": head.method,
            "path": unquote(path) if "%" in path else path,
            "raw_path": target,
            "query_string": query,
            "headers": head.headers,
            "state": self.site.state.copy(),
        }
        exchange = self._exchange = Exchange(self, head)
        try:
            await self.site.app(scope, exchange.receive, exchange.send)
        except* ClientGone:
            pass
        except* Exception as errors:  # noqa: BLE001 - what an application raises ends its own request alone
            report_each(errors, self.site.config.report)
        finally:
            self._on_hang_up = None
            exchange.parked = False
        return await exchange.finish()
