"""Which meter a response gets."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final, Protocol

from attrs import frozen

from llm_proxy.gateway.http.codings import DECODERS
from llm_proxy.gateway.http.headers import Headers, media_type
from llm_proxy.gateway.usage.body import BodyMeter
from llm_proxy.gateway.usage.decoding import DecodingMeter
from llm_proxy.gateway.usage.events import EventMeter
from llm_proxy.gateway.usage.tally import UNKNOWN, Usage

#: Streams that report usage in a form that is not read: JSON by the line, and that of AWS.
_UNREAD_STREAMS = frozenset({b"application/x-ndjson", b"application/jsonl", b"application/vnd.amazon.eventstream"})


class UsageMeter(Protocol):
    """Reads the usage from a response as it passes. Never raises; cutting the bytes in another way changes nothing."""

    @property
    def unmetered(self) -> bool:
        """Whether the response may have reported usage that could not be read; asked after `result`."""

    @property
    def ended(self) -> bool:
        """Whether the event that ends a stream has passed, after which nothing is missing."""

    @property
    def failed(self) -> bool:
        """Whether an event has passed that says that the answer has failed."""

    def feed(self, data: bytes) -> Iterable[None]:
        """Take the next piece of the body, as it came from upstream (without chunked framing).

        Some pieces take long to read. So iterate over what is returned, to its end, before the next piece: each step
        takes a few milliseconds at most. It is empty where nothing is left to do, which is nearly always.
        """

    def result(self, *, whole: bool = True) -> Usage:
        """The usage that the body reported; call it once the body has ended, in whatever way.

        Args:
            whole: the provider ended the body, so one that is incomplete in itself is unmetered. Where it broke off or
                the client left, the outcome tells that.
        """


@frozen
class _NullMeter:
    """For responses that report no usage, or none that can be read."""

    unmetered: bool = False
    ended: bool = False
    failed: bool = False

    def feed(self, data: bytes) -> Iterable[None]:
        return ()

    def result(self, *, whole: bool = True) -> Usage:
        return UNKNOWN


@frozen
class _Unbilled:
    """For streams whose usage was counted before: only how they end matters."""

    _meter: UsageMeter
    unmetered: bool = False

    @property
    def ended(self) -> bool:
        return self._meter.ended

    @property
    def failed(self) -> bool:
        return self._meter.failed

    def feed(self, data: bytes) -> Iterable[None]:
        return self._meter.feed(data)

    def result(self, *, whole: bool = True) -> Usage:
        return UNKNOWN


#: For what has no response, or none that reports usage.
NOTHING: Final[UsageMeter] = _NullMeter()
_UNREADABLE = _NullMeter(unmetered=True)


def meter_for(status: int, headers: Headers, method: str = "POST") -> UsageMeter:
    """Pick the meter of a response by its `Content-Type` and `Content-Encoding`.

    Only a successful POST spends tokens: what a GET returns (a stored response, a finished run) tells again what was
    counted when it was made. Stacked codings are not read, and neither are those that `codings.py` does not know.
    """
    if not 200 <= status < 300:
        return NOTHING
    kind, coding = b"", b""
    for name, value in headers:
        if len(name) == 12 and name.lower() == b"content-type":
            kind = media_type(value)
        elif len(name) == 16 and name.lower() == b"content-encoding":
            coding = coding + b"," + value if coding else value
    is_post = method == "POST"
    meter: UsageMeter
    if kind == b"text/event-stream":
        meter = EventMeter()
    elif is_post and (kind == b"application/json" or kind.endswith(b"+json")):
        meter = BodyMeter()
    else:
        return _UNREADABLE if is_post and kind in _UNREAD_STREAMS else NOTHING
    coding = coding.strip(b" \t").lower()
    if coding not in (b"", b"identity"):
        if coding not in DECODERS:
            return _UNREADABLE if is_post else NOTHING
        meter = DecodingMeter(meter, DECODERS[coding]())
    return meter if is_post else _Unbilled(meter)
