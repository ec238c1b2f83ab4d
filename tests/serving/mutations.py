"""Requests that a sound client would never send (real ones, spoilt at random but reproducibly), and their sender."""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator, Sequence
from random import Random

import h2.config
import h2.connection
import trio

from tests.serving.bodies_table import ROWS as BODIES
from tests.serving.framing_table import GET, get, post
from tests.serving.framing_table import ROWS as HEADS

WEBSOCKET = get(
    b"Connection: Upgrade",
    b"Upgrade: websocket",
    b"Sec-WebSocket-Version: 13",
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
)
H2C = get(b"Connection: Upgrade, HTTP2-Settings", b"Upgrade: h2c", b"HTTP2-Settings: AAMAAABkAAQAAP__")
CHUNKED = post(b"5\r\nhello\r\n0\r\n\r\n", b"Transfer-Encoding: chunked")


def prior_knowledge(path: str) -> bytes:
    """The first flight of an HTTP/2 client on a connection that was not asked for HTTP/2."""
    client = h2.connection.H2Connection(h2.config.H2Configuration(validate_outbound_headers=False))
    client.initiate_connection()
    head = [(":method", "GET"), (":scheme", "http"), (":authority", "a"), (":path", path)]
    client.send_headers(client.get_next_available_stream_id(), head, end_stream=True)
    return client.data_to_send()


SEEDS = (
    GET,
    post(b"hello", b"Content-Length: 5"),
    CHUNKED,
    post(b"5\r\nhello\r\n0\r\n\r\n", b"Content-Length: 15", b"Transfer-Encoding: chunked"),
    post(b"", b"Content-Length: 5", b"Expect: 100-continue"),
    get(target="/é".encode()),
    GET * 3,
    CHUNKED + GET,
    WEBSOCKET,
    WEBSOCKET + b"\x81",
    WEBSOCKET + GET,
    H2C,
    H2C + prior_knowledge("/é"),
    prior_knowledge("/"),
    prior_knowledge("/é"),
    prior_knowledge("/") + bytes(range(64)),
    *(row.wire for row in (*HEADS, *BODIES) if len(row.wire) < 500),
)
"""Half of what is spoilt is from the first dozen and a half, the rest from the framing table."""
_FAVOURED = 16
_SPICE = (b"\r", b"\n", b"\r\n", b"\x00", b"\xff", b" ", b"\t", b":", b",", b"0", b"\r\n\r\n", b"\xc3\xa9", b"%00")


_RESET = struct.pack("ii", 1, 0)


def spoilt(random: Random, count: int, seeds: Sequence[bytes] = SEEDS) -> Iterator[bytes]:
    """So many requests, each with up to three faults; one in eight is left as it is."""
    for _ in range(count):
        data = bytearray(random.choice(seeds[:_FAVOURED] if random.random() < 0.5 else seeds))
        for _ in range(0 if random.random() < 0.125 else random.randint(1, 3)):
            place = random.randrange(len(data) + 1)
            match random.randrange(6):
                case 0:
                    data[place : place + 1] = bytes([random.randrange(256)])
                case 1:
                    data[place:place] = random.choice(_SPICE)
                case 2:
                    del data[place : place + random.randint(1, 8)]
                case 3:
                    data[place:place] = data[place : place + random.randint(1, 40)]
                case 4:
                    del data[place:]
                case _:
                    data += random.choice(seeds)
        yield bytes(data)


async def attack(port: int, data: bytes, random: Random, waits: Sequence[float] = (0, 0.005, 0.02)) -> None:
    """Send some bytes and leave in one of the ways in which clients leave, after one of these waits (seconds)."""
    wait, how, cut = random.choice(waits), random.randrange(3), random.randrange(len(data) + 1)
    try:
        stream = await trio.open_tcp_stream("127.0.0.1", port)
        async with stream:
            for piece in (data[:cut], data[cut:]):
                await stream.send_all(piece)
            if how == 0:
                await stream.send_eof()
            with trio.move_on_after(wait):
                async for _ in stream:
                    pass
            if how == 1:
                stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
    except (OSError, trio.BrokenResourceError):
        pass
