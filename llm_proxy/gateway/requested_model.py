"""The model that a request names, read where the provider's entry says that its endpoint names one.

A body that has arrived whole and is short is decoded once. Of a longer one, the first and the last bytes that passed
are read when the request has ended: most clients write the model before or after the long texts, and a body that passes
is neither delayed nor scanned meanwhile.

Nothing is refused here. If a name is there twice, the last one counts, as in most parsers; of a long body, one in its
last bytes, otherwise the first. If a list names models, or several members do, the first one counts.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final

import msgspec

from llm_proxy.errors import ProxyError
from llm_proxy.gateway.http import multipart
from llm_proxy.gateway.http.json_members import MALFORMED, JsonMembers, items_of, members_of, text_of
from llm_proxy.gateway.http.multipart import Multipart
from llm_proxy.gateway.usage import model_name

if TYPE_CHECKING:
    from llm_proxy.gateway.inbound import Inbound
    from llm_proxy.gateway.providers.provider import Provider

#: Maximum number of places in the last bytes that may be the member.
_CANDIDATES: Final = 16
#: Bytes of a long body that are read before it is seen whether that was enough.
_SLICE: Final = 4096


class NamedModel(msgspec.Struct, gc=False):
    """A JSON body of an endpoint that names its model in `model`."""

    model: Any = ""


_named = msgspec.json.Decoder(NamedModel).decode
_MODEL: Final = ("model",)


def requested_model(inbound: Inbound, provider: Provider) -> str:
    """The name of the model, as far as the body has arrived; empty if it is not there."""
    path = inbound.route.path
    names = provider.models_of(path)
    if names == ("{model}",):
        return model_name(provider.endpoints.model(path))
    if not inbound.has_body:
        return ""
    if inbound.model and "model" in names:
        return inbound.model
    first, last = inbound.ends()
    if first.lstrip().startswith(b"{"):
        return _of_document(first, names) if last is None else _of_long_document(first, last, names)
    return _of_form(inbound, first, last or b"", names)


def _of_document(document: bytes, names: Sequence[str]) -> str:
    try:
        if names == _MODEL:
            return model_name(_named(document).model)
        members = members_of(document)
    except MALFORMED:
        return ""
    return next(filter(None, (_at(members, name) for name in names)), "")


def _at(members: Mapping[str, msgspec.Raw], name: str) -> str:
    """The first text at a member, or at a member of the objects in it, see `Provider.models_of`."""
    outer, _, inner = name.partition(".")
    if (value := members.get(outer)) is None:
        return ""
    for one in items_of(value) if bytes(value).startswith(b"[") else (value,):
        with suppress(*MALFORMED):
            if found := _at(members_of(one), inner) if inner else model_name(text_of(one)):
                return found
    return ""


def _of_long_document(first: bytes, last: bytes, names: Sequence[str]) -> str:
    """The model in the last bytes of a document, or in its first ones.

    The end of a document from a member on is that of an object with this member, so a text like it is not mistaken for
    it, nor is a member of an inner object: what follows in the document is no JSON then.
    """
    pattern = rb'[{,][ \t\r\n]*(?="(?:%b)"[ \t\r\n]*:)' % b"|".join(re.escape(name.encode()) for name in names)
    for match in reversed(list(re.finditer(pattern, last))[-_CANDIDATES:]):
        if found := _of_document(b"{" + last[match.end() :], names):
            return found
    return _read(JsonMembers(), first, names)


def _of_form(inbound: Inbound, first: bytes, last: bytes, names: Sequence[str]) -> str:
    content_type = next((value for name, value in inbound.content if name == b"content-type"), b"")
    found = multipart.CONTENT_TYPE.fullmatch(content_type)
    if found is None:
        return ""
    boundary = found[1] or found[2]
    # The last bytes begin inside of a part, which may be a file.
    start = last.find(b"\r\n--" + boundary) + len(b"\r\n")
    after = _read(Multipart(boundary), last[start:], names) if start > 1 else ""
    return after or _read(Multipart(boundary), first, names)


def _read(reader: JsonMembers | Multipart, data: bytes, names: Iterable[str]) -> str:
    """Read the beginning of a body until one of these fields is complete."""
    model, start = "", 0
    while not model and start < len(data):
        try:
            reader.feed(data[start : start + _SLICE])
            start += _SLICE
        except ProxyError:
            start = len(data)
        values = (value for name in names for value in reader.found.get(name, ()))
        model = next(filter(None, map(model_name, values)), "")
    with suppress(ProxyError):
        reader.end()
    return model
