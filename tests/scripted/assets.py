"""OpenAI's models, embeddings, files, images and audio."""

from __future__ import annotations

import base64
import hashlib
import math
import re
import struct
from collections import OrderedDict
from typing import Final
from urllib.parse import unquote

from attrs import define, field, frozen

from tests.scripted import answers
from tests.scripted.message import JsonObject, Reply, Request, ScriptedError, json_reply

MODELS: Final = ("gpt-scripted", "gpt-scripted-mini", "text-embedding-scripted")
#: Length of an embedding where the request names none.
DIMENSIONS: Final = 1536
_MAX_DIMENSIONS: Final = 4096
#: Bytes of uploaded files that are kept; the oldest file goes first.
FILE_STORE_LIMIT: Final = 64 * 1024 * 1024
#: A PNG of one transparent pixel.
_PIXEL: Final = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNkYPhfDwAChwGA60e6kgAAAABJRU5ErkJggg=="
#: One twentieth of a second of silence: WAV, 8 kHz, 8 bits, mono.
_SILENCE: Final = (
    struct.pack("<4sI4s4sIHHIIHH4sI", b"RIFF", 436, b"WAVE", b"fmt ", 16, 1, 1, 8000, 8000, 1, 8, b"data", 400)
    + b"\x80" * 400
)


def _model(name: str) -> JsonObject:
    return {"id": name, "object": "model", "created": answers.CREATED, "owned_by": "scripted"}


def list_models(_request: Request) -> Reply:
    """GET /v1/models."""
    return json_reply({"object": "list", "data": [_model(name) for name in MODELS]})


def get_model(request: Request) -> Reply:
    """GET /v1/models/{id}."""
    name = unquote(request.path.rpartition("/")[2])
    if name not in MODELS:
        raise ScriptedError(404, f"The model '{name}' does not exist.", code="model_not_found", param="model")
    return json_reply(_model(name))


def _embedding_inputs(body: JsonObject) -> list[tuple[bytes, int]]:
    """Return each input as bytes, with its number of tokens; an input is a text or a list of token ids."""
    given = body.get("input")
    if isinstance(given, str) or (isinstance(given, list) and given and isinstance(given[0], int)):
        given = [given]
    if not isinstance(given, list) or not given:
        raise ScriptedError(400, "'input' must be a text, a list of texts, or lists of token ids.", param="input")
    inputs = []
    for item in given:
        if isinstance(item, str):
            inputs.append((item.encode(), answers.count_tokens(item)))
        elif isinstance(item, list):
            inputs.append((repr(item).encode(), len(item)))
        else:
            raise ScriptedError(400, "'input' must be a text, a list of texts, or lists of token ids.", param="input")
    return inputs


def _vector(text: bytes, dimensions: int) -> list[float]:
    """Return a unit vector that depends on the text only."""
    raw = struct.unpack(f"<{dimensions}h", hashlib.shake_256(text).digest(2 * dimensions))
    norm = math.sqrt(sum(value * value for value in raw)) or 1.0
    return [value / norm for value in raw]


def embeddings(request: Request) -> Reply:
    """POST /v1/embeddings; `encoding_format` base64 gives little-endian 32-bit floats."""
    body = request.json()
    model = answers.model_of(body)
    dimensions = body.get("dimensions") or DIMENSIONS
    if not isinstance(dimensions, int) or not 1 <= dimensions <= _MAX_DIMENSIONS:
        raise ScriptedError(400, f"'dimensions' must be an integer up to {_MAX_DIMENSIONS}.", param="dimensions")
    packed = body.get("encoding_format") == "base64"
    inputs = _embedding_inputs(body)
    data = []
    for index, (text, _) in enumerate(inputs):
        vector: list[float] | str = _vector(text, dimensions)
        if packed:
            vector = base64.b64encode(struct.pack(f"<{dimensions}f", *vector)).decode()
        data.append({"object": "embedding", "index": index, "embedding": vector})
    tokens = sum(size for _, size in inputs)
    usage = {"prompt_tokens": tokens, "total_tokens": tokens}
    return json_reply({"object": "list", "data": data, "model": model, "usage": usage})


@frozen
class Part:
    """One part of a multipart form."""

    name: str
    filename: str | None
    content: bytes


def read_form(request: Request) -> dict[str, Part]:
    """Read a multipart/form-data body (RFC 7578) by part name; raises ScriptedError (400)."""
    found = re.search(r'boundary="?([^";]+)"?', request.header(b"content-type") or "")
    if found is None:
        raise ScriptedError(400, "The body must be multipart/form-data with a boundary.")
    delimiter = b"\r\n--" + found.group(1).strip().encode("latin-1")
    sections = (b"\r\n" + request.body).split(delimiter)
    if len(sections) < 2 or not sections[-1].startswith(b"--"):
        raise ScriptedError(400, "The multipart body is not complete.")
    parts = {}
    for section in sections[1:-1]:
        head, separator, content = section.partition(b"\r\n\r\n")
        text = head.decode("utf-8", "replace")
        name = re.search(r'(?i)content-disposition:.*?[; ]name="([^"]*)"', text)
        if not separator or name is None:
            raise ScriptedError(400, "A part of the multipart body has no name.")
        filename = re.search(r'filename="([^"]*)"', text)
        parts[name.group(1)] = Part(name.group(1), filename.group(1) if filename else None, content)
    return parts


@frozen
class _File:
    about: JsonObject
    content: bytes


@define
class FileStore:
    """The files that were uploaded, in memory, at most `limit` bytes of them."""

    limit: int = FILE_STORE_LIMIT
    _files: OrderedDict[str, _File] = field(factory=OrderedDict, init=False)
    _size: int = field(default=0, init=False)

    def upload(self, request: Request) -> Reply:
        """POST /v1/files."""
        form = read_form(request)
        if "file" not in form or "purpose" not in form:
            raise ScriptedError(400, "'file' and 'purpose' are required.", param="file")
        part = form["file"]
        if len(part.content) > self.limit:
            raise ScriptedError(413, "The file is too large.")
        # The same file twice gets the same id: it depends on its name and content only.
        name = answers.identity("file-", (part.filename or "").encode() + b"\0" + part.content)
        about = {
            "id": name,
            "object": "file",
            "bytes": len(part.content),
            "created_at": answers.CREATED,
            "filename": part.filename or "upload",
            "purpose": form["purpose"].content.decode("utf-8", "replace"),
            "status": "processed",
        }
        self._forget(name)
        self._files[name] = _File(about, part.content)
        self._size += len(part.content)
        while self._size > self.limit:
            self._forget(next(iter(self._files)))
        return json_reply(about)

    def listing(self, _request: Request) -> Reply:
        """GET /v1/files."""
        data = [file.about for file in self._files.values()]
        return json_reply({"object": "list", "data": data, "has_more": False})

    def about(self, request: Request) -> Reply:
        """GET /v1/files/{id}."""
        return json_reply(self._find(request).about)

    def content(self, request: Request) -> Reply:
        """GET /v1/files/{id}/content."""
        return Reply((self._find(request).content,), content_type=b"application/octet-stream")

    def delete(self, request: Request) -> Reply:
        """DELETE /v1/files/{id}."""
        name = self._find(request).about["id"]
        self._forget(name)
        return json_reply({"id": name, "object": "file", "deleted": True})

    def _find(self, request: Request) -> _File:
        name = request.path.split("/")[3]
        if name not in self._files:
            raise ScriptedError(404, f"No such File object: {name}", param="id")
        return self._files[name]

    def _forget(self, name: str) -> None:
        file = self._files.pop(name, None)
        if file is not None:
            self._size -= len(file.content)


def images(request: Request) -> Reply:
    """POST /v1/images/generations: as many single pixels as were asked for."""
    body = request.json()
    count = body.get("n") or 1
    if not isinstance(count, int) or not 1 <= count <= 10:
        raise ScriptedError(400, "'n' must be an integer between 1 and 10.", param="n")
    size = answers.count_tokens(str(body.get("prompt", "")))
    usage = {
        "input_tokens": size,
        "input_tokens_details": {"text_tokens": size, "image_tokens": 0},
        "output_tokens": count,
        "total_tokens": size + count,
    }
    return json_reply({"created": answers.CREATED, "data": [{"b64_json": _PIXEL}] * count, "usage": usage})


def speech(request: Request) -> Reply:
    """POST /v1/audio/speech: a short silence, as WAV."""
    answers.model_of(request.json())
    return Reply((_SILENCE,), content_type=b"audio/wav")


def transcription(request: Request) -> Reply:
    """POST /v1/audio/transcriptions: says how long the recording was, in bytes."""
    form = read_form(request)
    if "file" not in form:
        raise ScriptedError(400, "'file' is required.", param="file")
    heard = len(form["file"].content)
    text = f"A recording of {heard} bytes."
    usage = {
        "type": "tokens",
        "input_tokens": heard // 100 + 1,
        "output_tokens": answers.count_tokens(text),
        "total_tokens": heard // 100 + 1 + answers.count_tokens(text),
    }
    return json_reply({"text": text, "usage": usage})
