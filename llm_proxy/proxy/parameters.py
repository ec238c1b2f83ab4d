"""The parameters in a request body, for providers that limit their values (`param_whitelist`).

A whitelist holds only if the provider cannot read another value than the one that was judged. So a body that readers
may understand differently is refused: JSON with a name twice in one object, or with a limited name in another case
(some readers ignore case), JSON that is not UTF-8, a compressed body, a form that is not written in the plainest way.
"""

from __future__ import annotations

import fnmatch
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import parse_qsl

from attrs import frozen

from llm_proxy.errors import InvalidJson, ParameterNotAllowed
from llm_proxy.proxy.headers import Headers, media_type
from llm_proxy.redaction import quoted

#: Each parameter's values as text, in order of appearance; None stands for a list, an object or a file.
Parameters = Mapping[str, Sequence[str | None]]

_BOUNDARY = re.compile(rb"""boundary=(?:"([^"\\]{1,70})"|([^\s"\\;,]{1,70}))""", re.IGNORECASE)

_DISPOSITION = re.compile(
    rb"""content-disposition: ?form-data; ?name="([^"\\\r\n%]+)"(; ?filename="[^"\\\r\n]*")?""", re.IGNORECASE
)

#: Fields of a form part that do not change what its content says; a transfer encoding would.
_HARMLESS_FIELDS = frozenset({b"content-type", b"content-length"})

_UNREADABLE_FORM = "The form cannot be read safely, so that its parameters cannot be checked."


def read(body: bytes, headers: Headers) -> Parameters:
    """Read the parameters of a whole request body; an empty body has none.

    JSON is assumed unless `Content-Type` says that it is a form. Raises `InvalidJson` for what is not a JSON object or
    is ambiguous, `ParameterNotAllowed` for a form or an encoding that cannot be read safely.
    """
    if not body:
        return {}
    content_types = [value for name, value in headers if name == b"content-type"]
    if len(content_types) > 1:
        raise InvalidJson("The request has more than one Content-Type.")
    if any(name == b"content-encoding" and value.strip().lower() != b"identity" for name, value in headers):
        raise ParameterNotAllowed("A compressed body is not accepted here, because its parameters have to be checked.")
    content_type = content_types[0] if content_types else b""
    kind = media_type(content_type)
    if kind == b"multipart/form-data":
        return _multipart(body, content_type)
    if kind == b"application/x-www-form-urlencoded":
        return _form(body)
    return _json(body)


@frozen
class ParameterRules:
    """The compiled `param_whitelist` of a provider."""

    _whitelist: Mapping[str, Sequence[str]]
    _patterns: Mapping[str, re.Pattern[str] | None]
    _folded: Mapping[str, str]

    @classmethod
    def compile(cls, whitelist: Mapping[str, Sequence[str]]) -> ParameterRules:
        """Compile globs (`*`, `?`, `[…]`, case counts) per parameter; `*` alone allows lists and objects too."""
        patterns = {
            name: None if "*" in globs else re.compile("|".join(map(fnmatch.translate, globs)))
            for name, globs in whitelist.items()
        }
        return cls(whitelist, patterns, {name.casefold(): name for name in whitelist})

    def refusal(self, parameters: Parameters) -> ParameterNotAllowed | None:
        """Judge `parameters`; one that is absent is allowed, for the provider's own default applies."""
        for name, values in parameters.items():
            known = self._folded.get(name.casefold())
            if known is None:
                continue
            if known != name:
                return ParameterNotAllowed(f"Write the parameter '{known}' in exactly this way.", param=known)
            pattern = self._patterns[name]
            if pattern is None:
                continue
            for value in values:
                if value is None or not pattern.match(value):
                    shown = "as a list, an object or a file" if value is None else quoted(value)
                    allowed = ", ".join(self._whitelist[name])
                    return ParameterNotAllowed(f"{name} {shown} is not allowed here (allowed: {allowed})", param=name)
        return None


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) != len(pairs):
        raise InvalidJson("The request body is ambiguous: a JSON object has the same name twice.")
    return members


def _json(body: bytes) -> Parameters:
    try:
        document = json.loads(body.decode("utf-8"), object_pairs_hook=_unique, parse_constant=_refuse_constant)
    except (ValueError, RecursionError):
        raise InvalidJson from None
    if not isinstance(document, dict):
        raise InvalidJson("The request body is not a JSON object.")
    return {name: (_text(value),) for name, value in document.items()}


def _refuse_constant(constant: str) -> None:
    raise ValueError(constant)


def _text(value: object) -> str | None:
    """A scalar in JSON's own notation, strings without their quotes."""
    if isinstance(value, str):
        return value
    if isinstance(value, (list, dict)):
        return None
    return json.dumps(value)


def _form(body: bytes) -> Parameters:
    try:
        pairs = parse_qsl(
            body.decode("ascii"), keep_blank_values=True, strict_parsing=True, errors="strict", max_num_fields=1000
        )
    except ValueError:
        raise ParameterNotAllowed(_UNREADABLE_FORM) from None
    values: dict[str, list[str | None]] = {}
    for name, value in pairs:
        values.setdefault(name, []).append(value)
    return values


def _multipart(body: bytes, content_type: bytes) -> Parameters:
    """Read a form (RFC 7578) whose parts each begin with a plain `Content-Disposition`, the way that clients write."""
    boundaries = _BOUNDARY.findall(content_type)
    if len(boundaries) != 1:
        raise ParameterNotAllowed(_UNREADABLE_FORM)
    boundary = b"--" + (boundaries[0][0] or boundaries[0][1])
    opening, *parts = (b"\r\n" + body).split(b"\r\n" + boundary)
    # A boundary after a bare line feed is content to us, and would be a delimiter to a lenient reader.
    if opening or not parts or parts.pop() not in (b"--", b"--\r\n") or body.count(boundary) != len(parts) + 1:
        raise ParameterNotAllowed(_UNREADABLE_FORM)
    values: dict[str, list[str | None]] = {}
    for part in parts:
        name, value = _part(part)
        values.setdefault(name, []).append(value)
    return values


def _part(part: bytes) -> tuple[str, str | None]:
    """The name of a form part and its value, None for a file."""
    head, blank, content = part.partition(b"\r\n\r\n")
    match: re.Match[bytes] | None = None
    first, *fields = head.split(b"\r\n")
    for field in fields:
        name = field.partition(b":")[0].lower()
        if name == b"content-disposition" and match is None:
            match = _DISPOSITION.fullmatch(field)
        elif name not in _HARMLESS_FIELDS:
            raise ParameterNotAllowed(_UNREADABLE_FORM)
    if first or not blank or match is None:
        raise ParameterNotAllowed(_UNREADABLE_FORM)
    try:
        return match[1].decode("utf-8"), None if match[2] else content.decode("utf-8")
    except UnicodeDecodeError:
        raise ParameterNotAllowed(_UNREADABLE_FORM) from None
