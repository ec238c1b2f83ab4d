"""Usage in a JSON body: kept and decoded at the end while it is small, scanned in constant memory once it is not."""

from __future__ import annotations

from attrs import define, field

from llm_proxy.proxy.usage.scan import Scanner, read
from llm_proxy.proxy.usage.tally import BYTE_ORDER_MARK, Tally, Usage

#: Longest body, in bytes, that is kept. Which way is taken depends on the length alone, never on how it was cut.
KEPT = 256 * 1024


@define
class BodyMeter:
    """Meters a response whose body is one JSON document."""

    _kept: bytearray = field(factory=bytearray)
    _scanner: Scanner | None = None
    _tally: Tally = field(factory=Tally)

    def feed(self, data: bytes) -> None:
        """Take the next piece of the body."""
        if self._scanner is not None:
            self._scanner.feed(data)
        elif len(self._kept) + len(data) <= KEPT:
            self._kept += data
        else:
            self._scanner = Scanner()
            self._scanner.feed(bytes(self._kept))
            self._scanner.feed(data)
            self._kept = bytearray()

    def result(self) -> Usage:
        """The usage that the body reported; call it once the body has ended, in whatever way."""
        if self._scanner is not None:
            self._scanner.report(self._tally)
        else:
            read(bytes(self._kept.removeprefix(BYTE_ORDER_MARK)), self._tally)
        return self._tally.result()
