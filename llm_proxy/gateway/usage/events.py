"""Usage in a stream of server-sent events (WHATWG HTML §9.2): lines, fields and events, as a browser reads them.

A stream has thousands of events, and two or three that matter: those with usage, the one that ends it, and one that
says that it has failed. So events are not taken apart unless they hold a word that matters: a look for a few words in
each chunk is nearly all the work. What is not a whole event yet is kept until the rest has come; an event that grows
too long to be kept is scanned as it passes.

Line ends are brought to LF first, across chunks, so that an empty line is always two LFs in a row.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

from attrs import define, field

from llm_proxy.gateway.usage.scan import Scanner, read
from llm_proxy.gateway.usage.tally import BYTE_ORDER_MARK, Tally, Usage

#: Longest event, in bytes, that is kept. Which way is taken depends on the length alone, never on how it was cut.
KEPT = 32 * 1024

#: Bytes that are handled at a time, where any of them matter.
_SLICE = 4 * 1024

_EMPTY_LINE = b"\n\n"
_DATA = b"data:"
_NAME = b"event:"
#: The data of the last event of OpenAI's streams and of those that imitate them.
_DONE = b"[DONE]"

#: What events have that matter: usage (most chunks of OpenAI's chat streams say `"usage":null`), and the words of those
#: that end a stream (see `tally.py`).
_WORDS = re.compile(
    rb'"usage"(?!: ?null)|error|\[DONE\]|message_stop|message-end|finishReason'
    rb"|response\.(?:completed|incomplete|failed)"
)

#: A candidate of Gemini's that is complete. Its streams have no event to end them: the last chunk says this.
_FINISHED = re.compile(rb'"finishReason"\s*:\s*"')


@define
class EventMeter:
    """Meters a response whose body is a stream of events."""

    _whole: bool = False
    _pending: bytearray = field(factory=bytearray)
    _long: _LongEvent | None = None
    _started: bool = False
    _after_cr: bool = False
    _tally: Tally = field(factory=Tally)

    @property
    def unmetered(self) -> bool:
        """Whether an event could not be read, or the stream breaks off inside of one."""
        tally = self._tally
        return tally.unread or (self._whole and tally.cut_off and not tally.ended)

    @property
    def ended(self) -> bool:
        """Whether the event that ends the stream was seen."""
        return self._tally.ended

    @property
    def failed(self) -> bool:
        """Whether an event was seen that says that the answer has failed."""
        return self._tally.failed

    def feed(self, data: bytes) -> Iterable[None]:
        """Take the next piece of the stream; see `UsageMeter.feed`."""
        if (
            data.endswith(_EMPTY_LINE)
            and not self._pending
            and len(data) <= KEPT
            and self._long is None
            and not self._matters(data)
        ):
            # Whole events, none of which matters: nearly always.
            self._started = True
            self._after_cr = False
            return ()
        return self._take(data)

    def _take(self, data: bytes) -> Iterator[None]:
        for start in range(0, len(data), _SLICE):
            if start:
                yield
            rest = self._line_feeds(data[start : start + _SLICE])
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
        """The usage that the stream reported; see `UsageMeter.result`.

        An event that was cut off by the end counts if it is whole apart from its empty line.
        """
        self._whole = whole
        self._end_long()
        self._event(bytes(self._pending).strip(b"\n"))
        self._pending.clear()
        return self._tally.result()

    def _line_feeds(self, data: bytes) -> bytes:
        """Turn CR LF and CR into LF; a CR at the end of a piece counts, and an LF at the start of the next does not."""
        if not data:
            return data
        if self._after_cr and data.startswith(b"\n"):
            data = data[1:]
            self._after_cr = False
        if b"\r" in data:
            self._after_cr = data.endswith(b"\r")
            return data.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        if data:
            self._after_cr = False
        return data

    def _gather(self, data: bytes) -> bytes:
        """Handle the events that are whole, keep the rest; returns what is left to do, the start of a long event."""
        pending = self._pending
        searched = max(len(pending) - 1, 0)
        pending += data
        if not self._started:
            if len(pending) < len(BYTE_ORDER_MARK) and BYTE_ORDER_MARK.startswith(pending):
                return b""
            self._started = True
            if pending.startswith(BYTE_ORDER_MARK):
                del pending[: len(BYTE_ORDER_MARK)]
        end = pending.rfind(_EMPTY_LINE, searched)
        if end >= 0:
            self._events(bytes(pending[:end]))
            del pending[: end + len(_EMPTY_LINE)]
        if pending.startswith(b"\n"):
            del pending[: len(pending) - len(pending.lstrip(b"\n"))]
        if len(pending) - pending.endswith(b"\n") <= KEPT:
            return b""
        start = bytes(pending)
        pending.clear()
        self._long = _LongEvent()
        return start

    def _events(self, text: bytes) -> None:
        if len(text) > KEPT or self._matters(text):
            for event in text.split(_EMPTY_LINE):
                self._event(event.strip(b"\n"))

    def _event(self, event: bytes) -> None:
        """Handle one whole event, without the empty lines round it."""
        if len(event) > KEPT:
            self._long = _LongEvent()
            self._long.feed(event)
            self._end_long()
            return
        if not self._matters(event):
            return
        if event.startswith(_DATA) and b"\n" not in event:
            document = event[len(_DATA) :]
        else:
            lines = event.split(b"\n")
            for line in lines:
                if line.startswith(_NAME):
                    self._tally.note(line[len(_NAME) :].strip(b" ").decode("latin-1"))
            document = b"\n".join([line[len(_DATA) :] for line in lines if line.startswith(_DATA)])
        if document.strip() == _DONE or _FINISHED.search(document):
            self._tally.ended = True
        if document:
            read(document, self._tally)

    def _matters(self, text: bytes) -> bool:
        return _WORDS.search(text) is not None or (not self._tally.model and b'"model"' in text)

    def _end_long(self) -> None:
        if self._long is not None:
            self._long.scanner.report(self._tally)
            self._long = None


@define
class _LongEvent:
    """An event that is too long to be kept: its data lines go through a scanner as they pass."""

    scanner: Scanner = field(factory=Scanner)
    ended: bool = False
    #: The start of a line, while it is too short to tell which field it is.
    _start: bytes = b""
    #: Whether the line is data; None at its start.
    _is_data: bool | None = None

    def feed(self, data: bytes) -> bytes:
        """Take the next piece (line ends are LF); returns what comes after the event, once it has ended."""
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
