"""Reads a compressed body for a meter, while the client gets it as it is.

What a few kilobytes inflate to is bounded twice, in pieces and in all, so that a body made to explode costs no memory
and little time. Behind a bound, or a fault in the compression, the usage is unknown.
"""

from __future__ import annotations

import zlib
from typing import TYPE_CHECKING, Literal

from attrs import define

from llm_proxy.proxy.usage.tally import UNKNOWN, Usage

if TYPE_CHECKING:
    from llm_proxy.proxy.usage.meter import UsageMeter

Encoding = Literal["gzip", "deflate"]

#: Most bytes that are inflated at a time.
_PIECE = 65536

#: Most bytes that a body may inflate to, and how many times its own length once it is past `_FREE`.
_MOST = 256 * 1024 * 1024
_RATIO = 100
_FREE = 4 * 1024 * 1024

_GZIP_MAGIC = b"\x1f\x8b"
_GZIP = 16 + zlib.MAX_WBITS
_ZLIB = zlib.MAX_WBITS
_RAW = -zlib.MAX_WBITS


@define
class InflatingMeter:
    """Inflates a body and hands it on to `meter`."""

    _meter: UsageMeter
    _encoding: Encoding
    #: The first bytes of a member, until there are enough to tell its format.
    _start: bytes = b""
    _member: zlib._Decompress | None = None
    _members: int = 0
    _taken: int = 0
    _given: int = 0
    #: `ended` ignores what comes after a complete body, `failed` forgets the body.
    _state: Literal["running", "ended", "failed"] = "running"

    def feed(self, data: bytes) -> None:
        """Take the next piece of the compressed body."""
        while data and self._state == "running":
            data = self._begin(data) if self._member is None else self._step(self._member, data)

    def result(self) -> Usage:
        """The usage that the body reported."""
        return UNKNOWN if self._state == "failed" else self._meter.result()

    def _begin(self, data: bytes) -> bytes:
        """Begin a member (RFC 1952 §2.2: gzip may have several); returns the data from its first byte on."""
        self._start += data
        if len(self._start) < 2:
            return b""
        data, self._start = self._start, b""
        is_gzip = data.startswith(_GZIP_MAGIC)
        if self._members and not (is_gzip and self._encoding == "gzip"):
            self._state = "ended"
        elif self._encoding == "gzip":
            self._member = zlib.decompressobj(_GZIP)
        else:  # RFC 9110 §8.4.1.2 means zlib's format, and some senders leave out its header
            has_header = data[0] & 0x0F == 8 and int.from_bytes(data[:2], "big") % 31 == 0
            self._member = zlib.decompressobj(_ZLIB if has_header else _RAW)
        self._members += 1
        return data

    def _step(self, member: zlib._Decompress, data: bytes) -> bytes:
        """Inflate at most `_PIECE` bytes at a time, until the data or the member ends; returns what comes after it."""
        while True:
            try:
                inflated = member.decompress(data, _PIECE)
            except zlib.error:
                self._state = "failed"
                return b""
            rest = member.unused_data if member.eof else member.unconsumed_tail
            self._taken += len(data) - len(rest)
            self._given += len(inflated)
            if self._given > _MOST or self._given > max(_FREE, _RATIO * self._taken):
                self._state = "failed"
                return b""
            self._meter.feed(inflated)
            if member.eof:
                self._member = None
                return rest
            if not rest and len(inflated) < _PIECE:
                return b""
            data = rest
