"""Reads a compressed body for a meter, while the client gets it as it is.

What a few kilobytes decode to is bounded twice, in pieces and in all, so that a body made to explode costs no memory
and little time. Beyond a bound, or after a fault in the compression, the body is given up and its usage is unknown.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from attrs import define

from llm_proxy.gateway.http.codings import Decoder, Undecodable
from llm_proxy.gateway.usage.tally import UNKNOWN, Usage

if TYPE_CHECKING:
    from llm_proxy.gateway.usage.meter import UsageMeter

#: Most bytes that a body may decode to, and how many times its own length once it is past `_FREE`.
_MOST = 256 * 1024 * 1024
_RATIO = 100
_FREE = 1024 * 1024


@define
class DecodingMeter:
    """Decodes a body and hands it on to `meter`."""

    _meter: UsageMeter
    _decoder: Decoder
    _taken: int = 0
    _given: int = 0
    _given_up: bool = False
    _cut_off: bool = False

    @property
    def unmetered(self) -> bool:
        """Whether the body could not be decoded, or its usage not be read."""
        return self._given_up or self._cut_off or self._meter.unmetered

    @property
    def ended(self) -> bool:
        """Whether the event that ends the stream was seen."""
        return self._meter.ended

    @property
    def failed(self) -> bool:
        """Whether an event was seen that says that the answer has failed."""
        return self._meter.failed

    def feed(self, data: bytes) -> Iterable[None]:
        """Take the next piece of the compressed body; see `UsageMeter.feed`."""
        return () if self._given_up else self._take(data)

    def _take(self, data: bytes) -> Iterator[None]:
        self._taken += len(data)
        most = min(_MOST, max(_FREE, _RATIO * self._taken))
        first = True
        try:
            for decoded in self._decoder.decode(data):
                if not first:
                    yield
                first = False
                self._given += len(decoded)
                if self._given > most:
                    self._given_up = True
                    return
                yield from self._meter.feed(decoded)
        except Undecodable:
            self._given_up = True

    def result(self, *, whole: bool = True) -> Usage:
        """The usage that the body reported; see `UsageMeter.result`."""
        if self._given_up:
            return UNKNOWN
        usage = self._meter.result(whole=whole)
        self._cut_off = whole and self._taken > 0 and not (self._decoder.ended or self._meter.ended)
        return usage
