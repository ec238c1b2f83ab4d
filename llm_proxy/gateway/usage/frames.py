"""Usage in an AWS event stream (`application/vnd.amazon.eventstream`): the frames of Bedrock's streams.

A frame has a prelude (length of the frame, length of its headers, checksum), headers, a payload in JSON, a checksum.
Checksums are the client's business. ConverseStream reports the usage in its last frame, `metadata`. The frames of
InvokeModelWithResponseStream contain events of the model in base64, the last one with Bedrock's own metrics.

A frame that is too long to keep is a long text, or a `metadata` with the trace of a guardrail: its payload is scanned.

Sources:
    https://docs.aws.amazon.com/transcribe/latest/dg/streaming-setting-up.html
    https://docs.aws.amazon.com/bedrock/latest/APIReference/API_runtime_ConverseStream.html
    https://docs.aws.amazon.com/bedrock/latest/APIReference/API_runtime_InvokeModelWithResponseStream.html
"""

from __future__ import annotations

import binascii
from collections.abc import Iterable, Iterator

from attrs import define, field

from llm_proxy.gateway.usage.events import has_usage
from llm_proxy.gateway.usage.scan import Scanner, read
from llm_proxy.gateway.usage.shapes import Usage
from llm_proxy.gateway.usage.tally import StreamMeter, decode

#: Longest frame, in bytes, that is kept. Only the length decides, never how it was cut.
KEPT = 32 * 1024

#: Longest frame, and longest headers, that the format allows.
_MAX_FRAME = 24 * 1024 * 1024
_MAX_HEADERS = 128 * 1024

_PRELUDE = 12
_CHECKSUM = 4
#: Bytes that are processed in one step.
_SLICE = 4 * 1024

_METRICS = b"amazon-bedrock-invocationMetrics"


@define
class FrameMeter(StreamMeter):
    """Meters a body that is an AWS event stream."""

    _pending: bytearray = field(factory=bytearray)
    #: Of a long frame: bytes of headers and of payload that are still to come, and the scanner of its payload.
    _headers: int = 0
    _payload: int = 0
    _scanner: Scanner | None = None
    #: This is no event stream, or not any more.
    _broken: bool = False

    @property
    def unmetered(self) -> bool:
        tally = self._tally
        return tally.unread or self._broken or (self._whole and tally.cut_off and not tally.ended)

    def feed(self, data: bytes) -> Iterable[None]:
        if len(data) <= _SLICE:
            self._take(data)
            return ()
        return self._slices(data)

    def _slices(self, data: bytes) -> Iterator[None]:
        for start in range(0, len(data), _SLICE):
            if start:
                yield
            self._take(data[start : start + _SLICE])

    def result(self, *, whole: bool = True) -> Usage:
        """See `UsageMeter.result`. A frame that the end cuts off does not count."""
        self._whole = whole
        self._tally.cut_off |= bool(self._pending) or self._scanner is not None
        return self._tally.result()

    def _take(self, data: bytes) -> None:
        pending = self._pending
        pending += data
        start = 0
        while not self._broken:
            if self._scanner is not None:
                start = self._scan(start)
                if self._scanner is not None:
                    break
            if len(pending) - start < _PRELUDE:
                break
            length = int.from_bytes(pending[start : start + 4], "big")
            headers = int.from_bytes(pending[start + 4 : start + 8], "big")
            payload = length - _PRELUDE - headers - _CHECKSUM
            if length > _MAX_FRAME or headers > _MAX_HEADERS or payload < 0:
                self._broken = True
            elif length > KEPT:
                self._scanner, self._headers, self._payload = Scanner(), headers, payload
                start += _PRELUDE
            elif len(pending) - start < length:
                break
            else:
                body = start + _PRELUDE + headers
                self._frame(bytes(pending[start + _PRELUDE : body]), bytes(pending[body : body + payload]))
                start += length
        del pending[: len(pending) if self._broken else start]

    def _scan(self, start: int) -> int:
        """Scan the payload of a long frame; return the position after what has been read of the frame."""
        pending, scanner = self._pending, self._scanner
        skipped = min(self._headers, len(pending) - start)
        self._headers -= skipped
        start += skipped
        taken = min(self._payload, len(pending) - start)
        if scanner is not None and taken:
            scanner.feed(bytes(pending[start : start + taken]))
        self._payload -= taken
        start += taken
        if scanner is not None and not self._headers and not self._payload and len(pending) - start >= _CHECKSUM:
            scanner.report(self._tally)
            self._scanner = None
            start += _CHECKSUM
        return start

    def _frame(self, headers: bytes, payload: bytes) -> None:
        tally = self._tally
        if b"exception" in headers or b":error-code" in headers:
            tally.failed = True
        elif has_usage(payload):
            read(payload, tally)
            tally.ended |= b"metadata" in headers
        elif b'"bytes"' in payload:
            chunk = decode(payload)
            try:
                text = binascii.a2b_base64(chunk["bytes"]) if isinstance(chunk, dict) else b""
            except (binascii.Error, KeyError, TypeError, ValueError):
                tally.unread = True
                return
            if has_usage(text) or _METRICS in text or (not tally.model and b'"model"' in text):
                read(text, tally)
                tally.ended |= _METRICS in text
