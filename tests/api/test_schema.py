from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Annotated, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import UNSET, Meta, UnsetType

from llm_proxy.api.schema import Body, Field, Id, Query, Timestamp, one_of, printable, read_body, read_query, text
from llm_proxy.errors import InvalidBody, InvalidQuery
from tests.api.conftest import NOON

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)
TYPES: dict[str, Any] = {
    "text": Annotated[str, text(1, 5)],
    "printable": Annotated[str, printable(5)],
    "integer": Annotated[int, Meta(ge=-3, le=3)],
    "one_of": Annotated[str, one_of(["a", "b"])],
    "boolean": bool,
    "id": Id,
    "timestamp": Timestamp,
}


def right(kind: str, value: Any) -> bool:
    """What each type accepts, computed in another way."""
    rules: dict[str, Callable[[], bool]] = {
        "text": lambda: isinstance(value, str) and 1 <= len(value) <= 5,
        "printable": lambda: isinstance(value, str) and 1 <= len(value) <= 5 and value.isascii() and " " not in value,
        "integer": lambda: isinstance(value, int) and not isinstance(value, bool) and abs(value) <= 3,
        "one_of": lambda: value in ("a", "b"),
        "boolean": lambda: value is True or value is False,
        "id": lambda: isinstance(value, str) and len(value) == 36,
        "timestamp": lambda: isinstance(value, str) and len(value) >= 20,
    }
    return rules[kind]()


def refused(field: Field, value: object) -> str:
    """Why a field refuses a value; empty if it accepts it."""
    try:
        field.read(value)
    except ValueError as mistake:
        return str(mistake)
    return ""


@given(value=JSON, kind=st.sampled_from(sorted(TYPES)), nullable=st.booleans())
def test_any_value_is_accepted_or_refused_with_what_is_allowed(value: Any, kind: str, nullable: bool) -> None:
    field = Field.of("x", TYPES[kind] | None if nullable else TYPES[kind])
    refusal = f"'x' must be {Field.of('x', TYPES[kind]).kind.allowed}{' or null' if nullable else ''}"
    assert refused(field, value) in ("", refusal)
    assert refused(field, value) or (value is None and nullable) or right(kind, value)


LINE = Field.of("x", Annotated[str, text(0, 5)])


@given(value=st.text(st.characters(codec="utf-8"), max_size=7))
def test_text_is_one_line_without_space_at_its_ends(value: str) -> None:
    if not refused(LINE, value):
        assert len(value.splitlines()) <= 1
        assert value == value.strip()
        assert "\x00" not in value
        assert len(value) <= 5


@pytest.mark.parametrize("value", ["é", "東京", "a b", "🚀👩‍🚀", "naïve", "x\u00a0y"])
def test_text_in_any_script_is_accepted(value: str) -> None:
    assert LINE.read(value) == value


@pytest.mark.parametrize(
    "value", ["\x00", "a\x1fb", "a\x7fb", "a\x85b", "a\nb", "\ud800", "a\u2028b", "a\u2029b", " a", "a\u00a0"]
)
def test_text_with_an_invisible_character_is_refused(value: str) -> None:
    with pytest.raises(ValueError, match="without control characters"):
        LINE.read(value)


def test_a_timestamp_is_read_as_utc() -> None:
    field = Field.of("x", Timestamp)
    assert field.read("2027-01-15T14:30:00.25+02:30") == datetime(2027, 1, 15, 12, 0, 0, 250_000, tzinfo=UTC)
    assert field.read("2027-01-15T12:00:00Z").tzinfo is UTC


class Parameters(Query, kw_only=True):
    n: Annotated[int, Meta(ge=0, le=9)] | UnsetType = UNSET
    b: bool | UnsetType = UNSET
    t: Annotated[str, text(0, 9)] | UnsetType = UNSET


class Flag(Body, kw_only=True):
    a: bool = False


def test_unknown_names_are_shown_short_and_clean() -> None:
    with pytest.raises(InvalidBody) as refusal:
        read_body(Flag, {"x" * 41: 1, "a\x1b[31m\n": 1, "sk-canary-0123456789": 1}, lambda *_: (), NOON)
    assert refusal.value.description.split("; ") == [
        f"'{'x' * 40}…' is not a field of this request (fields: a)",
        "'a?[31m?' is not a field of this request (fields: a)",
        "'[redacted]' is not a field of this request (fields: a).",
    ]


def test_parameters_become_what_json_would_contain() -> None:
    assert read_query(Parameters, [("n", "007"), ("b", "FALSE"), ("t", "5")]) == Parameters(n=7, b=False, t="5")


@pytest.mark.parametrize(
    ("name", "value"), [("n", "٣"), ("n", "9" * 5000), ("n", "1.0"), ("n", " 7"), ("b", "1"), ("b", "yes"), ("b", "")]
)
def test_a_parameter_of_another_type_is_refused(name: str, value: str) -> None:
    with pytest.raises(InvalidQuery, match=f"'{name}' must be"):
        read_query(Parameters, [(name, value)])


def test_a_parameter_that_comes_twice_is_refused() -> None:
    with pytest.raises(InvalidQuery, match=r"^'n' comes more than once\.$"):
        read_query(Parameters, [("n", "3"), ("n", "4")])


@pytest.mark.parametrize(
    ("value", "good"),
    [
        ("6f1b4a52-8a39-4c0e-9d0e-6c1f7d1f3b11", True),
        ("6F1B4A52-8A39-4C0E-9D0E-6C1F7D1F3B11", True),
        ("6f1b4a528a394c0e9d0e6c1f7d1f3b11", False),
        ("{6f1b4a52-8a39-4c0e-9d0e-6c1f7d1f3b11}", False),
        ("urn:uuid:6f1b4a52-8a39-4c0e-9d0e-6c1f7d1f3b11", False),
        (" 6f1b4a52-8a39-4c0e-9d0e-6c1f7d1f3b11", False),
        ("", False),
        (None, False),
        (5, False),
    ],
)
def test_a_uuid_is_read_in_lower_case_and_other_values_are_refused(value: object, good: bool) -> None:
    field = Field.of("id", Id)
    if good:
        assert field.read(value) == "6f1b4a52-8a39-4c0e-9d0e-6c1f7d1f3b11"
    else:
        with pytest.raises(ValueError, match="'id' must be a UUID such as"):
            field.read(value)
