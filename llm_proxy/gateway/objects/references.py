r"""The ids of objects in a request body.

In JSON, an id is a string in a member of one of these names, at any depth (`_NAMES`): the string itself, each string of
a list, or the `id` or `uri` of an object or of the objects of a list (`_OWNERS`). Items that a client sends back are
named by `id`: those of a type that the provider looks up (`item_reference`, reasoning, a generated image), and those
that are nothing but an id. So the list is that of the APIs' documentation, and not one of forms of ids: a message may
say `file-1`. What belongs to the client alone is not read: `metadata`, schemas, and the input of a tool.

An escape in a name or in an id is decoded, and a body that parsers could read in several ways is refused
(`http/json_members.py`). A form has the same names in its fields (`http/multipart.py`). So has a query: Google takes
members of the body from there too. A text that is too long to be an id is one that nobody owns.

Most bodies name nothing, which a search for a few texts shows: an ASCII letter can be written in one other way only,
as `\u00…`, and so is searched for too.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Final
from urllib.parse import parse_qsl

from attrs import define

from llm_proxy.errors import InvalidJson
from llm_proxy.gateway.http.headers import Headers
from llm_proxy.gateway.http.json_members import JsonMembers, decoded
from llm_proxy.gateway.http.multipart import Multipart

#: Longest id that is compared, in characters: longer ones exist nowhere, and stand for an object that is not recorded.
LONGEST_ID: Final = 255
_TOO_LONG: Final = "…"

#: Members, and fields of forms, whose strings are ids.
_NAMES: Final = frozenset(
    {
        *("file_id", "file_ids", "input_file_id", "training_file", "validation_file", "image_file_id"),
        *("input_files", "training_files", "validation_files"),
        *("previous_response_id", "response_id", "response_ids", "conversation", "conversation_id"),
        *("vector_store_id", "vector_store_ids", "assistant_id", "thread_id", "run_id"),
        *("cachedContent", "cached_content", "fileUri", "file_uri"),
        *("fileSearchStoreNames", "file_search_store_names", "library_ids"),
        *("ragCorpus", "rag_corpus", "ragCorpora", "rag_corpora", "ragFileIds", "rag_file_ids"),
        *("datastore", "dataStore", "data_store", "gcsUri", "gcs_uri", "storageUri", "storage_uri"),
        *("container", "container_id", "skill_id", "batch_id", "upload_id", "video_id"),
    }
)
#: Members that are objects, or lists of objects, with an `id` or a `uri` that is one.
_OWNERS: Final = frozenset({"conversation", "container", "audio", "video", "characters", "s3Location"})
#: Members that are objects with an `engine`, which searches data stores: at Google.
_SEARCHES: Final = frozenset({"vertexAiSearch", "vertex_ai_search"})
#: Members whose content the provider does not read as references. Google's `parameters` at the top are no schema.
_OPAQUE: Final = frozenset({"metadata", "parameters", "input_schema", "schema"})
#: Members of an object of one of these names that only a function of the client reads: at Google.
_OF_FUNCTION: Final = {
    ("functionCall", "args"),
    ("function_call", "args"),
    ("functionResponse", "response"),
    ("function_response", "response"),
}
#: Its members are values that the provider puts into a template, files too, and the client has chosen their names.
_VARIABLES: Final = "variables"
#: Lists of items, and the types of items that the provider looks up by their id.
_ITEMS: Final = frozenset({"input", "items"})
_LOOKED_UP: Final = frozenset({"", "item_reference", "reasoning", "image_generation_call"})

#: Texts of which a line of a batch's input has at least one if it names an object.
_LINE_HINTS: Final = (
    *(b"file_id", b"response_id", b"conversation", b"vector_store_id", b"container", b"skill_id", b"library_ids"),
    *(b'"id"', b'"audio"'),
)

#: Members with the URI of a file, and the id of the file in it; generated videos are named by the URI of their content.
_URIS: Final = frozenset({"fileUri", "file_uri", "uri"})
_GOOGLE_FILE: Final = re.compile(
    # What has `files/` twice could mean two files.
    r"(?:https?://(?:(?!files/)[^\s?#])+/)?files/([A-Za-z0-9_-]+)(?:[:?/#](?:(?!files/).)*)?",
    re.IGNORECASE,
)
#: Google reads public videos from there: https://ai.google.dev/gemini-api/docs/video-understanding#youtube
_PUBLIC: Final = re.compile(r"https://(?:www\.youtube\.com|youtu\.be)/", re.IGNORECASE)

#: Files inside of a container are reached through the container only.
_INSIDE: Final = "cfile_"
#: The names of a provider's own skills do not begin like this.
_SKILL: Final = "skill_"

#: An escape of an ASCII character, which could hide a name; other characters are in no name. Google's parser may take
#: a capital `U` too: https://github.com/protocolbuffers/protobuf/blob/main/src/google/protobuf/json/internal/lexer.cc
_ESCAPE: Final = re.compile(rb"\\u00[2-7]", re.IGNORECASE)
_PLAIN_TYPES: Final = frozenset({b"application/json", b"application/json; charset=utf-8"})


def has_any(texts: Sequence[bytes], body: bytes) -> bool:
    """Whether a body has one of the texts."""
    for text in texts:  # noqa: SIM110 - a generator costs more than the searches
        if text in body:
            return True
    return False


def may_hide(headers: Headers, body: bytes) -> bool:
    """Whether a body may have an ASCII text that a search does not find: by escapes, or by another encoding."""
    if b"\0" in body or ((b"\\u00" in body or b"\\U00" in body) and _ESCAPE.search(body) is not None):
        return True
    for name, value in headers:
        if name == b"content-type" and value not in _PLAIN_TYPES:
            return True
        if name == b"content-encoding":
            return True
    return False


@define(eq=False)
class _Level:
    """An open object or array: the member that it is the value of, and what is known of an item."""

    name: str
    is_object: bool
    opaque: bool
    is_item: bool
    item_id: str = ""
    item_type: str = ""


class References(JsonMembers):
    """Reads a body as `JsonMembers` does, and collects the ids in it."""

    # An escape has six bytes for a character.
    nested = 6 * LONGEST_ID

    def __init__(self) -> None:
        super().__init__()
        self.ids: dict[str, None] = {}
        self._levels: list[_Level] = []

    def _opens(self, *, is_object: bool) -> None:
        super()._opens(is_object=is_object)
        name, opaque, is_item = "", False, False
        if self._levels:
            parent = self._levels[-1]
            name = self._name if parent.is_object else parent.name
            opaque = parent.opaque
            if parent.name != _VARIABLES:
                opaque |= name in _OPAQUE and not (name == "parameters" and len(self._levels) == 1)
                opaque |= (parent.name, name) in _OF_FUNCTION
                # Elsewhere than at the top, `input` is what a model has given to a tool.
                opaque |= name == "input" and is_object and parent.is_object and len(self._levels) > 1
            is_item = is_object and not parent.is_object and name in _ITEMS
        self._levels.append(_Level(name, is_object, opaque, is_item))

    def _closes(self, *, is_object: bool) -> None:
        super()._closes(is_object=is_object)
        level = self._levels.pop()
        if level.is_item and level.item_id and level.item_type in _LOOKED_UP:
            self._add(level.item_id)

    def _skips_lists(self) -> bool:
        return self._levels[-1].name not in _NAMES

    def _see(self, text: bytes | None) -> None:
        level = self._levels[-1]
        if level.opaque:
            return
        name = self._name if level.is_object else level.name
        if name in _NAMES:
            self._add_named(name, _read(text))
        elif level.is_object and level.is_item and name in ("id", "type", "role"):
            value = _read(text)
            if name == "id":
                level.item_id = value
            elif name == "type":
                level.item_type = value
            else:
                # An item without a type is a message if it has a role.
                level.item_type = level.item_type or "message"
        elif (name in ("id", "uri") and level.name in _OWNERS) or (name == "engine" and level.name in _SEARCHES):
            self._add_named(name, _read(text))

    def _add_named(self, name: str, value: str) -> None:
        if value.startswith(_INSIDE) or (name == "skill_id" and not value.startswith(_SKILL)):
            return
        if name in _URIS:
            if _PUBLIC.match(value):
                return
            if (file := _GOOGLE_FILE.fullmatch(value)) is not None:
                value = file[1]
        self._add(value)

    def _add(self, value: str) -> None:
        self.ids[value if len(value) <= LONGEST_ID else _TOO_LONG] = None


class Lines(Multipart):
    """Reads a form as `Multipart` does, and collects the ids in the lines of its files, each one a request in JSON.

    Attributes:
        ids: the ids.
        files: their number.
        fault: why a line cannot be read reliably.
    """

    def __init__(self, boundary: bytes) -> None:
        super().__init__(boundary)
        self.ids: dict[str, None] = {}
        self.files = 0
        self.fault: InvalidJson | None = None
        self._line: list[bytes] = []

    def _see(self, data: bytes) -> None:
        *ends, rest = data.split(b"\n")
        for end in ends:
            self._line.append(end)
            self._read_line()
        self._line.append(rest)

    def _end_file(self) -> None:
        self.files += 1
        self._read_line()

    def _read_line(self) -> None:
        line = b"".join(self._line)
        self._line.clear()
        if not (has_any(_LINE_HINTS, line) or may_hide((), line)):
            return
        reader = References()
        try:
            reader.feed(line)
            reader.end()
        except InvalidJson as error:
            self.fault = error
        self.ids |= reader.ids


def of_form(fields: Mapping[str, Sequence[str | None]]) -> tuple[str, ...]:
    """The ids in the fields of a form; a name may be followed or surrounded by brackets, as in `images[0][file_id]`."""
    found: dict[str, None] = {}
    for field, values in fields.items():
        parts = [part for part in re.split(r"[\[\].]+", field) if part and not part.isdecimal()]
        last = parts[-1] if parts else ""
        if last in _NAMES or (last == "id" and len(parts) > 1 and parts[-2] in _OWNERS):
            # A file, too, is no id that can be compared.
            texts = (_TOO_LONG if value is None or len(value) > LONGEST_ID else value for value in values)
            found.update((text, None) for text in texts if text)
    return tuple(found)


def of_query(query: bytes) -> tuple[str, ...]:
    """The ids in the parameters of a query."""
    fields: dict[str, list[str | None]] = {}
    for name, value in parse_qsl(query.decode("latin-1"), keep_blank_values=True):
        fields.setdefault(name, []).append(value)
    return of_form(fields)


def _read(text: bytes | None) -> str:
    return _TOO_LONG if text is None else decoded(text)
