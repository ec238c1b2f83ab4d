"""Answers that no sane server gives: each fault is a script of bytes, pauses (seconds) and an ending."""

from __future__ import annotations

import gzip
from enum import Enum
from typing import Final

from attrs import frozen


class Ending(Enum):
    """What becomes of the connection after the last byte."""

    KEEP = "stays open for the next request"
    CLOSE = "closed with FIN"
    RESET = "closed with RST"
    HANG = "stays open in silence until the client leaves"


@frozen
class Fault:
    """A script: the bytes to send and the seconds to pause, in order, then the ending."""

    ending: Ending
    steps: tuple[bytes | float, ...] = ()


_JSON: Final = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n"
_SSE: Final = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
_EVENT: Final = b'data: {"choices":[]}\n\n'
_CHUNK: Final = b"%x\r\n%b\r\n" % (len(_EVENT), _EVENT)
_BOMB: Final = gzip.compress(bytes(16 * 1024 * 1024), 9, mtime=0)

#: What a request gets whose fault has no script.
UNKNOWN: Final = Fault(Ending.KEEP, (b"HTTP/1.1 400 Bad Request\r\ncontent-length: 22\r\n\r\nthere is no such fault",))

FAULTS: Final[dict[str, Fault]] = {
    # The connection breaks.
    "reset-early": Fault(Ending.RESET),
    "reset-in-head": Fault(Ending.RESET, (b"HTTP/1.1 200 OK\r\ncontent-t",)),
    "reset-in-body": Fault(Ending.RESET, (_JSON + b'content-length: 100\r\n\r\n{"id":', 0.02)),
    "reset-in-stream": Fault(Ending.RESET, (_SSE + _CHUNK * 3, 0.02)),
    "close-early": Fault(Ending.CLOSE),
    "close-in-head": Fault(Ending.CLOSE, (b"HTTP/1.1 200 OK\r\ncontent-t",)),
    "close-in-stream": Fault(Ending.CLOSE, (_SSE + _CHUNK * 3,)),
    "close-in-chunk": Fault(Ending.CLOSE, (_SSE + _CHUNK + b"20\r\ndata: ",)),
    # Silence and slowness.
    "hang": Fault(Ending.HANG),
    "hang-in-head": Fault(Ending.HANG, (b"HTTP/1.1 200 OK\r\n",)),
    "hang-in-stream": Fault(Ending.HANG, (_SSE + _CHUNK,)),
    "drip-head": Fault(Ending.KEEP, tuple(x for byte in _JSON for x in (bytes([byte]), 1.0))),
    "drip-body": Fault(
        Ending.KEEP, (_JSON + b"content-length: 20\r\n\r\n", *(x for _ in range(20) for x in (b" ", 1.0)))
    ),
    # Framing (RFC 9112 section 6).
    "short-body": Fault(Ending.CLOSE, (_JSON + b"content-length: 100\r\n\r\n{}",)),
    "long-body": Fault(Ending.KEEP, (_JSON + b"content-length: 2\r\n\r\n{}HTTP/1.1 200 OK\r\n\r\n{}",)),
    "bad-chunk": Fault(Ending.CLOSE, (_SSE + _CHUNK + b"zz\r\noops\r\n",)),
    "bad-chunk-end": Fault(Ending.CLOSE, (_SSE + b"2\r\n{}XX" + b"0\r\n\r\n",)),
    "two-lengths": Fault(Ending.KEEP, (_JSON + b"content-length: 2\r\ncontent-length: 3\r\n\r\n{} ",)),
    "length-and-chunked": Fault(
        Ending.KEEP, (_JSON + b"content-length: 2\r\ntransfer-encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n",)
    ),
    "until-close": Fault(Ending.CLOSE, (_JSON + b"\r\n{}",)),
    # Heads.
    "switching": Fault(
        Ending.KEEP, (b"HTTP/1.1 101 Switching Protocols\r\nupgrade: x\r\nconnection: upgrade\r\n\r\n",)
    ),
    "interim": Fault(
        Ending.KEEP,
        (b"HTTP/1.1 103 Early Hints\r\nlink: </x>\r\n\r\n" + _JSON + b"content-length: 2\r\n\r\n{}",),
    ),
    "endless-interim": Fault(Ending.HANG, (b"HTTP/1.1 103 Early Hints\r\n\r\n" * 20_000,)),
    "bare-cr-header": Fault(Ending.KEEP, (_JSON + b"x-a: 1\rx-b: 2\r\ncontent-length: 2\r\n\r\n{}",)),
    "nul-header": Fault(Ending.KEEP, (_JSON + b"x-a: 1\x002\r\ncontent-length: 2\r\n\r\n{}",)),
    "folded-header": Fault(Ending.KEEP, (_JSON + b"x-a: 1\r\n set-cookie: a=b\r\ncontent-length: 2\r\n\r\n{}",)),
    "huge-header": Fault(Ending.KEEP, (_JSON + b"x-a: " + b"a" * 10_000_000 + b"\r\ncontent-length: 2\r\n\r\n{}",)),
    "many-headers": Fault(Ending.KEEP, (_JSON + b"x-a: 1\r\n" * 200_000 + b"content-length: 2\r\n\r\n{}",)),
    "garbage": Fault(Ending.CLOSE, (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" * 10,)),
    "bad-status": Fault(Ending.KEEP, (b"HTTP/1.1 2000 OK\r\ncontent-length: 2\r\n\r\n{}",)),
    # Bodies.
    "gzip-bomb": Fault(
        Ending.KEEP,
        (_JSON + b"content-encoding: gzip\r\ncontent-length: %d\r\n\r\n" % len(_BOMB) + _BOMB,),
    ),
}
