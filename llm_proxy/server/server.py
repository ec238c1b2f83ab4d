"""One serving process: sockets, lifespan, connections, and an end without broken answers."""

from __future__ import annotations

import contextlib
import socket
import ssl
from collections.abc import Callable

import trio

from llm_proxy.net.disconnect import DisconnectWatcher
from llm_proxy.server.asgi import Address, Application
from llm_proxy.server.config import ServeConfig
from llm_proxy.server.exchange import report_each
from llm_proxy.server.http1 import Http1Connection
from llm_proxy.server.http2 import Http2Connection
from llm_proxy.server.lifespan import Lifespan, LifespanFailed
from llm_proxy.server.listener import accept_forever, address_of, bind
from llm_proxy.server.tls import Handshake, server_context
from llm_proxy.server.traffic import Site
from llm_proxy.server.transport import SocketTransport

__all__ = ["LifespanFailed", "ServeConfig", "serve"]

#: Seconds for which idle connections are kept where others go on with the sockets.
HAND_OVER = 1.0
#: Seconds for which a process leaves further connections to those that it shares its sockets with. A process that has
#: anything else to do is not held up by it, and one that has not can wait.
TURN = 0.0003


async def serve(
    app: Application,
    config: ServeConfig,
    *,
    stop: trio.Event,
    on_drain: Callable[[], None] | None = None,
    others_accept: Callable[[], bool] = lambda: False,
    task_status: trio.TaskStatus[list[Address]] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve `app` until `stop` is set, then drain and return.

    The sockets are bound, the application is started, and only then are connections accepted. The end has these steps:

    1. `on_drain` is called. Connections that are idle behind a request are closed; from now on every response closes
       its connection.
    2. New connections are still accepted, and all requests are served, while any request is running that had begun
       before `stop`, so that a load balancer can see the application say that it is not ready.
    3. The listeners are closed, and what is still running is waited for.
    4. When nothing is running, or `shutdown_grace` seconds after `stop`, what is left is cancelled and cut.
    5. The application is shut down.

    Where other processes go on with the same sockets, there is nothing to tell a load balancer, and nobody to turn
    away: `on_drain` is not called, the listeners are closed first, and what was accepted until then is served; for a
    second, no connection is closed but behind a response.

    Args:
        app: an ASGI 3 application.
        config: addresses, limits and deadlines.
        stop: asks for the end.
        on_drain: is called as soon as `stop` is set.
        others_accept: asked then, whether others accept connections on these sockets from now on.
        task_status: for `nursery.start`; gets the addresses that are listened on, when connections are accepted.

    Raises:
        LifespanFailed: the application could not start, or broke down.
        OSError: an address cannot be bound.
        llm_proxy.server.tls.BadCertificate: the certificate or its key cannot be used.
    """
    tls = server_context(config.tls_cert, config.tls_key) if config.tls_cert and config.tls_key else None
    lifespan = Lifespan(app, config.report, config.lifespan_timeout)
    disconnects = DisconnectWatcher() if DisconnectWatcher.available() else None
    server = _Server(Site(app, config, lifespan.state, disconnects=disconnects), tls, on_drain, others_accept)
    with contextlib.ExitStack() as stack:
        if disconnects is not None:
            stack.callback(disconnects.close)
        sockets = config.sockets or bind(config.host, config.port)
        for sock in sockets:
            stack.callback(sock.close)
            sock.settimeout(0)
            sock.listen(config.backlog)

        async def serving() -> None:
            await server.run(sockets, stop, lifespan.broken, task_status)

        await lifespan.around(serving)


class _Server:
    def __init__(
        self,
        site: Site,
        tls: ssl.SSLContext | None,
        on_drain: Callable[[], None] | None,
        others_accept: Callable[[], bool],
    ) -> None:
        self._site = site
        self._tls = tls
        self._on_drain = on_drain
        self._others_accept = others_accept

    async def run(
        self,
        sockets: tuple[socket.socket, ...],
        stop: trio.Event,
        broken: trio.Event,
        task_status: trio.TaskStatus[list[Address]],
    ) -> None:
        ending = trio.Event()
        async with trio.open_nursery() as nursery:
            if self._site.disconnects is not None:
                nursery.start_soon(self._site.disconnects.run)
            with trio.CancelScope() as listening:
                async with trio.open_nursery() as listeners:
                    for sock in sockets:
                        listeners.start_soon(self._listen, sock, nursery)
                    for event in (stop, broken):
                        listeners.start_soon(_relay, event, ending)
                    task_status.started([address for sock in sockets if (address := address_of(sock))])
                    await ending.wait()
                    nursery.start_soon(self._drain, nursery, listening)
            for sock in sockets:
                sock.close()

    async def _listen(self, listener: socket.socket, nursery: trio.Nursery) -> None:
        traffic, limit = self._site.traffic, self._site.config.max_connections
        await accept_forever(
            listener,
            handle=lambda sock: nursery.start_soon(self._serve, sock),
            has_room=lambda: len(traffic.connections) < limit,
            make_room=traffic.make_room,
            turn=TURN if self._site.config.shared else 0.0,
        )

    async def _drain(self, nursery: trio.Nursery, listening: trio.CancelScope) -> None:
        traffic = self._site.traffic
        handing_over = self._others_accept()
        if handing_over:
            listening.cancel()
        elif self._on_drain is not None:
            self._on_drain()
        traffic.draining = True
        with trio.move_on_after(self._site.config.shutdown_grace):
            if handing_over:
                # Requests are on their way on connections that have just been made, or have just been answered on.
                await trio.sleep(HAND_OVER)
            before = tuple(traffic.connections)
            for connection in before:
                connection.drain()
            await traffic.settled(before)
            listening.cancel()
            for connection in tuple(traffic.connections):
                connection.close_if_idle()
            await traffic.settled(traffic.connections)
        listening.cancel()
        nursery.cancel_scope.cancel()
        for connection in tuple(traffic.connections):
            connection.cut()

    async def _serve(self, sock: socket.socket) -> None:
        """Serve one connection; nothing that happens in it concerns another."""
        site = self._site
        try:
            transport = SocketTransport(sock, site.config.write_timeout)
            connection: Http1Connection | Http2Connection
            if self._tls is None:
                connection = Http1Connection(site, transport, transport)
            else:
                stream = await Handshake(transport, self._tls, site.config.header_timeout).establish(site.traffic)
                if stream is None:
                    return
                kind = Http2Connection if stream.selected_alpn_protocol() == "h2" else Http1Connection
                connection = kind(site, transport, stream)
            with site.traffic.connection(connection):
                await connection.run()
        except* Exception as errors:  # noqa: BLE001 - one connection's fault is not the server's end
            report_each(errors, site.config.report)
        finally:
            sock.close()


async def _relay(event: trio.Event, to: trio.Event) -> None:
    await event.wait()
    to.set()
