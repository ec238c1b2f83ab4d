"""Which meter a response gets."""

from __future__ import annotations

from typing import Protocol

from llm_proxy.proxy.headers import Headers, media_type
from llm_proxy.proxy.usage.body import BodyMeter
from llm_proxy.proxy.usage.events import EventMeter
from llm_proxy.proxy.usage.inflate import InflatingMeter
from llm_proxy.proxy.usage.tally import UNKNOWN, Usage


class UsageMeter(Protocol):
    """Reads the usage from a response as it passes. Never raises; cutting the bytes in another way changes nothing."""

    def feed(self, data: bytes) -> None:
        """Take the next piece of the body, as it came from upstream (without chunked framing)."""

    def result(self) -> Usage:
        """The usage that the body reported; call it once the body has ended, in whatever way."""


class _NullMeter:
    """For responses that report no usage, or none that can be read."""

    def feed(self, data: bytes) -> None:
        pass

    def result(self) -> Usage:
        return UNKNOWN


_NULL = _NullMeter()


def meter_for(status: int, headers: Headers, method: str = "POST") -> UsageMeter:
    """Pick the meter of a response by its `Content-Type` and `Content-Encoding`.

    Only a successful POST spends tokens: what a GET returns (a stored response, a finished run) tells again what was
    counted when it was made. Brotli, zstd and stacked encodings are not read, and yield an unknown usage.
    """
    if method != "POST" or not 200 <= status < 300:
        return _NULL
    kind, encoding = b"", b""
    for name, value in headers:
        if len(name) == 12 and name.lower() == b"content-type":
            kind = media_type(value)
        elif len(name) == 16 and name.lower() == b"content-encoding":
            encoding = encoding + b"," + value if encoding else value
    meter: UsageMeter
    if kind == b"text/event-stream":
        meter = EventMeter()
    elif kind == b"application/json" or kind.endswith(b"+json"):
        meter = BodyMeter()
    else:
        return _NULL
    encoding = encoding.strip(b" \t").lower()
    if encoding in (b"", b"identity"):
        return meter
    if encoding in (b"gzip", b"x-gzip"):
        return InflatingMeter(meter, "gzip")
    if encoding == b"deflate":
        return InflatingMeter(meter, "deflate")
    return _NULL
