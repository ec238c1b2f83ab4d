"""Serving: sockets, lifespan, connections, and a shutdown without broken responses."""

from __future__ import annotations

import contextlib
import socket
import ssl
from collections.abc import Callable

import attrs
import trio

from llm_proxy.net import poller
from llm_proxy.server.asgi import Address, ASGIApp, Lifespan, report_each
from llm_proxy.server.context import ServerConfig, ServerContext
from llm_proxy.server.http1.connection import Http1Connection
from llm_proxy.server.http2.connection import Http2Connection
from llm_proxy.server.listener import accept_forever, address_of, bind
from llm_proxy.server.tls import Handshake, server_context
from llm_proxy.server.transport import SocketTransport

#: Seconds for which idle connections stay open if other processes continue with the sockets.
HAND_OVER = 1.0
#: Seconds after each accepted connection in which other processes with the same sockets can accept. It does not delay
#: a process that has other work, and one without work can wait.
TURN = 0.0003


async def serve(
    app: ASGIApp,
    config: ServerConfig,
    *,
    stop: trio.Event,
    on_drain: Callable[[], None] | None = None,
    others_accept: Callable[[], bool] = lambda: False,
    task_status: trio.TaskStatus[list[Address]] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve `app` until `stop` is set, then drain and return.

    The sockets are bound, the application is started, and only then are connections accepted. Shutdown has these steps:

    1. `on_drain` is called. Connections that are idle after a request are closed; from now on each response closes its
       connection.
    2. New connections are still accepted, and all requests are served, while any request is running that began before
       `stop`, so that a load balancer can read from the application that it is not ready.
    3. The listeners are closed, and the running requests are waited for.
    4. When no request is running, or `shutdown_grace` seconds after `stop`, the rest is cancelled and closed.
    5. The application is shut down.

    If other processes continue with the same sockets, load balancers need no notice: `on_drain` is not called, the
    listeners are closed first, and the connections that were accepted until then are served; for one second,
    connections are closed only after a response.

    `stop` is set here if the lifespan raises. `others_accept` is called as soon as `stop` is set: whether other
    processes accept connections on these sockets from now on. `task_status` gets the addresses of the listeners when
    connections are accepted.

    Raises:
        llm_proxy.server.asgi.LifespanFailed: the application could not start, or its lifespan raised.
        OSError: an address cannot be bound.
        llm_proxy.server.tls.BadCertificate: the certificate or its key cannot be used.
    """
    tls = server_context(config.tls_cert, config.tls_key) if config.tls_cert and config.tls_key else None
    lifespan = Lifespan(app, stop, config.report, config.lifespan_timeout)
    context = ServerContext(app, config, lifespan.state, sees_disconnects=poller.AVAILABLE)
    server = _Server(context, tls, on_drain, others_accept)
    with contextlib.ExitStack() as stack:
        sockets = config.sockets or bind(config.host, config.port)
        for sock in sockets:
            stack.callback(sock.close)
            sock.settimeout(0)
            sock.listen(config.backlog)
        await lifespan.around(lambda: server.run(sockets, stop, task_status))


@attrs.frozen
class _Server:
    _context: ServerContext
    _tls: ssl.SSLContext | None
    _on_drain: Callable[[], None] | None
    _others_accept: Callable[[], bool]

    async def run(
        self, sockets: tuple[socket.socket, ...], stop: trio.Event, task_status: trio.TaskStatus[list[Address]]
    ) -> None:
        async with trio.open_nursery() as nursery:
            with trio.CancelScope() as listening:
                async with trio.open_nursery() as listeners:
                    for sock in sockets:
                        listeners.start_soon(self._listen, sock, nursery)
                    task_status.started([address for sock in sockets if (address := address_of(sock))])
                    await stop.wait()
                    nursery.start_soon(self._drain, nursery, listening)
            for sock in sockets:
                sock.close()

    async def _listen(self, listener: socket.socket, nursery: trio.Nursery) -> None:
        connections, limit = self._context.connections, self._context.config.max_connections
        await accept_forever(
            listener,
            handle=lambda sock: nursery.start_soon(self._serve, sock),
            has_room=lambda: len(connections.open) < limit,
            make_room=connections.make_room,
            turn=TURN if self._context.config.shared else 0.0,
        )

    async def _drain(self, nursery: trio.Nursery, listening: trio.CancelScope) -> None:
        connections = self._context.connections
        hands_over = self._others_accept()
        if hands_over:
            listening.cancel()
        elif self._on_drain is not None:
            self._on_drain()
        connections.draining = True
        with trio.move_on_after(self._context.config.shutdown_grace):
            if hands_over:
                # Requests may be on their way on new connections, or on those that had a response just now.
                await trio.sleep(HAND_OVER)
            before = tuple(connections.open)
            for connection in before:
                connection.drain()
            await connections.wait_idle(before)
            listening.cancel()
            for connection in tuple(connections.open):
                connection.close_if_idle()
            await connections.wait_idle(connections.open)
        listening.cancel()
        nursery.cancel_scope.cancel()
        for connection in tuple(connections.open):
            connection.cut()

    async def _serve(self, sock: socket.socket) -> None:
        context = self._context
        try:
            with contextlib.closing(SocketTransport(sock, context.config.write_timeout)) as transport:
                connection: Http1Connection | Http2Connection
                if self._tls is None:
                    connection = Http1Connection(context, transport, transport)
                else:
                    handshake = Handshake(transport, self._tls, context.config.header_timeout)
                    stream = await handshake.establish(context.connections)
                    if stream is None:
                        return
                    kind = Http2Connection if stream.selected_alpn_protocol() == "h2" else Http1Connection
                    connection = kind(context, transport, stream)
                with context.connections.track(connection):
                    await connection.run()
        except* Exception as errors:  # noqa: BLE001 - an exception of one connection does not end the server
            report_each(errors, context.config.report)
        finally:
            sock.close()
