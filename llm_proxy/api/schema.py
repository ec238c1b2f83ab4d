"""What clients send and get, as msgspec structs: the types of fields, and readers that report every mistake at once.

msgspec stops at the first mistake and its messages repeat parts of the input, which may be a secret. So each field is
converted on its own, and a mistake is described by the field's name and by what is allowed.
"""

from __future__ import annotations

import re
import uuid
from collections.abc import Callable, Collection, Iterable, Mapping
from datetime import MAXYEAR, MINYEAR, UTC, datetime
from functools import cache
from operator import methodcaller
from typing import Annotated, Any, Final, TypeVar, get_type_hints

import msgspec
from attrs import frozen
from msgspec import Meta, Struct, inspect, structs

from llm_proxy.config import kinds
from llm_proxy.config.kinds import Kind
from llm_proxy.errors import InvalidBody, InvalidQuery
from llm_proxy.logging.redaction import redact

#: Largest whole number that every JSON reader keeps exactly (RFC 8259, section 6).
MAX_SAFE_INTEGER: Final = 2**53 - 1

S = TypeVar("S", bound=Struct)
B = TypeVar("B", bound="Body")
#: Finds mistakes that no single field shows, from the names in a body, the correct values, and the time.
Check = Callable[[Collection[str], Mapping[str, Any], datetime], Iterable[str]]


class Body(Struct, kw_only=True, forbid_unknown_fields=True):
    """The fields of a JSON body."""


class Changes(Body, kw_only=True):
    """A body whose fields are all optional; at least one is required."""


class Query(Struct, kw_only=True, forbid_unknown_fields=True):
    """The parameters of a query."""


def doc(text: str, *, null: str = "") -> Meta:
    """Describe a field; `null` says what null means, for error messages."""
    return Meta(description=text, extra={"null": null})


def of(kind: Kind[Any], schema: dict[str, Any] | None = None, **limits: Any) -> Meta:
    """Restrict a type to a kind of value; `schema` describes it for JSON Schema, and msgspec checks `limits`."""
    return Meta(extra={"kind": kind}, extra_json_schema=schema, **limits)


def text(shortest: int, longest: int) -> Meta:
    """Text for people, in any script, on one line."""
    return of(kinds.line_of_text(shortest, longest), min_length=shortest, max_length=longest)


def printable(longest: int) -> Meta:
    """Text that a header can contain."""
    return of(kinds.header_text(longest), {"pattern": "^[!-~]+$"}, min_length=1, max_length=longest)


def _read_key(text: str) -> str:
    if text.startswith("{") and len(text) <= _LONGEST_DOCUMENT:
        return text
    return _KEY.parse(text)


#: A Google service account's document has some 2,400 characters.
_LONGEST_DOCUMENT: Final = 16_384
_KEY: Final = kinds.header_text(4096)

#: An API key, which a header can contain, or a document in JSON, for kinds of `auth` that need more than a key.
Key = Annotated[str, of(Kind("key", _KEY.allowed, _read_key), min_length=1, max_length=_LONGEST_DOCUMENT)]


#: Labels of a token, by key.
Labels = Annotated[
    dict[str, str],
    of(kinds.LABELS, {"maxProperties": kinds.MAX_LABELS}),
]


def _read_patterns(value: list[str]) -> list[str]:
    return [_PATTERN.parse(one) for one in value]


_PATTERN: Final = kinds.line_of_text(1, 255)
#: Patterns of models.
Patterns = Annotated[
    list[str],
    of(
        Kind("patterns", 'a list of 1 to 50 patterns of models, such as ["gpt-5.4*"]', _read_patterns),
        min_length=1,
        max_length=50,
    ),
]


def stored_patterns(patterns: list[str] | None) -> dict[str, list[str]] | None:
    """Patterns as columns have them."""
    return None if patterns is None else {"patterns": patterns}


def patterns_of(stored: Mapping[str, list[str]] | None) -> list[str] | None:
    """The patterns in a column."""
    return None if stored is None else stored["patterns"]


def one_of(options: Iterable[str]) -> Meta:
    """One of a few words, in exactly this spelling."""
    known = {option: option for option in options}
    return of(Kind("choice", f"one of {', '.join(known)}", known.__getitem__), {"enum": list(known)})


def read_id(value: str) -> str:
    """Read a UUID, which may be in capitals (RFC 9562 section 4), as it is stored: in lower case."""
    if str(uuid.UUID(value)) != value.lower():
        raise ValueError
    return value.lower()


def is_id(reference: str) -> bool:
    """Whether a reference is an id, which is in lower case then."""
    try:
        return read_id(reference) == reference
    except ValueError:
        return False


_NAME: Final = kinds.line_of_text(1, 255)


def _read_reference(text: str) -> str:
    try:
        return read_id(text)
    except ValueError:
        return _NAME.parse(text)


def _same(value: Any) -> Any:
    return value


def _read_references(value: list[str]) -> list[str]:
    return [_read_reference(one) for one in value]


def _read_label_filters(value: object) -> dict[str, str]:
    labels: dict[str, str] = msgspec.convert(value, dict[str, str])
    if not all(kinds.LABEL_KEY.fullmatch(key) for key in labels):
        raise ValueError
    return labels


def _read_time(value: object) -> datetime:
    at = datetime.fromisoformat(str(value))
    # Reports compute with times, which must not leave the calendar.
    if not MINYEAR < at.year < MAXYEAR:
        raise ValueError
    if len(str(value)) == len("2030-01-31"):
        return at.replace(tzinfo=UTC)
    if at.tzinfo is None:
        raise ValueError
    return at.astimezone(UTC)


_UUID: Final = Kind("UUID", "a UUID such as 6f1b4a52-8a39-4c0e-9d0e-6c1f7d1f3b11", read_id)
_REFERENCE: Final = Kind("reference", "an id, a name, or the last four characters", _read_reference)
_TIMESTAMP: Final = Kind(
    "timestamp", "a time with its offset from UTC, such as 2030-01-31T12:00:00Z", methodcaller("astimezone", UTC)
)
_BOOLEAN: Final = Kind("boolean", "true or false", _same)

Id = Annotated[str, of(_UUID, {"format": "uuid"})]
#: What `Call.resolve` finds the id of.
Reference = Annotated[str, of(_REFERENCE, min_length=1, max_length=255)]
References = Annotated[
    list[Reference],
    of(Kind("references", "a list of 1 to 100 names or ids", _read_references), min_length=1, max_length=100),
]
Timestamp = Annotated[datetime, of(_TIMESTAMP, tz=True)]

#: Filters by labels: `label.team=search`.
LabelFilters = Annotated[
    Any,
    of(
        Kind("labels", "given as label.KEY=VALUE, with a key such as team", _read_label_filters),
        {"type": "string"},
    ),
]
#: A time, or a day in UTC.
Time = Annotated[
    Any,
    of(
        Kind("time", "a day such as 2030-01-31, or a time with its offset such as 2030-01-31T12:00:00Z", _read_time),
        {"anyOf": [{"type": "string", "format": "date"}, {"type": "string", "format": "date-time"}]},
    ),
]


@frozen
class Field:
    """One field of a struct, as the readers need it."""

    name: str
    type: Any
    kind: Kind[Any]
    required: bool
    null: str | None

    @classmethod
    def of(cls, name: str, hint: Any, *, required: bool = True) -> Field:
        """Find out from its type what is allowed."""
        extra: dict[str, Any] = {}
        info, null = inspect.type_info(hint), None
        while isinstance(info, inspect.Metadata | inspect.UnionType):
            if isinstance(info, inspect.Metadata):
                extra |= info.extra or {}
                info = info.type
            else:
                null = f" or null ({extra['null']})" if extra.get("null") else " or null"
                (info,) = [found for found in info.types if not isinstance(found, inspect.NoneType)]
        if isinstance(info, inspect.IntType):
            extra["kind"] = Kind("integer", f"a whole number from {info.ge} to {info.le}", _same)
        elif isinstance(info, inspect.BoolType):
            extra["kind"] = _BOOLEAN
        return cls(name, hint, extra["kind"], required, null)

    def read(self, value: object) -> Any:
        """Convert a value; raises ValueError with a clause that names the field."""
        if value is None and self.null is not None:
            return None
        try:
            return self.kind.parse(msgspec.convert(value, self.type))
        except (ValueError, LookupError, OverflowError, msgspec.MsgspecError):
            raise ValueError(f"'{self.name}' must be {self.kind.allowed}{self.null or ''}") from None

    def from_query(self, text: str) -> object:
        """Turn a parameter into what JSON would contain, or leave it as it is."""
        if self.kind.name == "integer" and re.fullmatch(r"-?[0-9]{1,18}", text, re.ASCII):
            return int(text)
        if self.kind is _BOOLEAN:
            return {"true": True, "false": False}.get(text.lower(), text)
        return text


@cache
def fields(struct: type[Struct]) -> dict[str, Field]:
    """The fields of a struct by the names that clients use."""
    hints = get_type_hints(struct, include_extras=True)
    return {
        field.encode_name: Field.of(field.encode_name, hints[field.name], required=field.required)
        for field in structs.fields(struct)
    }


def read_body(struct: type[B], data: object, check: Check, now: datetime) -> B:
    """Make a body of decoded JSON; raises `InvalidBody` with every mistake, those that `check` finds included."""
    if not isinstance(data, dict):
        raise InvalidBody("it must be a JSON object.")
    values, mistakes = _read(struct, data, "field")
    if issubclass(struct, Changes) and not data:
        mistakes.append(f"it names no field (fields: {', '.join(fields(struct))})")
    mistakes += check(data, values, now)
    if mistakes:
        raise InvalidBody("; ".join(mistakes) + ".")
    return struct(**values)


def read_query(struct: type[S], pairs: Iterable[tuple[str, str]]) -> S:
    """Make a struct of the parameters of a query; raises `InvalidQuery` with every mistake."""
    known = fields(struct)
    given: dict[str, Any] = {}
    repeated: list[str] = []
    for name, text in pairs:
        family, dot, member = name.partition(".")
        several = f"{family}.KEY"
        if name in given or (several in given and member in given[several]):
            repeated.append(f"{quoted(name)} comes more than once")
        if dot and several in known:
            given.setdefault(several, {})[member] = text
        else:
            given[name] = known[name].from_query(text) if name in known else text
    values, mistakes = _read(struct, given, "parameter")
    if mistakes or repeated:
        raise InvalidQuery("; ".join(mistakes + repeated) + ".")
    return struct(
        **{field.name: values[field.encode_name] for field in structs.fields(struct) if field.encode_name in values}
    )


def _read(struct: type[Struct], given: Mapping[str, object], what: str) -> tuple[dict[str, Any], list[str]]:
    """Read fields one by one: the values that are correct, and a clause for each mistake."""
    known = fields(struct)
    values: dict[str, Any] = {}
    mistakes: list[str] = []
    for name, field in known.items():
        if name in given:
            try:
                values[name] = field.read(given[name])
            except ValueError as mistake:
                mistakes.append(str(mistake))
        elif field.required:
            mistakes.append(f"'{name}' is missing")
    names = ", ".join(known) or "none"
    unknown = (name for name in given if name not in known)
    mistakes += [f"{quoted(name)} is not a {what} of this request ({what}s: {names})" for name in unknown]
    return values, mistakes


def given(struct: Struct) -> dict[str, Any]:
    """The fields that a client has sent."""
    return {name: value for name, value in structs.asdict(struct).items() if value is not msgspec.UNSET}


def shown(struct: type[S], record: object, **more: Any) -> S:
    """Give an answer: the values of a record that it has fields for, unchecked, and `more`."""
    return struct(**{name: getattr(record, name) for name in struct.__struct_fields__ if name not in more}, **more)


def quoted(name: str) -> str:
    """Quote a name that a client chose, in one short line."""
    visible = "".join(character if character.isprintable() else "?" for character in redact(name))
    return f"'{visible[:40]}…'" if len(visible) > 40 else f"'{visible}'"
