r"""Spool files in the first format, which servers of the previous version leave behind.

Such a file is locked (flock) by the worker that writes it. Each record is a line:

    <length> <checksum> <JSON>\n

Length and checksum have eight hexadecimal digits: the number of bytes of the JSON, and the CRC-32 of the length's
digits and the JSON.
"""

from __future__ import annotations

import fcntl
import os
import re
import zlib
from io import FileIO
from pathlib import Path
from typing import Self

import msgspec
from attrs import frozen

from db.errors import FileInUse

_HEAD = re.compile(rb"([0-9a-f]{8}) ([0-9a-f]{8}) ")
_HEAD_BYTES = 18


@frozen(eq=False)
class FirstFormatFile:
    """An open and locked file of a worker that has stopped."""

    path: Path
    _file: FileIO

    @classmethod
    def open(cls, path: Path) -> Self:
        """Open and lock the file. Raises OSError, and FileInUse if its worker is running."""
        file = FileIO(os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW), "rb")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            file.close()
            raise FileInUse(f"another process is using {path}") from error
        return cls(path, file)

    def read(self) -> tuple[list[bytes], bool]:
        """The records as `Settlement`s; True if a line is damaged. Raises OSError.

        A last line that was cut off is no damage: it was never reported as written, so that nothing was sent on it.
        """
        data = self._file.readall()
        records: list[bytes] = []
        position, damaged = 0, False
        while position < len(data):
            head = _HEAD.match(data, position)
            start = position + _HEAD_BYTES
            body = data[start : start + int(head[1], 16)] if head else b""
            if head and len(body) == int(head[1], 16) and zlib.crc32(head[1] + body) == int(head[2], 16):
                records.append(_convert(body))
                position = start + len(body) + 1
            else:
                end = data.find(b"\n", position)
                damaged = damaged or end >= 0
                position = end + 1 or len(data)
        return records, damaged

    def remove(self, *, damaged: bool = False) -> None:
        """Delete the file, or rename it to `….damaged`. Raises OSError."""
        if damaged:
            self.path.rename(self.path.with_name(self.path.name + ".damaged"))
        else:
            self.path.unlink(missing_ok=True)

    def close(self) -> None:
        self._file.close()


def _convert(body: bytes) -> bytes:
    record = msgspec.json.decode(body)
    columns = {"outcome": "unknown", **(record.get("row") or record.get("reservation") or {})}
    settled_at = columns.get("settled_at", columns.get("admitted_at"))
    row = {"reservation": columns, "result": columns, "settled_at": settled_at}
    return msgspec.json.encode({"row": row, "digest": record.get("digest")})
