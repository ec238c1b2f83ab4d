"""The content codings that the usage meter can read (RFC 9110 §8.4.1), and the part of `Accept-Encoding` with them.

A few kilobytes can decode to a huge body, so a decoder is an iterator over pieces. The caller limits the total.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import Final, Protocol

import brotli
import zstandard

#: Maximum number of bytes that a decoder returns, and takes, in one step.
PIECE: Final = 32 * 1024
_INPUT: Final = 4 * 1024

_GZIP_MAGIC: Final = b"\x1f\x8b"
_GZIP: Final = 16 + zlib.MAX_WBITS
_ZLIB: Final = zlib.MAX_WBITS
_RAW: Final = -zlib.MAX_WBITS

#: Start of a brotli stream with a window of 8 or 16 MiB (RFC 7932 §9.1).
_BROTLI_LARGE: Final = (0b1101, 0b1111)

#: Maximum window of a zstd frame in HTTP, in bytes (RFC 9659 §3).
_ZSTD_WINDOW: Final = 8 * 1024 * 1024
#: Bytes that zstd takes in one step. It has no limit for its output: four bytes can decode to 128 KiB.
_ZSTD_INPUT: Final = 64

_REFUSED: Final = re.compile(rb"[ \t]*;[ \t]*q[ \t]*=[ \t]*0(?:\.0*)?[ \t]*", re.IGNORECASE)


class Undecodable(Exception):
    """The body is not valid in its declared coding."""


class Decoder(Protocol):
    """Decodes one body."""

    @property
    def ended(self) -> bool:
        """Whether the body is complete so far: every member or frame that has begun has ended."""

    def decode(self, data: bytes) -> Iterator[bytes]:
        """Decode the next piece, as far as the iterator is advanced; may yield empty pieces. Raises `Undecodable`."""


class _Deflate:
    """gzip, possibly with several members (RFC 1952 §2.2), and deflate."""

    def __init__(self, *, is_gzip: bool) -> None:
        self._is_gzip = is_gzip
        #: The first bytes of a member, until they identify its format.
        self._start = b""
        self._member: zlib._Decompress | None = None
        self._members = 0
        #: The body is complete; the rest is padding.
        self._ended = False

    @property
    def ended(self) -> bool:
        return self._members > 0 and self._member is None

    def decode(self, data: bytes) -> Iterator[bytes]:
        for start in range(0, len(data), _INPUT):
            rest = data[start : start + _INPUT]
            decoded = b""
            while (rest or len(decoded) == PIECE) and not self._ended:
                if self._member is None:
                    rest = self._begin(rest)
                    decoded = b""
                    continue
                try:
                    decoded = self._member.decompress(rest, PIECE)
                except zlib.error:
                    raise Undecodable from None
                rest = self._member.unused_data if self._member.eof else self._member.unconsumed_tail
                if self._member.eof:
                    self._member = None
                yield decoded

    def _begin(self, data: bytes) -> bytes:
        """Begin a member; return the data from its first byte on."""
        self._start += data
        if len(self._start) < 2:
            return b""
        data, self._start = self._start, b""
        has_magic = data.startswith(_GZIP_MAGIC)
        if self._members and not (has_magic and self._is_gzip):
            self._ended = True
        elif self._is_gzip:
            self._member = zlib.decompressobj(_GZIP)
        else:  # RFC 9110 §8.4.1.2 requires zlib's format, but some servers omit its header
            has_header = data[0] & 0x0F == 8 and int.from_bytes(data[:2], "big") % 31 == 0
            self._member = zlib.decompressobj(_ZLIB if has_header else _RAW)
        self._members += 1
        return data


class _Brotli:
    """Brotli (RFC 7932) with windows up to the default of encoders.

    The decoder fills its window before it returns anything, so a larger one takes too long.
    """

    def __init__(self) -> None:
        self._decompressor = brotli.Decompressor()
        self._started = False

    @property
    def ended(self) -> bool:
        return bool(self._decompressor.is_finished())

    def decode(self, data: bytes) -> Iterator[bytes]:
        if data and not self._started:
            self._started = True
            if data[0] & 0x0F in _BROTLI_LARGE:
                raise Undecodable
        for start in range(0, len(data), _INPUT):
            rest = data[start : start + _INPUT]
            if start:
                yield b""
            if self._decompressor.is_finished():
                # In the step in which the stream ends the decoder refuses bytes behind it, and drops what it decoded.
                raise Undecodable
            while not self._decompressor.is_finished():
                try:
                    decoded = self._decompressor.process(rest, output_buffer_limit=PIECE)
                except brotli.error:
                    raise Undecodable from None
                if not decoded and self._decompressor.can_accept_more_data():
                    break  # only now the decoder has no more output
                yield decoded
                rest = b""


class _Zstd:
    """Zstandard (RFC 8878), possibly with several frames."""

    def __init__(self) -> None:
        self._decompressor = zstandard.ZstdDecompressor(max_window_size=_ZSTD_WINDOW)
        self._frame: zstandard.ZstdDecompressionObj | None = None
        #: Whether the last frame has ended.
        self.ended = False

    def decode(self, data: bytes) -> Iterator[bytes]:
        for start in range(0, len(data), _ZSTD_INPUT):
            rest = data[start : start + _ZSTD_INPUT]
            while rest:
                if self._frame is None:
                    self._frame = self._decompressor.decompressobj(write_size=PIECE)
                try:
                    decoded = self._frame.decompress(rest)
                except zstandard.ZstdError:
                    raise Undecodable from None
                self.ended = self._frame.eof
                rest = self._frame.unused_data
                if self.ended:
                    self._frame = None
                    yield b""
                for position in range(0, len(decoded), PIECE):
                    yield decoded[position : position + PIECE]


#: Creates the decoder of a body, by the name of its coding.
DECODERS: Final[dict[bytes, Callable[[], Decoder]]] = {
    b"gzip": lambda: _Deflate(is_gzip=True),
    b"br": _Brotli,
    b"zstd": _Zstd,
    b"deflate": lambda: _Deflate(is_gzip=False),
    b"x-gzip": lambda: _Deflate(is_gzip=True),
}


@lru_cache(maxsize=64)
def readable_offer(offer: bytes) -> bytes | None:
    """Reduce an `Accept-Encoding` to the readable codings (RFC 9110 §12.5.3); None if all of it is readable.

    `*` allows every coding, so it is replaced by the readable ones, with its weight. If none is readable, the result is
    `identity`: an empty value would allow any coding.
    """
    codings = [(item.partition(b";")[0].strip(b" \t").lower(), item.strip(b" \t")) for item in offer.split(b",")]
    named = {coding for coding, _ in codings}
    readable: list[bytes] = []
    for coding, item in codings:
        weight = item[len(coding) :]
        if coding in DECODERS or coding in (b"", b"identity") or (coding == b"*" and _REFUSED.fullmatch(weight)):
            readable.append(item)
        elif coding == b"*":
            readable += [name + weight for name in DECODERS if name not in named and not name.startswith(b"x-")]
    if readable == [item for _, item in codings]:
        return None
    return b", ".join(readable) or b"identity"
