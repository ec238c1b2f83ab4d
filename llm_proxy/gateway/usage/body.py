"""Usage in a JSON body: kept and decoded at the end while it is small, scanned in constant memory once it is not."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from attrs import define, field

from llm_proxy.gateway.usage.scan import Scanner, read
from llm_proxy.gateway.usage.tally import BYTE_ORDER_MARK, Tally, Usage

#: Longest body, in bytes, that is kept. Which way is taken depends on the length alone, never on how it was cut.
KEPT = 32 * 1024

#: Bytes that are scanned at a time.
_SLICE = 16 * 1024


@define
class BodyMeter:
    """Meters a response whose body is one JSON document."""

    unmetered: bool = False
    #: Whether all that matters was seen, so that nothing of it is missing; known with the result.
    ended: bool = False
    _kept: bytearray = field(factory=bytearray)
    _scanner: Scanner | None = None
    _tally: Tally = field(factory=Tally)

    @property
    def failed(self) -> bool:
        """What a document says is told by its status."""
        return False

    def feed(self, data: bytes) -> Iterable[None]:
        """Take the next piece of the body; see `UsageMeter.feed`."""
        if self._scanner is None and len(self._kept) + len(data) <= KEPT:
            self._kept += data
            return ()
        return self._scan(data)

    def _scan(self, data: bytes) -> Iterator[None]:
        scanner = self._scanner
        if scanner is None:
            scanner = self._scanner = Scanner()
            data = bytes(self._kept) + data
            self._kept.clear()
        for start in range(0, len(data), _SLICE):
            if start:
                yield
            scanner.feed(data[start : start + _SLICE])

    def result(self, *, whole: bool = True) -> Usage:
        """The usage that the body reported; see `UsageMeter.result`."""
        tally = self._tally
        if self._scanner is not None:
            self._scanner.report(tally)
        else:
            read(bytes(self._kept.removeprefix(BYTE_ORDER_MARK)), tally)
        lacks = tally.cut_off and not tally.has_figures
        self.ended = not lacks and bool(self._kept or self._scanner)
        self.unmetered = tally.unread or (whole and lacks)
        return tally.result()
