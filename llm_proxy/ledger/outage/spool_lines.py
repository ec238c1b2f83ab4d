r"""What a spool file says: one line for each admission and each settlement, so that a damaged one spoils no other.

    <length> <checksum> <JSON>\n

Length and checksum are eight hexadecimal digits each: the bytes of the JSON, and the CRC-32 of the length's digits and
the JSON. The JSON has no line break in it. So the end of every line is known twice, by its length and by the break. A
line that was cut off by a crash, or changed on the disk, is recognised and left out, and reading goes on at the next.

The JSON is what the ledger's own rows are: ids, method, path, times, sizes, the outcome, and the SHA-256 digest of the
token. No secret, no key (not even a sealed one), no header, no body. A settlement holds everything that its admission
does, so that each of the two is enough to count the request.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterable
from typing import Final

import msgspec
from attrs import define, field, frozen

from db.records import Reservation, SettledRequest

#: What stands before the JSON: length and checksum, each with a space behind it.
_HEAD: Final = re.compile(rb"([0-9a-f]{8}) ([0-9a-f]{8}) ")
_HEAD_BYTES: Final = 18


class Admitted(msgspec.Struct, frozen=True, tag="admitted"):
    """A request was admitted by the worker alone, on the token that has this digest."""

    reservation: Reservation
    digest: bytes


class Settled(msgspec.Struct, frozen=True, tag="settled"):
    """Such a request has ended."""

    row: SettledRequest
    digest: bytes


Line = Admitted | Settled

_decoder: Final[msgspec.json.Decoder[Line]] = msgspec.json.Decoder(Line)
_encoder: Final = msgspec.json.Encoder()


@frozen
class Damage:
    """A part of a spool that says nothing: where it begins, and how many bytes it has.

    `torn` is the end of the file, as a crash in the middle of a write leaves it. Nobody was told that such a line is
    written, so that nothing followed from it.
    """

    offset: int
    length: int
    torn: bool


@define
class Contents:
    """What a spool says: the requests in it by id, each with its token's digest; and the parts that are damaged."""

    reservations: dict[str, tuple[Reservation, bytes]] = field(factory=dict)
    settled: dict[str, tuple[SettledRequest, bytes]] = field(factory=dict)
    damages: list[Damage] = field(factory=list)

    def __len__(self) -> int:
        """How many requests there are."""
        return len(self.reservations.keys() | self.settled.keys())

    def add(self, line: Line) -> None:
        """Take in one line."""
        if isinstance(line, Admitted):
            self.reservations[line.reservation.id] = (line.reservation, line.digest)
        else:
            self.settled[line.row.reservation.id] = (line.row, line.digest)


def encode(line: Line) -> bytes:
    """Write a line, with its break."""
    body = _encoder.encode(line)
    length = b"%08x" % len(body)
    return b"%s %08x %s\n" % (length, _checksum(length, body), body)


def decode(data: bytes) -> Contents:
    """Read a whole spool, whatever has happened to it."""
    contents = Contents()
    for piece in _pieces(data):
        if isinstance(piece, Damage):
            contents.damages.append(piece)
        else:
            contents.add(piece)
    return contents


def _pieces(data: bytes) -> Iterable[Line | Damage]:
    position = 0
    while position < len(data):
        head = _HEAD.match(data, position)
        if head is not None:
            start = position + _HEAD_BYTES
            body = data[start : start + int(head[1], 16)]
            line = _line(head, body)
            if line is not None:
                yield line
                # What stands in the place of the break, where it is damaged, is not looked at.
                position = start + len(body) + 1
                continue
        following = data.find(b"\n", position) + 1
        end = following or len(data)
        yield Damage(position, end - position, torn=following == 0)
        position = end


def _line(head: re.Match[bytes], body: bytes) -> Line | None:
    if len(body) != int(head[1], 16) or _checksum(head[1], body) != int(head[2], 16):
        return None
    try:
        return _decoder.decode(body)
    except msgspec.DecodeError:
        # Whole, and yet not what this version writes.
        return None


def _checksum(length: bytes, body: bytes) -> int:
    return zlib.crc32(body, zlib.crc32(length))
