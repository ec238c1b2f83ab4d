"""The edit `stream_usage`: a stream of a chat is asked for its usage, and its client sees what it would see otherwise.

OpenAI's streams report their usage only if the request has `"stream_options": {"include_usage": true}`. Then one more
chunk has the usage and no choices, and all others have `"usage": null`
(https://platform.openai.com/docs/api-reference/chat/create). So the option is inserted into the text of a request that
does not have it, and the chunk and these members are removed from the answer. No other byte is changed: what cannot be
edited reliably is left as it is, and then the request is not asked, or the client sees the usage.

The body of the request must have arrived whole. It is not edited if it is compressed, or if a header has its digest.
"""

from __future__ import annotations

import re
from itertools import islice
from typing import TYPE_CHECKING, Final

import msgspec
from attrs import define, field

from llm_proxy.gateway.http.headers import DIGESTS, Headers
from llm_proxy.gateway.http.json_members import MALFORMED, members_of

if TYPE_CHECKING:
    from db.records import Project
    from llm_proxy.gateway.inbound import Inbound
    from llm_proxy.gateway.providers.provider import Provider

#: The name of this edit in `X-LLM-Proxy-Edited`.
EDIT: Final = b"stream_usage"
#: Maximum number of bytes of an incomplete event that are kept. A stream with a longer one is not edited any more.
LONGEST: Final = 1024 * 1024

#: Azure's versions that know the option; older ones refuse it. The path of a version 1 has none.
_AZURE_VERSION: Final = re.compile(rb"(?:^|&)api-version=(\d{4}-\d{2}-\d{2})")
_FIRST_AZURE_VERSION: Final = b"2024-10-21"

_STREAM: Final = b'"stream"'
_OPTION: Final = b'"include_usage":true'
_OPTIONS: Final = re.compile(rb'"stream_options"[ \t\r\n]*:[ \t\r\n]*\{')
#: Places that are tried: each costs as much as reading the body.
_CANDIDATES: Final = 16
_SPACE: Final = b" \t\r\n"
_BLANKS: Final = b" \t"

_USAGE: Final = b'"usage"'
_WRITTEN: Final = b',"usage":null'
#: What is in a text has backslashes before its quotes.
_NULL_USAGE: Final = re.compile(rb'"usage"[ \t]*:[ \t]*null')
_EVENT_END: Final = re.compile(rb"(?>\r\n|\n|\r)(?>\r\n|\n|\r)")
#: Bytes of an incomplete event that may belong to its end.
_MOST_OF_END: Final = 3

_ABSENT: Final = msgspec.Raw()
_TRUE: Final = msgspec.Raw(b"true")
_NULL: Final = msgspec.Raw(b"null")


class _Request(msgspec.Struct, gc=False):
    stream: msgspec.Raw = _ABSENT
    stream_options: msgspec.Raw = _ABSENT


class _Chunk(msgspec.Struct, gc=False):
    choices: msgspec.Raw = _ABSENT
    usage: msgspec.Raw = _ABSENT


_request = msgspec.json.Decoder(_Request).decode
_chunk = msgspec.json.Decoder(_Chunk).decode


def is_wanted(project: Project, provider: Provider, inbound: Inbound) -> bool:
    """Whether this request is asked for its usage if it is streamed: its path is that of a chat or of a completion."""
    if (
        (project.stream_usage or provider.stream_usage) != "ask"
        or inbound.method != "POST"
        or not inbound.route.path.endswith(b"/completions")
    ):
        return False
    version = _AZURE_VERSION.search(inbound.query)
    return version is None or version[1] >= _FIRST_AZURE_VERSION


def with_option(body: bytes, headers: Headers) -> bytes | None:
    """The body of a request with the option; None if it must stay as it is."""
    try:
        if _STREAM not in body or (request := _request(body)).stream != _TRUE:
            return None
        for name, value in headers:
            if name in DIGESTS or (name == b"content-encoding" and value.strip().lower() != b"identity"):
                return None
        if request.stream_options is _ABSENT:
            end = len(body.rstrip(_SPACE)) - 1
            return b'%b,"stream_options":{%b}%b' % (body[:end], _OPTION, body[end:])
        options = members_of(request.stream_options)
        if "include_usage" in options:
            return None
        edited = msgspec.Raw(b"{%b%b%b" % (_OPTION, b"," if options else b"", bytes(request.stream_options)[1:]))
        for match in islice(_OPTIONS.finditer(body), _CANDIDATES):
            at = match.end()
            candidate = b"%b%b%b%b" % (body[:at], _OPTION, b"," if options else b"", body[at:])
            # The name may also be that of an inner object's member.
            if _request(candidate).stream_options == edited:
                return candidate
    except MALFORMED:
        pass
    return None


@define
class StreamEditor:
    """Removes from an event stream what the option has added: `feed` it pieces, and send what it returns."""

    _pending: bytearray = field(factory=bytearray)
    #: The last event was removed, and its end was a CR, which may be the half of a CRLF.
    _after_cr: bool = False
    _passing: bool = False

    def feed(self, data: bytes) -> bytes:
        """Return the edited events that are complete with this piece; the rest is kept."""
        if self._passing:
            return data
        if self._after_cr and data:
            data, self._after_cr = data.removeprefix(b"\n"), False
        pending = self._pending
        if not pending and data.endswith((b"\n\n", b"\r\n\r\n")):
            # Whole events: nearly always. Often it is one.
            if _USAGE not in data:
                return data
            if data.find(b"\n\n") == len(data) - 2 and b"\r" not in data:
                return self._event(data)
        searched = max(0, len(pending) - _MOST_OF_END)
        pending += data
        edited, start = [], 0
        for match in _EVENT_END.finditer(pending, searched):
            edited.append(self._event(bytes(pending[start : match.end()])))
            start = match.end()
        del pending[:start]
        if len(pending) > LONGEST:
            self._passing = True
            edited.append(bytes(pending))
            pending.clear()
        return b"".join(edited)

    def end(self) -> bytes:
        """Return what is left at the end of the stream: an event without its empty line, if there is one."""
        rest = self._event(bytes(self._pending))
        self._pending.clear()
        return rest

    def _event(self, event: bytes) -> bytes:
        """Edit one event, with its end; before it, there may be empty lines."""
        if _USAGE not in event:
            return event
        document = _document(event)
        try:
            chunk = _chunk(document)
            if chunk.usage == _NULL:
                return _without_null(event, document)
        except MALFORMED:
            return event
        if not bytes(chunk.usage).startswith(b"{") or bytes(chunk.choices).translate(None, _SPACE) != b"[]":
            return event
        self._after_cr = event.endswith(b"\r")
        return event[: len(event) - len(event.lstrip(b"\r\n"))]


def _document(event: bytes) -> bytes:
    """The JSON text in an event (WHATWG HTML §9.2.6)."""
    if event.startswith(b"data:") and event.find(b"\n") == len(event) - 2 and b"\r" not in event:
        return event[len(b"data:") :]
    return b"\n".join([line[len(b"data:") :] for line in event.splitlines() if line.startswith(b"data:")])


def _without_null(event: bytes, document: bytes) -> bytes:
    """Remove the member and its comma: that before it, or that behind the first member."""
    if event.count(_USAGE) == 1 and (found := event.find(_WRITTEN)) >= 0:
        # As OpenAI writes it. What is behind it cannot be the rest of its value.
        return event[:found] + event[found + len(_WRITTEN) :]
    matches = list(_NULL_USAGE.finditer(event))
    for match in matches:
        before, after = event[: match.start()], event[match.end() :]
        if (previous := before.rstrip(_BLANKS)).endswith(b","):
            edited = previous[:-1] + after
        elif (following := after.lstrip(_BLANKS)).startswith(b","):
            edited = before + following[1:].lstrip(_BLANKS)
        else:
            continue
        if len(matches) == 1:
            return edited
        # Inner objects have such a member too.
        rest = members_of(document)
        del rest["usage"]
        if members_of(_document(edited)) == rest:
            return edited
    return event
