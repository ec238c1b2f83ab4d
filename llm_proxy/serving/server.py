"""One serving process: sockets, lifespan, connections, and an end without broken answers."""

from __future__ import annotations

import contextlib
import socket
import ssl
from collections.abc import Callable
from functools import partial
from typing import Any

import trio

from llm_proxy.serving.asgi import Address, Application
from llm_proxy.serving.config import ServeConfig
from llm_proxy.serving.http1 import Http1Connection
from llm_proxy.serving.lifespan import LifespanFailed, lifespan
from llm_proxy.serving.listener import accept, bind, name_of
from llm_proxy.serving.traffic import Traffic
from llm_proxy.serving.transport import SocketTransport

__all__ = ["LifespanFailed", "ServeConfig", "serve"]


async def serve(
    app: Application,
    config: ServeConfig,
    *,
    stop: trio.Event,
    on_drain: Callable[[], None] | None = None,
    task_status: trio.TaskStatus[list[Address]] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve `app` until `stop` is set, then drain and return.

    Start: the sockets are bound, the application's lifespan is started, and only then are connections accepted;
    `task_status.started` gets the addresses. Draining: see `_Server.drain`.

    Args:
        app: an ASGI 3 application.
        config: addresses, limits and deadlines.
        stop: asks for the end.
        on_drain: is called as soon as `stop` is set, before anything else happens.
        task_status: for `nursery.start`.

    Raises:
        LifespanFailed: the application refused to start.
        OSError: an address cannot be bound, or a certificate cannot be read.
    """
    context = _tls_context(config)
    sockets = config.sockets or bind(config.host, config.port)
    with contextlib.ExitStack() as stack:
        for sock in sockets:
            stack.callback(sock.close)
            sock.setblocking(False)
            sock.listen(config.backlog)
        async with lifespan(app, config.report) as state:
            server = _Server(app, config, context, state)
            async with trio.open_nursery() as nursery:
                for sock in sockets:
                    nursery.start_soon(server.listen, sock, nursery)
                task_status.started([address for sock in sockets if (address := name_of(sock)) is not None])
                await stop.wait()
                nursery.cancel_scope.cancel()


def _tls_context(config: ServeConfig) -> ssl.SSLContext | None:
    if config.tls_cert is None or config.tls_key is None:
        return None
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    context.load_cert_chain(config.tls_cert, config.tls_key)
    return context


class _Server:
    def __init__(
        self, app: Application, config: ServeConfig, context: ssl.SSLContext | None, state: dict[str, Any]
    ) -> None:
        self._app = app
        self._config = config
        self._context = context
        self._state = state
        self._traffic = Traffic()

    async def listen(self, listener: socket.socket, nursery: trio.Nursery) -> None:
        await accept(listener, partial(nursery.start_soon, self._serve), self._has_room, self._make_room)

    def _has_room(self) -> bool:
        return len(self._traffic.connections) < self._config.max_connections

    def _make_room(self) -> None:
        idlest = self._traffic.idlest()
        if idlest is not None:
            idlest.close_if_idle()

    async def _serve(self, sock: socket.socket) -> None:
        config = self._config
        transport = SocketTransport(sock, config.write_timeout)
        try:
            connection = Http1Connection(
                self._app,
                config,
                self._traffic,
                transport,
                transport,
                client=name_of(sock, peer=True),
                server=name_of(sock),
                state=self._state,
            )
            with self._traffic.connection(connection):
                await connection.run()
        except Exception as error:
            config.report(error)
        finally:
            transport.close()
