"""Tables of fields: they read what a client sends, tell all that is wrong with it, and describe it to OpenAPI."""

from __future__ import annotations

import re
import unicodedata
import uuid
from collections.abc import Callable, Collection, Iterable, Mapping
from datetime import UTC, datetime
from typing import Any, Final

import msgspec
from attrs import frozen

from llm_proxy.logging.redaction import Redactor

#: Largest whole number that every JSON reader keeps exactly (RFC 8259, section 6).
MAX_SAFE_INTEGER: Final = 2**53 - 1

_redact: Final = Redactor().text
_UNSEEN: Final = frozenset({"Cc", "Cs", "Zl", "Zp"})  # control characters, lone surrogates, line separators


def _same(text: str) -> object:
    return text


@frozen
class Kind:
    """What a value may be.

    Attributes:
        words: completes the sentence "it must be …".
        schema: the same for OpenAPI (JSON Schema 2020-12).
        read: gives the value as the program wants it; raises ValueError for any other.
        parse: turns a parameter of the query into what JSON would have held, or leaves it as it is.
    """

    words: str
    schema: Mapping[str, Any]
    read: Callable[[object], Any]
    parse: Callable[[str], object] = _same


@frozen
class Field:
    """A named value in a body, a query or an answer; `null` says what null stands for, in messages."""

    name: str
    kind: Kind
    help: str
    required: bool = False
    nullable: bool = False
    null: str = ""

    @property
    def schema(self) -> dict[str, Any]:
        """Describe the field in JSON Schema."""
        schema = dict(self.kind.schema)
        if self.nullable:
            schema["type"] = [schema["type"], "null"]
            if "enum" in schema:
                schema["enum"] = [*schema["enum"], None]
        return {**schema, "description": self.help}

    def read(self, value: object) -> Any:
        """Read a value; raises ValueError with a clause that names the field."""
        if value is None and self.nullable:
            return None
        try:
            return self.kind.read(value)
        except (ValueError, OverflowError, msgspec.MsgspecError):
            null = (f" or null ({self.null})" if self.null else " or null") if self.nullable else ""
            raise ValueError(f"'{self.name}' must be {self.kind.words}{null}") from None


def read_values(fields: Collection[Field], given: Mapping[str, object], what: str) -> tuple[dict[str, Any], list[str]]:
    """Read a whole body or query by its table.

    Args:
        fields: the table.
        given: names and values as they came.
        what: `field` or `parameter`.

    Returns:
        The values that are right, and a clause for each mistake.
    """
    values: dict[str, Any] = {}
    mistakes: list[str] = []
    for field in fields:
        if field.name in given:
            try:
                values[field.name] = field.read(given[field.name])
            except ValueError as mistake:
                mistakes.append(str(mistake))
        elif field.required:
            mistakes.append(f"'{field.name}' is missing")
    known = {field.name for field in fields}
    for name in given:
        if name not in known:
            names = ", ".join(field.name for field in fields) or "none"
            mistakes.append(f"{_quoted(name)} is not a {what} of this request ({what}s: {names})")
    return values, mistakes


def parse_query(fields: Iterable[Field], pairs: Iterable[tuple[str, str]]) -> tuple[dict[str, object], list[str]]:
    """Turn the parameters of a query into values for `read_values`, and tell of those that come twice."""
    kinds = {field.name: field.kind for field in fields}
    given: dict[str, object] = {}
    mistakes: list[str] = []
    for name, text in pairs:
        if name in given:
            mistakes.append(f"{_quoted(name)} comes more than once")
        given[name] = kinds[name].parse(text) if name in kinds else text
    return given, mistakes


def text(shortest: int, longest: int) -> Kind:
    """Text for people, in any script, on one line and without space at its ends."""
    size = f"up to {longest} characters" if shortest == 0 else f"{shortest} to {longest} characters"

    def read(value: object) -> str:
        if not isinstance(value, str) or not shortest <= len(value) <= longest or value != value.strip():
            raise ValueError
        if any(unicodedata.category(character) in _UNSEEN for character in value):
            raise ValueError
        return value

    return Kind(
        f"text of {size}, without control characters and without space at its ends",
        {"type": "string", "minLength": shortest, "maxLength": longest},
        read,
    )


def credential(longest: int) -> Kind:
    """Text that can stand in a header: printable ASCII without spaces."""

    def read(value: object) -> str:
        if not isinstance(value, str) or len(value) > longest or not re.fullmatch(r"[!-~]+", value):
            raise ValueError
        return value

    return Kind(
        f"1 to {longest} printable ASCII characters without spaces",
        {"type": "string", "minLength": 1, "maxLength": longest, "pattern": "^[!-~]+$"},
        read,
    )


def integer(least: int, most: int) -> Kind:
    """A whole number."""

    def read(value: object) -> int:
        # True is an int to Python, and not to JSON.
        if type(value) is not int or not least <= value <= most:
            raise ValueError
        return value

    def parse(text: str) -> object:
        return int(text) if re.fullmatch(r"-?[0-9]{1,18}", text, re.ASCII) else text

    return Kind(
        f"a whole number from {least} to {most}", {"type": "integer", "minimum": least, "maximum": most}, read, parse
    )


def one_of(values: Iterable[str]) -> Kind:
    """One of a few words."""
    words = tuple(values)

    def read(value: object) -> str:
        if not isinstance(value, str) or value not in words:
            raise ValueError
        return value

    return Kind(f"one of {', '.join(words)}", {"type": "string", "enum": list(words)}, read)


def _read_boolean(value: object) -> bool:
    if not isinstance(value, bool):
        raise ValueError  # noqa: TRY004 (see `Kind.read`)
    return value


def _parse_boolean(text: str) -> object:
    return {"true": True, "false": False}.get(text.lower(), text)


BOOLEAN: Final = Kind("true or false", {"type": "boolean"}, _read_boolean, _parse_boolean)


def read_id(value: object) -> str:
    """Read a UUID, whose letters may be capitals (RFC 9562 section 4), as ids are kept: in lower case."""
    if not isinstance(value, str) or str(uuid.UUID(value)) != value.lower():
        raise ValueError
    return value.lower()


ID: Final = Kind("a UUID such as 6f1b4a52-8a39-4c0e-9d0e-6c1f7d1f3b11", {"type": "string", "format": "uuid"}, read_id)


def _read_moment(value: object) -> datetime:
    if not isinstance(value, str):
        raise ValueError  # noqa: TRY004 (see `Kind.read`)
    moment = msgspec.convert(value, datetime)
    if moment.tzinfo is None:
        raise ValueError
    return moment.astimezone(UTC)


MOMENT: Final = Kind(
    "a time with its offset from UTC, such as 2030-01-31T12:00:00Z",
    {"type": "string", "format": "date-time"},
    _read_moment,
)


def _quoted(name: str) -> str:
    """Show a name that a client chose, in one short line."""
    shown = "".join(character if character.isprintable() else "?" for character in _redact(name))
    return f"'{shown[:40]}…'" if len(shown) > 40 else f"'{shown}'"
