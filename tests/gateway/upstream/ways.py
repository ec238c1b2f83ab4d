"""The ways to an upstream that lead through an outbound proxy."""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from llm_proxy.gateway.upstream import Origin, Timeouts, UpstreamPool
from llm_proxy.gateway.upstream.outbound import OutboundProxy
from llm_proxy.gateway.upstream.via_httpx import HttpxConnector
from tests.gateway.upstream.gateway import Gateway, gateway
from tests.gateway.upstream.stage import Handler, Stage, client_sockets, stage

if TYPE_CHECKING:
    from tests.gateway.upstream.conftest import Authority

Way = Literal["forwarded", "tunnelled", "tunnelled in TLS"]
WAYS: list[Way] = ["forwarded", "tunnelled", "tunnelled in TLS"]


class Scene:
    """An upstream, the way to it, and the sockets that lead there."""

    def __init__(self, upstream: Stage, proxy: Gateway, pool: UpstreamPool) -> None:
        self.upstream = upstream
        self.proxy = proxy
        self.pool = pool

    @property
    def sockets(self) -> int:
        return client_sockets(Origin("http", "localhost", self.proxy.port))


@asynccontextmanager
async def scene(
    authority: Authority, folder: Path, way: Way, handler: Handler, timeouts: Timeouts
) -> AsyncIterator[Scene]:
    """Set up an upstream and a way to it; certificates go into `folder`."""
    secure = way != "forwarded"
    context: ssl.SSLContext | None = None
    if secure:
        context = authority.server(folder, "localhost")
        context.set_alpn_protocols(["http/1.1"])
    client = authority.client()
    async with stage(handler, context, "localhost") as upstream:
        outer = authority.server(folder, "localhost") if way == "tunnelled in TLS" else None
        async with gateway(upstream, context=outer) as running:
            proxy = OutboundProxy("https" if outer else "http", "localhost", running.port, (b"us", b"pw"))
            connector = HttpxConnector(upstream.origin, timeouts, proxy=proxy, ssl_context=client)
            pool = UpstreamPool(upstream.origin, timeouts, connect=connector.connect)
            yield Scene(upstream, running, pool)
            pool.close()
