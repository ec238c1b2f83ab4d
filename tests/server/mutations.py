"""Malformed requests: valid ones with random but reproducible mutations, and their sender."""

from __future__ import annotations

import contextlib
import socket
import struct
from collections.abc import Iterator, Sequence
from random import Random

import h2.config
import h2.connection
import h2.exceptions
import trio

from tests.server.http1.bodies_table import ROWS as BODIES
from tests.server.http1.framing_table import GET, get, post
from tests.server.http1.framing_table import ROWS as HEADS

WEBSOCKET = get(
    b"Connection: Upgrade",
    b"Upgrade: websocket",
    b"Sec-WebSocket-Version: 13",
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
)
H2C = get(b"Connection: Upgrade, HTTP2-Settings", b"Upgrade: h2c", b"HTTP2-Settings: AAMAAABkAAQAAP__")
CHUNKED = post(b"5\r\nhello\r\n0\r\n\r\n", b"Transfer-Encoding: chunked")


def prior_knowledge(path: str) -> bytes:
    """The first bytes of an HTTP/2 client on a connection that speaks HTTP/1.1."""
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
"""Half of the mutated requests come from the first 18, the rest from the framing table."""
_FAVOURED = 16
_SPICE = (b"\r", b"\n", b"\r\n", b"\x00", b"\xff", b" ", b"\t", b":", b",", b"0", b"\r\n\r\n", b"\xc3\xa9", b"%00")


_RESET = struct.pack("ii", 1, 0)


def mutated(random: Random, count: int, seeds: Sequence[bytes] = SEEDS) -> Iterator[bytes]:
    """Return `count` requests, each with up to three mutations; one in eight has none."""
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
    """Send bytes and disconnect in one of several ways, after one of these waits (seconds)."""
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


_METHODS = ("GET", "POST", "HEAD", "OPTIONS", "CONNECT", "get", "GÉT", "G T", "", "PATCH", "BREW")
_PATHS = (
    "/",
    "/é",
    "*",
    "//",
    "",
    "/%zz",
    "/%ff%00",
    "/a?b=é",
    "/v1/models",
    "/manage/tokens",
    "/health",
    "/a b",
    "/..;/",
)
_AUTHORITIES = ("localhost", "localhost:1", "é", "a b", "", "a/b", "[::1]", "u@a")
_FIELDS = (
    *(("content-length", value) for value in ("5", "0", "x", "-1", "+5", "1_0", "9" * 5000)),
    *(("expect", value) for value in ("100-continue", "é")),
    *(("content-type", value) for value in ("application/json; charset=é", "multipart/form-data; boundary=", "é")),
    *(("cookie", value) for value in ("a=b", "é", ";;;=", '"\\777"')),
    *(
        (name, "é\x80")
        for name in ("authorization", "x-api-key", "origin", "x-forwarded-for", "range", "accept", "date")
    ),
    *(
        (name, "x")
        for name in ("te", "connection", "transfer-encoding", "upgrade", "host", "sec-websocket-key", "X-Y", "x y")
    ),
    ("access-control-request-method", "é"),
    ("x", "a\r\nb"),
    ("x", "\x00"),
    ("session_id", "x"),
    (":path", "/twice"),
    (":protocol", "websocket"),
    (":é", "x"),
    ("", "x"),
)


def _act(client: h2.connection.H2Connection, stream: int, random: Random) -> None:
    """Do something that may follow a request."""
    match random.randrange(8):
        case 0:
            client.send_data(stream, b"x" * random.randrange(20), end_stream=True)
        case 1:
            client.send_headers(stream, [("x", "y")], end_stream=True)
        case 2:
            client.reset_stream(stream, random.randrange(20))
        case 3:
            client.increment_flow_control_window(random.randint(1, 2**31 - 1), stream)
        case 4:
            client.prioritize(random.randint(1, 99), random.randint(1, 256), random.randrange(99))
        case 5:
            client.ping(bytes(8))
        case 6:
            client.close_connection(random.randrange(20))
        case _:
            client.update_settings({random.randint(1, 8): random.randrange(2**31)})


def mutated_http2(random: Random, count: int) -> Iterator[bytes]:
    """Return first bytes of HTTP/2 clients, with mutations of fields, of their order and of bytes."""
    for _ in range(count):
        client = h2.connection.H2Connection(
            h2.config.H2Configuration(validate_outbound_headers=False, normalize_outbound_headers=False)
        )
        client.initiate_connection()
        for _ in range(random.randint(1, 4)):
            stream = client.get_next_available_stream_id()
            head = [
                (":method", random.choice(_METHODS[:2] if random.random() < 0.7 else _METHODS)),
                (":scheme", "https"),
                (":authority", random.choice(_AUTHORITIES[:2] if random.random() < 0.7 else _AUTHORITIES)),
                (":path", random.choice(_PATHS)),
                *random.sample(_FIELDS, random.choice((0, 0, 1, 1, 2))),
            ]
            if random.random() < 0.1:
                random.shuffle(head)
            with contextlib.suppress(h2.exceptions.ProtocolError, ValueError):
                client.send_headers(stream, head, end_stream=random.random() < 0.5)
            with contextlib.suppress(h2.exceptions.ProtocolError, ValueError):
                _act(client, stream, random)
        data = bytearray(client.data_to_send())
        for _ in range(random.choice((0, 0, 0, 1, 3))):
            place = random.randrange(len(data))
            if random.random() < 0.7:
                data[place] = random.randrange(256)
            else:
                data[place:place] = bytes([random.randrange(256)]) * random.randint(1, 20)
        yield bytes(data)
