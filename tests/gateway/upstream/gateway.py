"""An outbound proxy on loopback."""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import trio
from attrs import Factory, define

from tests.gateway.upstream.stage import Peer, Stage, stage


@define
class Gateway:
    """A running outbound proxy: whatever it is asked for, it connects to one upstream."""

    port: int
    heads: list[bytes] = Factory(list)


@asynccontextmanager
async def gateway(
    upstream: Stage, *, refusal: bytes = b"", context: ssl.SSLContext | None = None
) -> AsyncIterator[Gateway]:
    """Run an outbound proxy, which refuses CONNECT with `refusal` if given; with `context` it is reached over TLS."""

    async def handler(peer: Peer) -> None:
        head = await peer.head()
        running.heads.append(head)
        if refusal:
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

    async with stage(handler, context) as listening:
        running = Gateway(listening.origin.port)
        yield running


async def _pump(source: trio.abc.Stream, sink: trio.abc.Stream, scope: trio.CancelScope) -> None:
    with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
        while data := await source.receive_some():
            await sink.send_all(data)
    scope.cancel()
