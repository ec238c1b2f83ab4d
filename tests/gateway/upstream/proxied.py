"""An outbound proxy on loopback, and the ways to an upstream through it."""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import trio
from attrs import Factory, define

from llm_proxy.gateway.upstream.connector import Origin, Timeouts
from llm_proxy.gateway.upstream.outbound_proxy import OutboundProxy
from llm_proxy.gateway.upstream.pool import UpstreamPool
from tests.gateway.upstream.stage import Handler, Peer, Stage, client_sockets, stage

if TYPE_CHECKING:
    from tests.gateway.upstream.conftest import Authority

Way = Literal["forwarded", "forwarded over TLS", "tunnelled", "tunnelled over TLS"]
WAYS: list[Way] = ["forwarded", "forwarded over TLS", "tunnelled", "tunnelled over TLS"]


@define
class RunningProxy:
    """A running outbound proxy: it connects to one upstream, whatever the request is."""

    port: int
    heads: list[bytes] = Factory(list)


@asynccontextmanager
async def outbound_proxy(
    upstream: Stage, *, refusal: bytes | None = None, context: ssl.SSLContext | None = None
) -> AsyncIterator[RunningProxy]:
    """Run an outbound proxy; it answers every request with `refusal` if given, and uses TLS if there is a `context`."""

    async def handler(peer: Peer) -> None:
        head = await peer.head()
        running.heads.append(head)
        if refusal is not None:
            await peer.send(refusal)
            return
        there = await trio.open_tcp_stream("127.0.0.1", upstream.origin.port)
        if head.startswith(b"CONNECT "):
            await peer.send(b"HTTP/1.1 200 Connection established\r\n\r\n")
        else:
            await there.send_all(head)
        async with there, trio.open_nursery() as nursery:
            nursery.start_soon(_pump, peer.stream, there, nursery.cancel_scope)
            nursery.start_soon(_pump, there, peer.stream, nursery.cancel_scope)
        # With TLS, this sends a close_notify.
        await peer.stream.aclose()

    async with stage(handler, context) as listening:
        running = RunningProxy(listening.origin.port)
        yield running


async def _pump(source: trio.abc.Stream, sink: trio.abc.Stream, scope: trio.CancelScope) -> None:
    with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
        while data := await source.receive_some():
            await sink.send_all(data)
    scope.cancel()


@define
class Scene:
    """An upstream, the proxy before it, and a pool that goes through the proxy."""

    upstream: Stage
    proxy: RunningProxy
    pool: UpstreamPool

    @property
    def sockets(self) -> int:
        return client_sockets(Origin("http", "localhost", self.proxy.port))


@asynccontextmanager
async def scene(
    authority: Authority, folder: Path, way: Way, handler: Handler, timeouts: Timeouts
) -> AsyncIterator[Scene]:
    """Set up an upstream and a way to it; certificates go into `folder`."""
    context: ssl.SSLContext | None = None
    if way.startswith("tunnelled"):
        context = authority.server(folder, "localhost")
        context.set_alpn_protocols(["http/1.1"])
    async with stage(handler, context, "localhost") as upstream:
        outer = authority.server(folder, "localhost") if way.endswith("over TLS") else None
        async with outbound_proxy(upstream, context=outer) as running:
            proxy = OutboundProxy("https" if outer else "http", "localhost", running.port, (b"us", b"pw"))
            pool = UpstreamPool(upstream.origin, timeouts, proxy=proxy, ssl_context=authority.client())
            yield Scene(upstream, running, pool)
            pool.close()
