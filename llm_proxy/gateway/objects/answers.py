"""Finds the ids of objects in an answer as it passes: in a JSON document, or in the events of a stream.

An id counts only in its place (`table.YIELDS`): a client can make an answer contain any text elsewhere, such as in the
schema of a tool, and must not become the owner of an object in this way.

A document, or an event, is kept until it is complete, for `KEPT` bytes. Of a longer or incomplete one only its first
member is read. What is missed is not recorded, and then nobody else's: it is refused where a credential is shared.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any, Final

import msgspec

from llm_proxy.gateway.http.codings import DECODERS, Decoder, Undecodable
from llm_proxy.gateway.http.headers import EVENT_STREAM, Headers, content_of
from llm_proxy.gateway.usage.events import LineFeeds
from llm_proxy.ledger.isolation import OBJECT_ID
from llm_proxy.ledger.late import AWAITED

#: Maximum number of bytes of a document or an event that are kept.
KEPT: Final = 256 * 1024
#: Maximum number of ids of one answer.
MAX_IDS: Final = 500

#: The beginning of a document, and of an event of OpenAI's Responses API, with the id as its first member.
_FIRST: Final = re.compile(rb'\s*\{\s*"id"\s*:\s*"([\x21\x23-\x5b\x5d-\x7e]{1,255})"')
_FIRST_IN_EVENT: Final = re.compile(
    rb'(?:event:[^\n]*\n)?data: ?\{"type":"response\.[a-z_]+",(?:"sequence_number":\d+,)?"response":'
    rb'(\{"id":"[\x21\x23-\x5b\x5d-\x7e]{1,255}")'
)
#: What Google puts before the id of a file.
_COLLECTION: Final = "files/"
#: A response that is generated after its request. The member comes before those with text of the client.
_BACKGROUND: Final = "background_response"
_IS_BACKGROUND: Final = re.compile(rb'"background"\s*:\s*true')
_NEAR: Final = 256
_BLANK_LINE: Final = b"\n\n"
#: Kinds of objects that are events themselves, by their member `object`.
_EVENT_KINDS: Final[Mapping[str, str]] = {
    "thread": "thread",
    "thread.run": "run",
    "chat.completion.chunk": "completion",
}


class AnswerReader:
    """Reads one answer. `feed` it the pieces of the body, then `end` it.

    Attributes:
        done: nothing more can be found.
        awaited: the object whose usage comes later, if there is one.
    """

    def __init__(self, yields: Mapping[str, str], *, streamed: bool, decoder: Decoder | None) -> None:
        self.done = False
        self.awaited = ""
        self._yields = yields
        self._streamed = streamed
        self._decoder = decoder
        self._kept = bytearray()
        self._lines = LineFeeds()
        self._skipping = False
        self._seen: set[str] = set()
        if "output.id" in yields:
            self._markers: tuple[bytes, ...] = (b'"response"', b'"item"')
        elif "conversation_id" in yields:
            self._markers = (b'"conversation_id"', b'"file_id"')
        elif "container.id" in yields:
            self._markers = (b'"container"', b'"file_id"')
        else:
            self._markers = (b'"object"',)

    def feed(self, data: bytes, *, whole: bool) -> list[tuple[str, str]]:
        """Take the next piece, the last one if `whole`; return the ids that it has shown, with their kinds."""
        found: list[tuple[str, str]] = []
        try:
            for piece in (data,) if self._decoder is None else self._decoder.decode(data):
                if self.done:
                    break
                self._take(piece, found)
        except Undecodable:
            self.done = True
        if whole:
            found += self.end()
        return found

    def end(self) -> list[tuple[str, str]]:
        """The ids in a document that is complete, or has ended early."""
        found: list[tuple[str, str]] = []
        if not self.done and self._kept:
            rest = bytes(self._kept)
            if self._streamed:
                self._event(rest, found)
            else:
                self._document(rest, found)
        self.done = True
        self._kept.clear()
        return found

    def _take(self, data: bytes, found: list[tuple[str, str]]) -> None:
        if not self._streamed:
            self._kept += data
            if len(self._kept) > KEPT:
                self._first(_FIRST.match(self._kept), found)
                self.done = True
                self._kept.clear()
            return
        self._kept += self._lines.feed(data)
        while (end := self._kept.find(_BLANK_LINE)) >= 0 and not self.done:
            event = bytes(self._kept[:end])
            del self._kept[: end + 2]
            if not self._skipping:
                self._event(event, found)
            self._skipping = False
        if len(self._kept) > KEPT:
            match = None if self._skipping else _FIRST_IN_EVENT.match(self._kept.lstrip(b"\n"))
            if match is not None:
                self._first(_FIRST.match(match[1]), found)
            self._skipping = True
            # A blank line may be cut.
            del self._kept[:-1]

    def _event(self, event: bytes, found: list[tuple[str, str]]) -> None:
        if not any(marker in event for marker in self._markers):
            return
        data = b"".join(line[5:] for line in event.split(b"\n") if line.startswith(b"data:"))
        try:
            document = msgspec.json.decode(data)
        except (msgspec.DecodeError, UnicodeDecodeError):
            return
        if not isinstance(document, dict):
            return
        kind = _EVENT_KINDS.get(str(document.get("object")))
        if kind is not None and kind in self._yields.values():
            self._add(document.get("id"), kind, found)
            if kind == "completion":
                # All events have its id.
                self._objects(document, found)
                self._markers = (b'"audio"',)
        # Events of Mistral's conversations are flat.
        self._objects({"conversation_id": document.get("conversation_id"), "outputs": document}, found)
        for inner in ("response", "message", "delta"):
            self._objects(document.get(inner), found)
        self._objects({"output": document.get("item"), "content": document.get("content_block")}, found)

    def _document(self, text: bytes, found: list[tuple[str, str]]) -> None:
        names = [place.rpartition(".")[2].encode() for place in self._yields]
        if not any(b'"%b"' % name in text for name in names):
            return
        try:
            self._objects(msgspec.json.decode(text), found)
        except (msgspec.DecodeError, UnicodeDecodeError):
            self._first(_FIRST.match(text), found)

    def _objects(self, document: object, found: list[tuple[str, str]]) -> None:
        if isinstance(document, dict):
            background = document.get("background") is True
            for place, kind in self._yields.items():
                if kind == "deferred_completion" and "id" in document:
                    # The completion itself, with the provider's id of the request.
                    continue
                if background and kind == "response":
                    kind = _BACKGROUND  # noqa: PLW2901 - the same object
                for value in _values(document, place.split(".")):
                    self._add(value, kind, found)

    def _first(self, match: re.Match[bytes] | None, found: list[tuple[str, str]]) -> None:
        kind = self._yields.get("id")
        if match is not None and kind is not None:
            if kind == "response" and _IS_BACKGROUND.search(match.string, match.end(), match.end() + _NEAR):
                kind = _BACKGROUND
            self._add(match[1].decode("ascii"), kind, found)

    def _add(self, value: object, kind: str, found: list[tuple[str, str]]) -> None:
        if not isinstance(value, str) or value in self._seen or OBJECT_ID.fullmatch(value) is None:
            return
        if len(self._seen) < MAX_IDS:
            self._seen.add(value)
            object_id = value.removeprefix(_COLLECTION)
            found.append((object_id, kind))
            if kind in AWAITED:
                self.awaited = object_id


def reader_for(yields: Mapping[str, str], status: int, headers: Headers) -> AnswerReader | None:
    """The reader of a response; None if no object was created, or its body cannot be read."""
    if not 200 <= status < 300:
        return None
    kind, coding = content_of(headers)
    streamed = kind == EVENT_STREAM
    if not (streamed or kind == b"application/json" or kind.endswith(b"+json")):
        return None
    if not coding:
        return AnswerReader(yields, streamed=streamed, decoder=None)
    return AnswerReader(yields, streamed=streamed, decoder=DECODERS[coding]()) if coding in DECODERS else None


def _values(document: Any, place: list[str]) -> Iterator[object]:
    """The values in a place of a document, through lists."""
    if isinstance(document, list):
        for each in document:
            yield from _values(each, place)
    elif not place:
        yield document
    elif isinstance(document, dict) and place[0] in document:
        yield from _values(document[place[0]], place[1:])
