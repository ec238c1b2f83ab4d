"""An HTTP/1.1 connection: requests from a stream to an ASGI application, and its responses back."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any, TypeAlias
from urllib.parse import unquote

import trio

from llm_proxy.net.disconnect import EXTENSION, ClientDisconnected
from llm_proxy.net.timeouts import TimeoutWheel
from llm_proxy.server.asgi import VERSIONS, report_each
from llm_proxy.server.context import ServerContext
from llm_proxy.server.http1.cycle import RequestCycle
from llm_proxy.server.http1.request import Head, PriorKnowledge, RequestError, RequestReader
from llm_proxy.server.http1.response import ResponseWriter
from llm_proxy.server.listener import address_of
from llm_proxy.server.transport import RECEIVE_SIZE, SocketTransport

ByteStream: TypeAlias = SocketTransport | trio.SSLStream[SocketTransport]


class Http1Connection:
    """Serves the requests of one connection, one after another, in one task.

    The application runs in the same task. Only this class, between two requests, and `receive`, within one, read from
    the client. Only `send` writes, and this class for a request that does not reach the application. One cancel scope
    covers the whole connection. It is cancelled when the next head does not arrive in time, and when the client
    disconnects while an application runs that asked to be cancelled then.
    """

    def __init__(self, context: ServerContext, transport: SocketTransport, stream: ByteStream) -> None:
        self.context = context
        self.transport = transport
        self.stream = stream
        self.reader = RequestReader(context.config.max_header_size)
        self.idle_since: float | None = trio.current_time()
        self._scope = trio.CancelScope()
        self._timed_out = False
        self._cycle: RequestCycle | None = None
        self._ending = False
        self._base_scope: dict[str, Any] = {
            "type": "http",
            "asgi": VERSIONS,
            "scheme": "http" if stream is transport else "https",
            "root_path": "",
            "client": address_of(transport.socket, peer=True),
            "server": address_of(transport.socket),
        }
        self._disconnected = False
        self._half_closed = False
        self._on_disconnect: Callable[[], bool | None] | None = None
        if context.sees_disconnects:
            callbacks = {"on_disconnect": self._set_on_disconnect, "body_arrived": self._body_arrived}
            self._base_scope["extensions"] = {EXTENSION: callbacks}

    @property
    def busy(self) -> bool:
        return not self._ending and (self.idle_since is None or self.transport.readable)

    def close_if_idle(self) -> None:
        if self.idle_since is not None and not self.transport.readable:
            self.transport.close()

    def drain(self) -> None:
        """Close the connection after the running request. If its head is not sent yet, it says so.

        A connection without a first request stays open: a client opens one only to send a request.
        """
        if self._cycle is not None:
            self.close_if_idle()

    def cut(self) -> None:
        if self._cycle is not None:
            self._cycle.abort()
        self.transport.close()

    async def run(self) -> None:
        """Serve until either side ends the connection; it is closed afterwards."""
        if self.context.sees_disconnects:
            self.transport.watch.on_closed(self._peer_closed)
        try:
            with self._scope:
                while (head := await self._next_head()) is not None and await self._respond(head):
                    self.reader.next_request()
            self._end()
            if self._scope.cancelled_caught and self._cycle is not None:
                self._cycle.abort()
            if self._timed_out and self.reader.pending:
                await self.send_error(RequestError(408, "The head of the request did not arrive in time."))
            unread = self.reader.pending or (self.reader.head is not None and not self.reader.complete)
            if unread or self.transport.readable:
                await self.transport.linger()
            elif not self.transport.closed:
                await self.stream.aclose()
        except (RequestError, PriorKnowledge) as error:
            self._end()
            if isinstance(error, RequestError):
                await self.send_error(error)
            await self.transport.linger()
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass
        finally:
            self.transport.watch.on_closed(None)
            self.cut()
            # References back to the connection would keep it in memory until the next garbage collection.
            self._base_scope.clear()
            self._cycle = None
            self.reader.close()

    def _set_on_disconnect(self, callback: Callable[[], bool | None]) -> None:
        self._on_disconnect = callback
        self.check_client()

    def _body_arrived(self) -> bool:
        return self.reader.has_body or self.reader.complete

    def _peer_closed(self, lost: bool) -> None:  # noqa: FBT001 - the signature of `Watch.on_closed`
        self._half_closed = True
        self._disconnected = self._disconnected or lost
        if self._on_disconnect is not None or (self._cycle is not None and self._cycle.parked):
            self.check_client()

    def check_client(self) -> None:
        """React if the client of the running request has disconnected, or has closed its side.

        A client that has closed its side may wait for its response (RFC 9112 section 9.6), unless the end of its
        request is missing. With TLS it would close its side within TLS (RFC 8446 section 6.1): the end of TCP is the
        end of both.
        """
        cycle = self._cycle
        if cycle is None or not self._half_closed:
            return
        reader = self.reader
        # The bytes in the kernel are too few to complete the body of the request.
        cut_off = not reader.complete and self.transport.unread < (reader.remaining or 1)
        if not self._disconnected and self.stream is self.transport and not cut_off:
            cycle.probe_client()
            return
        self._disconnected = True
        cycle.disconnect()
        if self._on_disconnect is not None and self._on_disconnect():
            self._scope.cancel()

    def expire(self, wheel: TimeoutWheel) -> None:
        self._timed_out = True
        self._scope.cancel()

    def _end(self) -> None:
        self._ending = True
        self.idle_since = None
        self.context.connections.notify()

    async def send_error(self, error: RequestError) -> None:
        """Answer instead of the application, and close the connection. A disconnected client is not an error."""
        head = self.reader.head
        writer = ResponseWriter(method="GET" if head is None else head.method, version="1.1", keep_alive=False)
        headers, body = self.context.config.error_response(error.status, error.message)
        with contextlib.suppress(trio.BrokenResourceError, trio.ClosedResourceError):
            await self.stream.send_all(writer.start(error.status, headers) + writer.body(body, more=False))

    async def _next_head(self) -> Head | None:
        """Wait for the head of a request; None if the client has ended the connection instead."""
        reader, context = self.reader, self.context
        head = reader.head
        if head is not None:
            await trio.lowlevel.checkpoint()
            return head
        wheel = context.header_wheel if reader.pending else context.keep_alive_wheel
        expiry = wheel.start(self)
        if wheel is context.keep_alive_wheel:
            self.idle_since = expiry - wheel.seconds
            if context.connections.draining and self._cycle is not None:
                self.close_if_idle()
                context.connections.notify()
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
                if reader.pending and wheel is context.keep_alive_wheel:
                    wheel.stop(self)
                    wheel = context.header_wheel
                    wheel.start(self)
                    self.idle_since = None
        finally:
            wheel.stop(self)

    async def _respond(self, head: Head) -> bool:
        """Run the application for the request; True if another one may follow."""
        target, _, query = head.target.partition(b"?")
        path = target.decode("ascii")
        scope = {
            **self._base_scope,
            "http_version": head.version,
            "method": head.method,
            "path": unquote(path) if "%" in path else path,
            "raw_path": target,
            "query_string": query,
            "headers": head.headers,
            "state": self.context.state.copy(),
        }
        cycle = self._cycle = RequestCycle(self, head, head.expects_continue and not self.reader.has_body)
        try:
            await self.context.app(scope, cycle.receive, cycle.send)
        except* ClientDisconnected:
            pass
        except* Exception as errors:  # noqa: BLE001 - an exception of the application ends only its own request
            report_each(errors, self.context.config.report)
        finally:
            self._on_disconnect = None
            cycle.parked = False
        return await cycle.finish()
