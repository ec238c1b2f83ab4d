"""An outbound proxy on loopback, and an upstream that speaks HTTP/2."""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import h2.config
import h2.connection
import h2.events
import trio
from attrs import Factory, define

from tests.proxy.upstream.stage import Peer, Stage, settled, stage


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


async def over_http2(peer: Peer) -> None:
    """Answer every request over HTTP/2 with what was asked."""
    connection = h2.connection.H2Connection(h2.config.H2Configuration(client_side=False, header_encoding=None))
    connection.initiate_connection()
    await peer.send(connection.data_to_send())
    asked: dict[int, tuple[list[tuple[bytes, bytes]], bytearray]] = {}
    while data := bytes(await peer.stream.receive_some()):
        answered = False
        for event in connection.receive_data(data):
            if isinstance(event, h2.events.RequestReceived):
                asked[event.stream_id] = (list(event.headers), bytearray())
            elif isinstance(event, h2.events.DataReceived):
                asked[event.stream_id][1].extend(event.data)
                connection.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
            elif isinstance(event, h2.events.StreamEnded):
                headers, body = asked.pop(event.stream_id)
                said = b" ".join(value for _, value in headers) + b" %d" % len(body)
                connection.send_headers(event.stream_id, [(b":status", b"200"), (b"x-h2", b"yes")])
                connection.send_data(event.stream_id, said, end_stream=True)
                answered = True
        await peer.send(connection.data_to_send())
        if answered:
            # HTTP/2 servers speak up on idle connections too.
            await settled()
            connection.ping(b"are you?")
            await peer.send(connection.data_to_send())
