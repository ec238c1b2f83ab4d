"""A look at the lengths of HTTP/2 frames, ahead of the library that parses them."""

from __future__ import annotations

from typing import Final

_PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_HEADER: Final = 9
_LONGEST: Final = 16 * 1024
"""Octets in a frame, by RFC 9113 section 6.5.2 where the settings do not say otherwise."""


class FrameLengths:
    """Watches the lengths that frames announce, because h2 judges a frame only when all of it has been stored."""

    def __init__(self) -> None:
        """Begin in front of the connection preface."""
        self._skip = len(_PREFACE)
        self._header = b""

    def allow(self, data: bytes | bytearray) -> bool:
        """Take what was received; False when a frame is longer than we have allowed (RFC 9113 section 4.2)."""
        position = 0
        while position < len(data):
            if self._skip:
                step = min(self._skip, len(data) - position)
                self._skip -= step
            else:
                step = _HEADER - len(self._header)
                self._header += data[position : position + step]
                if len(self._header) == _HEADER:
                    self._skip = int.from_bytes(self._header[:3])
                    self._header = b""
                    if self._skip > _LONGEST:
                        return False
            position += step
        return True
