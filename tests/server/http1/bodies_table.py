"""The second half of the framing table: chunks, expectations, keep-alive."""

from __future__ import annotations

from tests.server.http1.framing_table import CHUNKED, GET, Row, get, post, refused


def broken(says: str, body: bytes, section: str = "7.1") -> Row:
    """A chunked body whose end does not reach the application."""
    return Row(section, says, CHUNKED + body, (400,), closes=True, bodies=(), truncated=1)


def chunked(section: str, says: str, body: bytes, seen: bytes) -> Row:
    """A chunked body that is read, followed by a second request to prove where it ended."""
    return Row(section, says, CHUNKED + body + GET, (200, 200), bodies=(seen, b""))


ROWS = (
    chunked("7.1", "chunks", b"5\r\nhello\r\n6\r\n world\r\n0\r\n\r\n", b"hello world"),
    chunked("7.1", "no chunks", b"0\r\n\r\n", b""),
    chunked(
        "7.1",
        "sizes are hexadecimal in either case",
        b"a\r\n0123456789\r\nA\r\n0123456789\r\n0\r\n\r\n",
        b"0123456789" * 2,
    ),
    chunked("7.1", "sizes may begin with zeros", b"0005\r\nhello\r\n000\r\n\r\n", b"hello"),
    chunked(
        "7.1", "data may look like an end", b"c\r\n\r\n0\r\n\r\n\r\n\r\n\r\r\n0\r\n\r\n", b"\r\n0\r\n\r\n\r\n\r\n\r"
    ),
    chunked("7.1.1", "chunk extensions are ignored", b"5;a=b;c\r\nhello\r\n0;d\r\n\r\n", b"hello"),
    chunked("7.1.1", "also quoted ones", b'5;a="b c"\r\nhello\r\n0\r\n\r\n', b"hello"),
    chunked("7.1.2", "trailers are ignored", b"5\r\nhello\r\n0\r\nX: y\r\nZ: w\r\n\r\n", b"hello"),
    broken("a size that is no number", b"x\r\n"),
    broken("an empty size", b"\r\nhello\r\n0\r\n\r\n"),
    broken("a size with a prefix", b"0x5\r\nhello\r\n0\r\n\r\n"),
    broken("a size with a sign", b"+5\r\nhello\r\n0\r\n\r\n"),
    broken("a size with a space behind it", b"5 \r\nhello\r\n0\r\n\r\n"),
    broken("a size beyond 64 bits", b"fffffffffffffffff\r\n"),
    broken("a bare LF behind a size", b"5\nhello\r\n0\r\n\r\n"),
    broken("a bare LF in a chunk extension", b"5;a\nhello\r\n0\r\n\r\n", "7.1.1"),
    broken("a NUL in a chunk extension", b'5;a="\x00"\r\nhello\r\n0\r\n\r\n', "7.1.1"),
    broken("chunk extensions without end", b"5;" + b"a" * 17_000 + b"\r\nhello\r\n0\r\n\r\n", "7.1.1"),
    broken("trailers without end", b"0\r\n" + b"X: yyyyyyyyyyyyyyyy\r\n" * 1000, "7.1.2"),
    broken("a bare LF in a trailer", b"0\r\nX: y\n\r\n", "7.1.2"),
    broken("a length among the trailers", b"0\r\nContent-Length: 5\r\n\r\n", "7.1.2"),
    Row(
        "7.1",
        "data longer than its chunk",
        CHUNKED + b"5\r\nhelloX\r\n0\r\n\r\n",
        (400,),
        closes=True,
        bodies=(),
        truncated=1,
    ),
    Row(
        "8",
        "half a body, then the end",
        post(b"hel", b"Content-Length: 5"),
        (),
        closes=True,
        bodies=(),
        truncated=1,
        half_close=True,
    ),
    Row(
        "8",
        "half a chunk, then the end",
        CHUNKED + b"5\r\nhel",
        (),
        closes=True,
        bodies=(),
        truncated=1,
        half_close=True,
    ),
    Row(
        "8",
        "no last chunk, then the end",
        CHUNKED + b"5\r\nhello\r\n",
        (),
        closes=True,
        bodies=(),
        truncated=1,
        half_close=True,
    ),
    # Keep-alive
    Row("9.3", "HTTP/1.1 stays open", GET + GET, (200, 200), bodies=(b"", b"")),
    Row("9.3", "Connection: close", get(b"Connection: close") + GET, closes=True),
    Row("9.3", "close among other options", get(b"Connection: x, Close ,y") + GET, closes=True),
    Row("9.3", "close in a second field", get(b"Connection: x", b"Connection: close"), closes=True),
    Row("9.3", "close wins against keep-alive", get(b"Connection: keep-alive, close"), closes=True),
    Row("9.3", "HTTP/1.0 closes", get(version=b"HTTP/1.0") + GET, closes=True),
    Row(
        "9.3",
        "HTTP/1.0 stays open with keep-alive",
        get(b"Connection: keep-alive", version=b"HTTP/1.0") + GET,
        (200, 200),
        bodies=(b"", b""),
    ),
    Row("9.3", "close wins in HTTP/1.0", get(b"Connection: keep-alive, close", version=b"HTTP/1.0"), closes=True),
    Row(
        "9.3.2",
        "pipelined requests are answered in order",
        b"".join(post(b"%03d" % n, b"Content-Length: 3") for n in range(20)),
        (200,) * 20,
        bodies=tuple(b"%03d" % n for n in range(20)),
    ),
    Row("9.3.2", "a good request, then a bad one", GET + b"GET  / HTTP/1.1\r\n\r\n", (200, 400), closes=True),
    Row(
        "9.3.2",
        "chunked, then plain, then the end",
        CHUNKED + b"1\r\na\r\n0\r\n\r\n" + GET,
        (200, 200),
        closes=True,
        bodies=(b"a", b""),
        half_close=True,
    ),
    Row("9.6", "the client is done", GET, closes=True, half_close=True),
    Row(
        "RFC 9110 9.3.2",
        "HEAD has no body",
        post(b"hi", b"Content-Length: 2").replace(b"POST", b"HEAD") + GET,
        (200, 200),
        bodies=(b"hi", b""),
        methods=("HEAD",),
    ),
    # Expectations
    Row(
        "RFC 9110 10.1.1",
        "100 is sent when the body is wanted",
        post(b"", b"Content-Length: 5", b"Expect: 100-continue"),
        (100,),
        bodies=(),
    ),
    Row(
        "RFC 9110 10.1.1",
        "the expectation is case-insensitive",
        post(b"", b"Content-Length: 5", b"Expect: 100-Continue"),
        (100,),
        bodies=(),
    ),
    Row("RFC 9110 10.1.1", "there is no 100 without a body", get(b"Expect: 100-continue")),
    Row(
        "RFC 9110 10.1.1",
        "HTTP/1.0 expects nothing",
        b"POST / HTTP/1.0\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\n",
        (),
        bodies=(),
    ),
    refused("RFC 9110 10.1.1", "another expectation", get(b"Expect: 200-maybe"), 417),
    # Upgrades
    Row(
        "RFC 9110 7.8",
        "an upgrade to h2c is ignored",
        get(b"Connection: Upgrade, HTTP2-Settings", b"Upgrade: h2c", b"HTTP2-Settings: AAMAAABkAAQAAP__") + GET,
        (200, 200),
        bodies=(b"", b""),
    ),
    Row(
        "RFC 9110 7.8",
        "so is one with a body",
        post(b"hello", b"Connection: upgrade", b"Upgrade: h2c", b"Content-Length: 5") + GET,
        (200, 200),
        bodies=(b"hello", b""),
    ),
    Row(
        "RFC 9110 7.8",
        "and with a chunked body",
        post(b"5\r\nhello\r\n0\r\n\r\n", b"UPGRADE: h2c", b"Connection: UPGRADE", b"Transfer-Encoding: chunked") + GET,
        (200, 200),
        bodies=(b"hello", b""),
    ),
    Row(
        "RFC 6455 4",
        "a WebSocket handshake with one byte more is a request like any other, and half of another",
        get(b"Connection: Upgrade", b"Upgrade: websocket", b"Sec-WebSocket-Version: 13", b"Sec-WebSocket-Key: eA==")
        + b"\x01",
    ),
)
