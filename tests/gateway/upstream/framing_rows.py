"""Responses on the wire and their meaning by RFC 9112 and RFC 9110, one row each.

`Seen` is a response that is relayed; a class of failure is one that is refused. `reusable` says whether the next
request may use the same connection.
"""

from __future__ import annotations

from typing import Final

from attrs import field, frozen

from llm_proxy.gateway.upstream.failures import Disconnected, MalformedResponse, UnexpectedUpgrade, UpstreamFailure


@frozen
class Seen:
    """A parsed response."""

    status: int
    body: bytes
    reusable: bool
    reason: bytes = b"OK"


@frozen
class Row:
    """The bytes of a response up to the end of the stream, and the expected result."""

    rule: str
    wire: bytes
    expected: Seen | type[UpstreamFailure]
    method: bytes = field(default=b"GET", kw_only=True)


OK: Final = b"HTTP/1.1 200 OK\r\n"
OLD: Final = b"HTTP/1.0 200 OK\r\n"
CHUNKED: Final = OK + b"Transfer-Encoding: chunked\r\n\r\n"
FIVE: Final = b"Content-Length: 5\r\n\r\nhello"
NONE: Final = b"Content-Length: 0\r\n\r\n"

HELLO: Final = Seen(200, b"hello", reusable=True)
EMPTY: Final = Seen(200, b"", reusable=True)
LAST: Final = Seen(200, b"hello", reusable=False)

STATUS_LINE: Final = [
    Row("9112 §4: status line", OK + FIVE, HELLO),
    Row(
        "9112 §4: the reason phrase may be empty",
        b"HTTP/1.1 200 \r\n" + FIVE,
        Seen(200, b"hello", reusable=True, reason=b""),
    ),
    Row("9112 §4: and its blank forgotten", b"HTTP/1.1 200\r\n" + FIVE, Seen(200, b"hello", reusable=True, reason=b"")),
    Row(
        "9112 §4: any words",
        b"HTTP/1.1 429 Slow down, you\r\n" + NONE,
        Seen(429, b"", reusable=True, reason=b"Slow down, you"),
    ),
    Row(
        "9112 §4: obs-text in the reason",
        b"HTTP/1.1 200 \xe9\r\n" + FIVE,
        Seen(200, b"hello", reusable=True, reason=b"\xe9"),
    ),
    Row("9112 §4: NUL in the reason", b"HTTP/1.1 200 O\0K\r\n" + FIVE, MalformedResponse),
    Row("9112 §4: escape in the reason", b"HTTP/1.1 200 \x1b[2J\r\n" + FIVE, MalformedResponse),
    Row("9112 §4: two blanks before the status", b"HTTP/1.1  200 OK\r\n" + FIVE, MalformedResponse),
    Row("9110 §15: two digits", b"HTTP/1.1 20 OK\r\n" + FIVE, MalformedResponse),
    Row("9110 §15: four digits", b"HTTP/1.1 2000 OK\r\n" + FIVE, MalformedResponse),
    Row("9110 §15: below 100", b"HTTP/1.1 099 OK\r\n" + FIVE, MalformedResponse),
    Row("9110 §15: below 100, before a response", b"HTTP/1.1 099 OK\r\n\r\n" + OK + FIVE, MalformedResponse),
    Row("9110 §15: no digits", b"HTTP/1.1 abc OK\r\n" + FIVE, MalformedResponse),
    Row(
        "9110 §15: unknown classes are passed on",
        b"HTTP/1.1 999 No\r\n" + NONE,
        Seen(999, b"", reusable=True, reason=b"No"),
    ),
    Row("9112 §2.3: the name of the protocol is upper case", b"http/1.1 200 OK\r\n" + FIVE, MalformedResponse),
    Row("9112 §2.3: HTTP/1.2", b"HTTP/1.2 200 OK\r\n" + FIVE, MalformedResponse),
    Row("9112 §2.3: HTTP/2.0 in the status line", b"HTTP/2.0 200 OK\r\n" + FIVE, MalformedResponse),
    Row("9112 §2.3: HTTP/0.9 in the status line", b"HTTP/0.9 200 OK\r\n" + FIVE, MalformedResponse),
    Row("9112 §2.3: HTTP/0.9 without a status line", b"hello", MalformedResponse),
    Row("9112 §2.3: another protocol", b"RTSP/1.0 200 OK\r\n" + FIVE, MalformedResponse),
    Row("9112 §2.3: a greeting in another protocol", b"SSH-2.0-OpenSSH_9.2\r\n", MalformedResponse),
    Row("9112 §2.2: empty line before the status line", b"\r\n" + OK + FIVE, MalformedResponse),
    Row("9112 §2.2: bare LF after the status line", b"HTTP/1.1 200 OK\n" + FIVE, MalformedResponse),
    Row("9112 §2.2: bare CR in the status line", b"HTTP/1.1 200 O\rK\r\n" + FIVE, MalformedResponse),
]

FIELDS: Final = [
    Row("9112 §5: no blank after the colon", OK + b"Content-Length:5\r\n\r\nhello", HELLO),
    Row("9112 §5: blanks around the value", OK + b"Content-Length: \t 5 \t \r\n\r\nhello", HELLO),
    Row("9112 §5: names have no case", OK + b"cOnTeNt-LeNgTh: 5\r\n\r\nhello", HELLO),
    Row("9110 §5.5: empty value", OK + b"X:\r\n" + FIVE, HELLO),
    Row("9110 §5.5: obs-text in a value", OK + b"X: \xff\xfe\r\n" + FIVE, HELLO),
    Row("9110 §5.5: tab in a value", OK + b"X: a\tb\r\n" + FIVE, HELLO),
    Row("9110 §5.5: NUL in a value", OK + b"X: a\0b\r\n" + FIVE, MalformedResponse),
    Row("9110 §5.5: control character in a value", OK + b"X: a\x01b\r\n" + FIVE, MalformedResponse),
    Row("9110 §5.5: DEL in a value", OK + b"X: a\x7fb\r\n" + FIVE, MalformedResponse),
    Row("9112 §5.1: blank before the colon", OK + b"X : a\r\n" + FIVE, MalformedResponse),
    Row("9112 §5.1: empty name", OK + b": a\r\n" + FIVE, MalformedResponse),
    Row("9112 §5.1: no colon", OK + b"nonsense\r\n" + FIVE, MalformedResponse),
    Row("9110 §5.6.2: NUL in a name", OK + b"X\0: a\r\n" + FIVE, MalformedResponse),
    Row("9110 §5.6.2: obs-text in a name", OK + b"X\xe9: a\r\n" + FIVE, MalformedResponse),
    Row("9112 §5.2: obs-fold", OK + b"X: a\r\n b\r\n" + FIVE, MalformedResponse),
    Row("9112 §5.2: obs-fold by tab", OK + b"X: a\r\n\tb\r\n" + FIVE, MalformedResponse),
    Row("9112 §2.2: blank before the first field", OK + b" X: a\r\n" + FIVE, MalformedResponse),
    Row("9112 §2.2: bare LF after a field", OK + b"X: a\n" + FIVE, MalformedResponse),
    Row("9112 §2.2: bare CR in a field", OK + b"X: a\rY: b\r\n" + FIVE, MalformedResponse),
    Row("9112 §2.2: bare LF at the end of the head", OK + b"X: a\r\n\nhello", MalformedResponse),
    Row("9112 §8: cut off in the head", OK + b"X: a\r\n", Disconnected),
    Row("9112 §8: cut off in the status line", b"HTTP/1.1 2", Disconnected),
    Row("9112 §8: cut off before the first byte", b"", Disconnected),
]

LENGTH: Final = [
    Row("9112 §6.2: nothing", OK + NONE, EMPTY),
    Row("9112 §6.2: leading zeros", OK + b"Content-Length: 0005\r\n\r\nhello", HELLO),
    Row("9112 §6.3(6): too short", OK + b"Content-Length: 6\r\n\r\nhello", Disconnected),
    Row("9112 §6.3(6): too short, nothing", OK + b"Content-Length: 1\r\n\r\n", Disconnected),
    Row("9112 §6.3: more than announced", OK + b"Content-Length: 4\r\n\r\nhello", MalformedResponse),
    Row("9112 §6.3: a second response that nobody asked for", OK + FIVE + OK + FIVE, MalformedResponse),
    Row("9112 §6.3: more than nothing", OK + NONE + b"x", MalformedResponse),
    Row(
        "9112 §6.3: more, although the connection closes",
        OK + b"Connection: close\r\n" + FIVE + b"x",
        MalformedResponse,
    ),
    Row("9112 §6.3(5): plus sign", OK + b"Content-Length: +5\r\n\r\nhello", MalformedResponse),
    Row("9112 §6.3(5): minus sign", OK + b"Content-Length: -5\r\n\r\nhello", MalformedResponse),
    Row("9112 §6.3(5): hexadecimal", OK + b"Content-Length: 0x5\r\n\r\nhello", MalformedResponse),
    Row("9112 §6.3(5): empty", OK + b"Content-Length:\r\n\r\nhello", MalformedResponse),
    Row("9112 §6.3(5): words", OK + b"Content-Length: five\r\n\r\nhello", MalformedResponse),
    Row("9112 §6.3(5): blank between digits", OK + b"Content-Length: 5 5\r\n\r\nhello", MalformedResponse),
    Row("9112 §6.3(5): list", OK + b"Content-Length: 5, 5\r\n\r\nhello", MalformedResponse),
    Row("9112 §6.3(5): twice the same", OK + b"Content-Length: 5\r\n" + FIVE, MalformedResponse),
    Row("9112 §6.3(5): twice, differing", OK + b"Content-Length: 4\r\n" + FIVE, MalformedResponse),
    Row("9112 §6.3(5): beyond 64 bits", OK + b"Content-Length: 99999999999999999999\r\n\r\nhello", MalformedResponse),
]

CODING: Final = [
    Row("9112 §7.1: one chunk", CHUNKED + b"5\r\nhello\r\n0\r\n\r\n", HELLO),
    Row("9112 §7.1: several", CHUNKED + b"1\r\nh\r\n3\r\nell\r\n1\r\no\r\n0\r\n\r\n", HELLO),
    Row("9112 §7.1: none", CHUNKED + b"0\r\n\r\n", EMPTY),
    Row(
        "9112 §7.1: sizes have no case",
        CHUNKED + b"A\r\n0123456789\r\na\r\n0123456789\r\n0\r\n\r\n",
        Seen(200, b"0123456789" * 2, reusable=True),
    ),
    Row("9112 §7.1: leading zeros", CHUNKED + b"0005\r\nhello\r\n000\r\n\r\n", HELLO),
    Row("9112 §7.1.1: extension", CHUNKED + b"5;a=b\r\nhello\r\n0;c\r\n\r\n", HELLO),
    Row("9112 §7.1.1: quoted extension", CHUNKED + b'5;a="b;c"\r\nhello\r\n0\r\n\r\n', HELLO),
    Row("9112 §7.1.1: bare LF in an extension", CHUNKED + b"5;a\nhello\r\n0\r\n\r\n", MalformedResponse),
    Row("9112 §7.1.2: trailers are dropped", CHUNKED + b"5\r\nhello\r\n0\r\nX: y\r\nZ: w\r\n\r\n", HELLO),
    Row(
        "9110 §6.5.1: framing in trailers", CHUNKED + b"5\r\nhello\r\n0\r\nContent-Length: 5\r\n\r\n", MalformedResponse
    ),
    Row("9112 §7.1.2: NUL in a trailer", CHUNKED + b"5\r\nhello\r\n0\r\nX: \0\r\n\r\n", MalformedResponse),
    Row("9112 §7.1: no size", CHUNKED + b"\r\nhello\r\n0\r\n\r\n", MalformedResponse),
    Row("9112 §7.1: not hexadecimal", CHUNKED + b"g\r\nhello\r\n0\r\n\r\n", MalformedResponse),
    Row("9112 §7.1: hexadecimal in C", CHUNKED + b"0x5\r\nhello\r\n0\r\n\r\n", MalformedResponse),
    Row("9112 §7.1: minus sign", CHUNKED + b"-5\r\nhello\r\n0\r\n\r\n", MalformedResponse),
    Row("9112 §7.1: blank after the size", CHUNKED + b"5 \r\nhello\r\n0\r\n\r\n", MalformedResponse),
    Row("9112 §7.1: size beyond 64 bits", CHUNKED + b"10000000000000005\r\nhello\r\n0\r\n\r\n", MalformedResponse),
    Row("9112 §7.1: bare LF after the size", CHUNKED + b"5\nhello\r\n0\r\n\r\n", MalformedResponse),
    Row("9112 §7.1: bare LF after the chunk", CHUNKED + b"5\r\nhello\n0\r\n\r\n", MalformedResponse),
    Row("9112 §7.1: chunk longer than its size", CHUNKED + b"4\r\nhello\r\n0\r\n\r\n", MalformedResponse),
    Row("9112 §7.1: chunk shorter than its size", CHUNKED + b"6\r\nhello\r\n0\r\n\r\n", MalformedResponse),
    Row("9112 §8: cut off before the last chunk", CHUNKED + b"5\r\nhello\r\n", Disconnected),
    Row("9112 §8: cut off in a chunk", CHUNKED + b"5\r\nhel", Disconnected),
    Row("9112 §8: cut off in the last chunk", CHUNKED + b"5\r\nhello\r\n0\r\n", Disconnected),
    Row("9112 §8: cut off in the trailers", CHUNKED + b"5\r\nhello\r\n0\r\nX: y\r\n", Disconnected),
    Row("9112 §6.3: more after the last chunk", CHUNKED + b"0\r\n\r\nx", MalformedResponse),
    Row("9112 §6.3: a response after the last chunk", CHUNKED + b"0\r\n\r\n" + OK + NONE, MalformedResponse),
    Row("9112 §7: codings have no case", OK + b"Transfer-Encoding: CHUNKED\r\n\r\n5\r\nhello\r\n0\r\n\r\n", HELLO),
    Row(
        "9112 §6.3(3): both, length first",
        OK + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
        MalformedResponse,
    ),
    Row(
        "9112 §6.3(3): both, coding first",
        OK + b"Transfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
        MalformedResponse,
    ),
    Row(
        "9112 §6.1: gzip under chunked, not asked for by TE",
        OK + b"Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
        MalformedResponse,
    ),
    Row("9112 §6.1: chunked under gzip", OK + b"Transfer-Encoding: chunked, gzip\r\n\r\n0\r\n\r\n", MalformedResponse),
    Row("9112 §6.1: chunked twice", OK + b"Transfer-Encoding: chunked, chunked\r\n\r\n0\r\n\r\n", MalformedResponse),
    Row(
        "9112 §6.1: chunked in two fields",
        OK + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        MalformedResponse,
    ),
    Row(
        "9112 §6.1: chunked, then identity",
        OK + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n\r\n0\r\n\r\n",
        MalformedResponse,
    ),
    Row("9112 §6.1: identity is gone", OK + b"Transfer-Encoding: identity\r\n\r\nhello", MalformedResponse),
    Row("9112 §6.1: almost chunked", OK + b"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n", MalformedResponse),
    Row(
        "9112 §6.1: with a control character",
        OK + b"Transfer-Encoding: \x0bchunked\r\n\r\n0\r\n\r\n",
        MalformedResponse,
    ),
    Row("9112 §6.1: with a parameter", OK + b"Transfer-Encoding: chunked;a=b\r\n\r\n0\r\n\r\n", MalformedResponse),
    Row("9112 §6.1: empty", OK + b"Transfer-Encoding:\r\n\r\nhello", MalformedResponse),
    Row(
        "9112 §6.1: in HTTP/1.0", OLD + b"Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n", MalformedResponse
    ),
]

BODILESS: Final = [
    Row("9110 §9.3.2: HEAD with a length", OK + b"Content-Length: 5\r\n\r\n", EMPTY, method=b"HEAD"),
    Row("9110 §9.3.2: HEAD with a coding", CHUNKED, EMPTY, method=b"HEAD"),
    Row("9110 §9.3.2: HEAD with nothing", OK + b"\r\n", EMPTY, method=b"HEAD"),
    Row(
        "9110 §9.3.2: HEAD, and the connection closes",
        OK + b"Connection: close\r\n\r\n",
        Seen(200, b"", reusable=False),
        method=b"HEAD",
    ),
    Row("9112 §6.3(1): HEAD, answered like GET", OK + FIVE, Seen(200, b"", reusable=False), method=b"HEAD"),
    Row(
        "9112 §6.3(1): HEAD, answered like GET, chunked",
        CHUNKED + b"0\r\n\r\n",
        Seen(200, b"", reusable=False),
        method=b"HEAD",
    ),
    Row("9112 §6.3(1): HEAD, with half a chunk", CHUNKED + b"5;a", Seen(200, b"", reusable=False), method=b"HEAD"),
    Row("9112 §5: HEAD, and a bad field", OK + b"X : a\r\n" + NONE, MalformedResponse, method=b"HEAD"),
    Row(
        "9112 §6.3(1): HEAD, and a response too many",
        OK + NONE + OK + NONE,
        Seen(200, b"", reusable=False),
        method=b"HEAD",
    ),
    Row("9110 §15.3.5: 204", b"HTTP/1.1 204 OK\r\n\r\n", Seen(204, b"", reusable=True)),
    Row("9110 §15.3.5: 204 with a needless length", b"HTTP/1.1 204 OK\r\n" + NONE, Seen(204, b"", reusable=True)),
    Row("9112 §6.3(1): 204 with content", b"HTTP/1.1 204 OK\r\n" + FIVE, Seen(204, b"", reusable=False)),
    Row(
        "9112 §6.3(1): 204 with chunks",
        b"HTTP/1.1 204 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        Seen(204, b"", reusable=False),
    ),
    Row(
        "9110 §15.4.5: 304 with the length it would have had",
        b"HTTP/1.1 304 OK\r\nContent-Length: 5\r\n\r\n",
        Seen(304, b"", reusable=True),
    ),
    Row(
        "9110 §15.4.5: 304 with the coding it would have had",
        b"HTTP/1.1 304 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
        Seen(304, b"", reusable=True),
    ),
    Row("9110 §15.4.5: 304", b"HTTP/1.1 304 OK\r\n\r\n", Seen(304, b"", reusable=True)),
    Row("9110 §15.3.6: 205 has a length like any other", b"HTTP/1.1 205 OK\r\n" + NONE, Seen(205, b"", reusable=True)),
]

CLOSE: Final = [
    Row("9112 §6.3(8): until the connection closes", OK + b"\r\nhello", LAST),
    Row("9112 §6.3(8): nothing until it closes", OK + b"\r\n", Seen(200, b"", reusable=False)),
    Row("9112 §6.3(8): errors too", b"HTTP/1.1 500 OK\r\n\r\nhello", Seen(500, b"hello", reusable=False)),
    Row("9112 §6.3(8): what looks like a response is content", OK + b"\r\n" + OK, Seen(200, OK, reusable=False)),
    Row("9112 §6.3(8): HTTP/1.0", OLD + b"\r\nhello", LAST),
    Row("9112 §9.3: HTTP/1.0 closes", OLD + FIVE, LAST),
    Row("9112 §9.3: HTTP/1.0 that stays", OLD + b"Connection: keep-alive\r\n" + FIVE, HELLO),
    Row("9112 §9.3: HTTP/1.0 that cannot stay", OLD + b"Connection: keep-alive\r\n\r\nhello", LAST),
    Row("9112 §9.3: HTTP/1.0 that says both", OLD + b"Connection: keep-alive, close\r\n" + FIVE, LAST),
    Row("9112 §9.6: HTTP/1.1 that closes", OK + b"Connection: close\r\n" + FIVE, LAST),
    Row("9112 §9.6: options have no case", OK + b"Connection: Close\r\n" + FIVE, LAST),
    Row("9112 §9.6: one option among others", OK + b"Connection: x-a , close,x-b\r\n" + FIVE, LAST),
    Row("9110 §7.6.1: options in two fields", OK + b"Connection: x-a\r\nConnection: close\r\n" + FIVE, LAST),
    Row("9112 §9.6: close wins", OK + b"Connection: keep-alive\r\nConnection: close\r\n" + FIVE, LAST),
    Row("9110 §7.6.1: other options do not close", OK + b"Connection: x-close\r\n" + FIVE, HELLO),
    Row(
        "9112 §9.6: chunked that closes",
        OK + b"Connection: close\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
        LAST,
    ),
    Row("9110 §7.8: an offer to upgrade is no upgrade", OK + b"Connection: upgrade\r\nUpgrade: h2c\r\n" + FIVE, HELLO),
]

CONTINUE: Final = b"HTTP/1.1 100 Continue\r\n\r\n"

INTERIM: Final = [
    Row("9110 §15.2.1: 100", CONTINUE + OK + FIVE, HELLO),
    Row("9110 §15.2: several", CONTINUE * 3 + OK + FIVE, HELLO),
    Row("9110 §15.2: 102", b"HTTP/1.1 102 Processing\r\n\r\n" + OK + FIVE, HELLO),
    Row("8297 §2: 103 with fields", b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n" + OK + FIVE, HELLO),
    Row(
        "9112 §9.6: an end announced before the final response",
        b"HTTP/1.1 103 OK\r\nConnection: close\r\n\r\n" + OK + FIVE,
        MalformedResponse,
    ),
    Row("9110 §15.2: unknown ones", b"HTTP/1.1 199 Odd\r\n\r\n" + OK + FIVE, HELLO),
    Row("9112 §6.3(1): with a needless length", b"HTTP/1.1 100 Continue\r\n" + NONE + OK + FIVE, HELLO),
    Row("9110 §15.2: before HEAD's response", CONTINUE + OK + b"Content-Length: 5\r\n\r\n", EMPTY, method=b"HEAD"),
    Row("9110 §8.6: with a length", b"HTTP/1.1 103 OK\r\n" + FIVE + OK + FIVE, MalformedResponse),
    Row(
        "9112 §6.1: with a coding",
        b"HTTP/1.1 103 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n" + OK + FIVE,
        MalformedResponse,
    ),
    Row(
        "9110 §8.6: with a length and no content",
        b"HTTP/1.1 103 OK\r\nContent-Length: 5\r\n\r\n" + OK + FIVE,
        MalformedResponse,
    ),
    Row(
        "9112 §6.1: with a coding and no content",
        b"HTTP/1.1 103 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + OK + FIVE,
        MalformedResponse,
    ),
    Row("9110 §15.2: and no final response", CONTINUE, Disconnected),
    Row("9110 §15.2: more than anybody needs", CONTINUE * 65 + OK + FIVE, MalformedResponse),
    Row(
        "9110 §15.2.2: 101",
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n",
        UnexpectedUpgrade,
    ),
    Row("9110 §15.2.2: 101 without words", b"HTTP/1.1 101 Switching Protocols\r\n\r\nabc", UnexpectedUpgrade),
    Row("9110 §15.2.2: 101 after 100", CONTINUE + b"HTTP/1.1 101 Switching Protocols\r\n\r\n", UnexpectedUpgrade),
]

ROWS: Final = [*STATUS_LINE, *FIELDS, *LENGTH, *CODING, *BODILESS, *CLOSE, *INTERIM]
