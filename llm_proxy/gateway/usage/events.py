"""Usage in a stream of server-sent events (WHATWG HTML §9.2): lines, fields and events, as a browser reads them.

A stream has thousands of events, and two or three are relevant: those with usage, the one that ends the stream, and one
that reports a failure. So an event is parsed only if it contains one of a few words, and the search for these words is
nearly all the work. An incomplete event is kept until the rest arrives. One that is too long to keep is scanned as it
passes. Gemini repeats the usage in each event, so only the last one is parsed.

Line ends are converted to LF first, across pieces, so that an empty line is always two LFs.

A stream of lines of JSON is read in the same way: each line is an event.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import ClassVar

from attrs import define, field

from llm_proxy.gateway.usage.scan import Scanner, read
from llm_proxy.gateway.usage.shapes import Usage
from llm_proxy.gateway.usage.tally import BYTE_ORDER_MARK, StreamMeter

#: Longest event, in bytes, that is kept. A longer one is scanned. Only the length decides, never how it was cut.
KEPT = 32 * 1024

#: Bytes that are processed in one step, if any of them are relevant.
_SLICE = 4 * 1024

_DATA = b"data:"
_NAME = b"event:"
#: The beginning of the names of all members with usage in events.
_USAGE = b'"usage'
#: Gemini's name of a count that all complete reports have.
_GEMINI = b'"promptTokenCount"'
#: The data of the last event of OpenAI's streams, and of compatible ones.
_DONE = b"[DONE]"

#: Most chunks of OpenAI's chat streams have it.
_NO_USAGE = (b'"usage":null', b'"usage": null')
#: The types of events of OpenAI's Responses API that end a stream.
_RESPONSE_END = re.compile(rb"response\.(?:completed|incomplete|failed)")

#: A complete candidate of Gemini. Its streams have no last event: the last chunk contains this.
_FINISHED = re.compile(rb'"finishReason"\s*:\s*"')


@define
class LineFeeds:
    """Converts the line ends of a stream that comes in pieces cut anywhere: CR, LF and CRLF become LF.

    Attributes:
        after_cr: the last piece ended with CR, so that LF at the start of the next one is no line of its own.
    """

    after_cr: bool = False

    def feed(self, data: bytes) -> bytes:
        if not data:
            return data
        if self.after_cr and data.startswith(b"\n"):
            data = data[1:]
        self.after_cr = data.endswith(b"\r")
        return data.replace(b"\r\n", b"\n").replace(b"\r", b"\n") if b"\r" in data else data


@define
class EventMeter(StreamMeter):
    """Meters a body that is a stream of events."""

    #: What ends an event, behind its last line.
    _end: ClassVar[bytes] = b"\n\n"

    _pending: bytearray = field(factory=bytearray)
    _long: _LongEvent | None = None
    _started: bool = False
    _lines: LineFeeds = field(factory=LineFeeds)
    #: The last event of Gemini, if it is not parsed.
    _latest: bytes = b""

    @property
    def unmetered(self) -> bool:
        """See `UsageMeter.unmetered`: an event could not be read, or the stream ends inside of one."""
        tally = self._tally
        return tally.unread or (self._whole and tally.cut_off and not tally.ended)

    def feed(self, data: bytes) -> Iterable[None]:
        if data.endswith(self._end) and not self._pending and len(data) <= KEPT and self._long is None:
            # Whole events: nearly always.
            relevant = self._is_relevant(data)
            if not relevant or (len(data) <= _SLICE and b"\r" not in data and not data.startswith(BYTE_ORDER_MARK)):
                self._started = True
                self._lines.after_cr = False
                if relevant:
                    self._events(data)
                return ()
        return self._take(data)

    def _take(self, data: bytes) -> Iterator[None]:
        for start in range(0, len(data), _SLICE):
            if start:
                yield
            rest = self._lines.feed(data[start : start + _SLICE])
            while rest:
                if self._long is None:
                    rest = self._gather(rest)
                else:
                    rest = self._long.feed(rest[:_SLICE]) + rest[_SLICE:]
                    if self._long.ended:
                        self._end_long()
                    if rest:
                        yield

    def result(self, *, whole: bool = True) -> Usage:
        """See `UsageMeter.result`. An event that the end cuts off counts if only its empty line is missing."""
        self._whole = whole
        self._end_long()
        pending = bytes(self._pending).strip(b"\n")
        if self._is_relevant(pending):
            self._event(pending)
        self._pending.clear()
        self._read_latest()
        return self._tally.result()

    def _read_latest(self) -> None:
        if self._latest:
            read(self._latest, self._tally)
            self._latest = b""

    def _gather(self, data: bytes) -> bytes:
        """Read complete events and keep the rest; return the start of an event that is too long to keep, or nothing."""
        pending = self._pending
        searched = max(len(pending) - 1, 0)
        pending += data
        if not self._started:
            if len(pending) < len(BYTE_ORDER_MARK) and BYTE_ORDER_MARK.startswith(pending):
                return b""
            self._started = True
            if pending.startswith(BYTE_ORDER_MARK):
                del pending[: len(BYTE_ORDER_MARK)]
        end = pending.rfind(self._end, searched)
        if end >= 0:
            text = bytes(pending[:end])
            if end > KEPT or self._is_relevant(text):
                self._events(text)
            del pending[: end + len(self._end)]
        if pending.startswith(b"\n"):
            del pending[: len(pending) - len(pending.lstrip(b"\n"))]
        if len(pending) - pending.endswith(b"\n") <= KEPT:
            return b""
        start = bytes(pending)
        pending.clear()
        self._long = self._long_event()
        return start

    def _events(self, text: bytes) -> None:
        """Read complete events, at least one of which is relevant or long."""
        events = text.strip(b"\n").split(self._end)
        for event in events:
            if len(events) == 1 or len(event) > KEPT or self._is_relevant(event):
                self._event(event.strip(b"\n"))

    def _event(self, event: bytes) -> None:
        if len(event) > KEPT:
            self._long = self._long_event()
            self._long.feed(event)
            self._end_long()
            return
        document = self._document(event)
        if document.strip() == _DONE:
            self._tally.ended = True
        elif document:
            if _FINISHED.search(document):
                self._tally.ended = True
            if _GEMINI in document and b"error" not in document:
                self._latest = document
            else:
                self._read_latest()
                read(document, self._tally)

    def _document(self, event: bytes) -> bytes:
        """The JSON text in an event."""
        if event.startswith(_DATA) and b"\n" not in event:
            return event[len(_DATA) :]
        lines = event.split(b"\n")
        for line in lines:
            if line.startswith(_NAME):
                self._tally.add_type(line[len(_NAME) :].strip(b" "))
        return b"\n".join([line[len(_DATA) :] for line in lines if line.startswith(_DATA)])

    def _long_event(self) -> _LongEvent:
        return _LongEvent()

    def _is_relevant(self, text: bytes) -> bool:
        """Whether it contains usage, an end, a failure, or the model if that is not known yet."""
        if (not self._tally.model and b'"model"' in text) or (
            b"error" in text
            or _DONE in text
            or (b"message" in text and (b"message_stop" in text or b"message-end" in text))
            or b"finishReason" in text
            or (b"response." in text and _RESPONSE_END.search(text) is not None)
        ):
            return True
        found = text.find(_USAGE)
        return found >= 0 and has_usage(text, found)

    def _end_long(self) -> None:
        if self._long is not None:
            self._long.scanner.report(self._tally)
            self._long = None


@define
class LineMeter(EventMeter):
    """Meters a body that is a stream of lines of JSON: of Ollama, and of Cohere v1."""

    _end: ClassVar[bytes] = b"\n"

    def _document(self, event: bytes) -> bytes:
        return event

    def _long_event(self) -> _LongEvent:
        return _LongEvent(is_line=True)

    def _is_relevant(self, text: bytes) -> bool:
        return (
            (not self._tally.model and b'"model"' in text)
            or b"eval_count" in text
            or b'"done":true' in text
            or b"billed_units" in text
            or b"error" in text
            or b"stream-end" in text
            or has_usage(text)
        )


def has_usage(text: bytes, start: int = 0) -> bool:
    """Whether a text contains usage that is not null."""
    found = text.find(_USAGE, start)
    while found >= 0 and text.startswith(_NO_USAGE, found):
        found = text.find(_USAGE, found + len(_USAGE))
    return found >= 0


@define
class _LongEvent:
    """An event that is too long to keep: its data lines go through a scanner as they pass."""

    is_line: bool = False
    scanner: Scanner = field(factory=Scanner)
    ended: bool = False
    #: The start of a line, as long as it is too short to identify the field.
    _start: bytes = b""
    #: Whether the line is data; None at its start.
    _is_data: bool | None = None

    def feed(self, data: bytes) -> bytes:
        """Take the next piece, with LF as line end; return what follows the end of the event."""
        if self.is_line:
            line, newline_found, rest = data.partition(b"\n")
            self.scanner.feed(line)
            self.ended = bool(newline_found)
            return rest
        position = 0
        while position < len(data):
            newline = data.find(b"\n", position)
            end = newline if newline >= 0 else len(data)
            if self._is_data is None:
                end = min(end, position + len(_DATA) - len(self._start))
                self._start += data[position:end]
                if len(self._start) == len(_DATA):
                    self._is_data = self._start == _DATA
                elif end == newline:
                    self.ended = not self._start
                    end += 1
                    if self.ended:
                        return data[end:]
                    self._start = b""
            else:
                if self._is_data:
                    self.scanner.feed(data[position:end])
                if end == newline:
                    self._is_data = None
                    self._start = b""
                    end += 1
            position = end
        return b""
