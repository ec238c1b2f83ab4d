"""The meter of a response: JSON bodies, compressed bodies, and the choice between them and event streams."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from http import HTTPStatus
from typing import Final, Protocol

from attrs import define, field, frozen

from llm_proxy.gateway.http.codings import DECODERS, Decoder, Undecodable
from llm_proxy.gateway.http.headers import Headers, content_of
from llm_proxy.gateway.usage.events import EventMeter, LineMeter
from llm_proxy.gateway.usage.frames import FrameMeter
from llm_proxy.gateway.usage.results import RESULTS, ResultsMeter
from llm_proxy.gateway.usage.scan import Scanner, read
from llm_proxy.gateway.usage.shapes import UNKNOWN, Usage
from llm_proxy.gateway.usage.tally import BYTE_ORDER_MARK, Tally

#: Longest JSON body, in bytes, that is kept and decoded at its end. A longer one is scanned. Only the length decides,
#: never how the body was cut.
KEPT: Final = 32 * 1024

#: Bytes that are scanned in one step.
_SLICE: Final = 16 * 1024

#: Maximum size of a decoded body, and its maximum ratio to the encoded size above `_FREE` bytes.
#: Long streams repeat everything but a word in each event, and so are encoded to less than a hundredth.
_MAX_DECODED: Final = 256 * 1024 * 1024
_MAX_RATIO: Final = 300
_FREE: Final = 8 * 1024 * 1024

#: Streams, by their media type.
_STREAMS: Final[Mapping[bytes, Callable[[Tally], UsageMeter]]] = {
    b"text/event-stream": EventMeter,
    b"application/x-ndjson": LineMeter,
    b"application/jsonl": LineMeter,
    b"application/stream+json": LineMeter,
    b"application/vnd.amazon.eventstream": FrameMeter,
}

#: Bedrock's headers with the usage of InvokeModel.
_BEDROCK: Final = b"x-amzn-bedrock-"
_COUNT: Final = re.compile(rb"\d{1,12}")

#: Paths of OpenAI's models on Bedrock, whose Converse API counts cached tokens in the input.
_CACHE_INSIDE: Final = re.compile(rb"/model/(?:[a-z-]+\.)?openai\.")

#: Endpoints that make images.
_IMAGES: Final = (b"/images/generations", b"/images/edits", b"/images/variations")

#: A POST to a stored completion or to a run changes its metadata, and shows the old usage again.
_STORED: Final = re.compile(rb"/chat/completions/|/threads/[^/]+/runs/[^/]+\Z")


class UsageMeter(Protocol):
    """Reads the usage of a passing response. Never raises. The result does not depend on how the bytes were cut."""

    @property
    def unmetered(self) -> bool:
        """After `result`: whether the response may have reported usage that could not be read."""

    @property
    def ended(self) -> bool:
        """Whether the event that ends a stream has passed."""

    @property
    def failed(self) -> bool:
        """Whether an event has passed that reports a failure of the response."""

    @property
    def final(self) -> str:
        """After `result`: the status of the object in the response, if its usage does not change any more."""

    def feed(self, data: bytes) -> Iterable[None]:
        """Take the next piece of the body, without transfer coding.

        Some pieces take long to read. The caller must iterate over the returned steps before the next piece. Each step
        takes a few milliseconds at most. Nearly always there is none.
        """

    def result(self, *, whole: bool = True) -> Usage:
        """The usage that the body reported; call it once, after the body.

        If the provider ended the body (`whole`), an incomplete document is unmetered. Else the connection broke or the
        client disconnected, which the outcome records.
        """


@frozen
class _NullMeter:
    """For responses that report no usage, or none that can be read."""

    unmetered: bool = False
    ended: bool = False
    failed: bool = False
    final: str = ""

    def feed(self, data: bytes) -> Iterable[None]:
        return ()

    def result(self, *, whole: bool = True) -> Usage:
        return UNKNOWN


#: The final statuses of an object that was generated: if its answer has no usage, nobody says how much it was.
GENERATED: Final = frozenset({"completed", "incomplete"})

#: For requests without a response, and responses without usage.
NOTHING: Final[UsageMeter] = _NullMeter()
_UNREADABLE: Final[UsageMeter] = _NullMeter(unmetered=True)


@define
class BodyMeter:
    """Meters a body that is one JSON document."""

    _tally: Tally = field(factory=Tally)
    unmetered: bool = False
    #: Known with the result: the usage was read, or the document was complete.
    ended: bool = False
    #: The status says whether a JSON response has failed.
    failed: bool = False
    _kept: bytearray = field(factory=bytearray)
    _scanner: Scanner | None = None

    @property
    def final(self) -> str:
        return self._tally.final

    def feed(self, data: bytes) -> Iterable[None]:
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
        tally = self._tally
        if self._scanner is not None:
            self._scanner.report(tally)
        else:
            read(bytes(self._kept).removeprefix(BYTE_ORDER_MARK), tally)
        incomplete = tally.cut_off and not tally.counts
        self.ended = not incomplete and bool(self._kept or self._scanner)
        usage = tally.result()
        self.unmetered = tally.unread or (whole and incomplete)
        return usage


@define
class _Wrapper:
    """A meter that passes a body to another one."""

    _meter: UsageMeter

    @property
    def ended(self) -> bool:
        return self._meter.ended

    @property
    def failed(self) -> bool:
        return self._meter.failed

    @property
    def final(self) -> str:
        return self._meter.final


@define
class _Unbilled(_Wrapper):
    """For streams whose usage was counted before. Only how they end matters."""

    unmetered: bool = False

    def feed(self, data: bytes) -> Iterable[None]:
        return self._meter.feed(data)

    def result(self, *, whole: bool = True) -> Usage:
        return UNKNOWN


@define
class DecodingMeter(_Wrapper):
    """Decodes a compressed body for another meter, while the client receives it as it is.

    The decoded size is limited, so that a decompression bomb costs no memory and little time. Above the limit, or after
    an error in the compression, the rest is not read and the usage is unknown.
    """

    _decoder: Decoder
    _encoded: int = 0
    _decoded: int = 0
    _stopped: bool = False
    _cut_off: bool = False

    @property
    def final(self) -> str:
        return "" if self._stopped or self._cut_off else self._meter.final

    @property
    def unmetered(self) -> bool:
        return self._stopped or self._cut_off or self._meter.unmetered

    def feed(self, data: bytes) -> Iterable[None]:
        return () if self._stopped else self._decode(data)

    def _decode(self, data: bytes) -> Iterator[None]:
        self._encoded += len(data)
        limit = min(_MAX_DECODED, max(_FREE, _MAX_RATIO * self._encoded))
        first = True
        try:
            for decoded in self._decoder.decode(data):
                if not first:
                    yield
                first = False
                self._decoded += len(decoded)
                if self._decoded > limit:
                    self._stopped = True
                    return
                yield from self._meter.feed(decoded)
        except Undecodable:
            self._stopped = True

    def result(self, *, whole: bool = True) -> Usage:
        if self._stopped:
            return UNKNOWN
        usage = self._meter.result(whole=whole)
        self._cut_off = whole and self._encoded > 0 and not (self._decoder.ended or self._meter.ended)
        return usage


def meter_for(
    status: int, headers: Headers, method: str = "POST", path: bytes = b"", *, shows_usage: bool = False
) -> UsageMeter:
    """Select the meter of a response by its `Content-Type` and `Content-Encoding`.

    Only a successful POST spends tokens: a GET returns a stored response, whose usage was counted when it was created,
    unless the response `shows_usage` of an object that was generated later.
    Several codings in one response are not read, and neither are codings that `codings.py` does not know.
    """
    if not 200 <= status < 300:
        return NOTHING
    kind, coding = content_of(headers)
    is_billed = shows_usage or (method == "POST" and _STORED.search(path) is None)
    stream = _STREAMS.get(kind)
    meter: UsageMeter
    tally = Tally(images=path.endswith(_IMAGES))
    if shows_usage and b"/batches/" in path:
        tally.counts["tier"] = "batch"
    if b"/deferred-completion/" in path and status == HTTPStatus.OK:
        tally.final = "completed"
    if path.startswith(b"/model/"):
        _add_bedrock(tally, headers, path)
    if shows_usage and RESULTS.search(path):
        # A part of a file says nothing, and its media type neither.
        meter = ResultsMeter() if status == HTTPStatus.OK else NOTHING
    elif stream is not None:
        meter = stream(tally)
    elif is_billed and (kind == b"application/json" or kind.endswith(b"+json")):
        meter = BodyMeter(tally)
    else:
        return NOTHING
    if coding:
        if coding not in DECODERS:
            return _UNREADABLE if is_billed else NOTHING
        meter = DecodingMeter(meter, DECODERS[coding]())
    return meter if is_billed else _Unbilled(meter)


def _add_bedrock(tally: Tally, headers: Headers, path: bytes) -> None:
    """Add what Bedrock says outside of the body."""
    tally.inside = _CACHE_INSIDE.match(path) is not None
    found: dict[str, int | str] = {}
    for name, value in headers:
        if (lower := name.lower()).startswith(_BEDROCK):
            text = value.decode("latin-1")
            found[lower.removeprefix(_BEDROCK).decode("latin-1")] = int(text) if _COUNT.fullmatch(value) else text
    if "input-token-count" in found:
        found.setdefault("output-token-count", 0)  # embeddings
    tally.collect("x-amzn-bedrock", found)
