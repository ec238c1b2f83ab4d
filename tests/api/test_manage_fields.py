from __future__ import annotations

import base64
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_proxy.api import pages
from llm_proxy.api.fields import (
    BOOLEAN,
    ID,
    MOMENT,
    Field,
    Kind,
    credential,
    integer,
    one_of,
    parse_query,
    read_id,
    read_values,
    text,
)
from llm_proxy.identifiers import new_id

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)
KINDS: dict[str, Kind] = {
    "text": text(1, 5),
    "credential": credential(5),
    "integer": integer(-3, 3),
    "one_of": one_of(["a", "b"]),
    "boolean": BOOLEAN,
    "id": ID,
    "moment": MOMENT,
}


def right(kind: str, value: Any) -> bool:
    """What each kind takes, said once more in other words."""
    said: dict[str, Callable[[], bool]] = {
        "text": lambda: isinstance(value, str) and 1 <= len(value) <= 5,
        "credential": lambda: isinstance(value, str) and 1 <= len(value) <= 5 and value.isascii() and " " not in value,
        "integer": lambda: isinstance(value, int) and not isinstance(value, bool) and abs(value) <= 3,
        "one_of": lambda: value in ("a", "b"),
        "boolean": lambda: value is True or value is False,
        "id": lambda: isinstance(value, str) and len(value) == 36,
        "moment": lambda: isinstance(value, str) and len(value) >= 20,
    }
    return said[kind]()


@given(value=JSON, kind=st.sampled_from(sorted(KINDS)), nullable=st.booleans())
def test_any_value_is_read_or_refused_in_words(value: Any, kind: str, nullable: bool) -> None:
    field = Field("x", KINDS[kind], "Help.", nullable=nullable)
    values, mistakes = read_values([field], {"x": value}, "field")
    if mistakes:
        assert mistakes == [f"'x' must be {KINDS[kind].words}{' or null' if nullable else ''}"]
        assert values == {}
    else:
        assert (value is None and nullable) or right(kind, value)


@given(value=st.text(st.characters(codec="utf-8"), max_size=7))
def test_text_is_one_line_without_space_at_its_ends(value: str) -> None:
    _, mistakes = read_values([Field("x", text(0, 5), "Help.")], {"x": value}, "field")
    if not mistakes:
        assert len(value.splitlines()) <= 1
        assert value == value.strip()
        assert "\x00" not in value
        assert len(value) <= 5


@pytest.mark.parametrize("value", ["é", "東京", "a b", "🚀👩‍🚀", "naïve", "x\u00a0y"])
def test_text_may_be_in_any_script(value: str) -> None:
    assert text(1, 5).read(value) == value


@pytest.mark.parametrize(
    "value", ["\x00", "a\x1fb", "a\x7fb", "a\x85b", "a\nb", "\ud800", "a\u2028b", "a\u2029b", " a", "a\u00a0"]
)
def test_text_has_no_character_that_cannot_be_seen(value: str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 (the words are the field's)
        text(0, 5).read(value)


def test_a_moment_is_read_as_utc() -> None:
    assert MOMENT.read("2027-01-15T14:30:00.25+02:30") == datetime(2027, 1, 15, 12, 0, 0, 250_000, tzinfo=UTC)
    assert MOMENT.read("2027-01-15T12:00:00Z").tzinfo is UTC


def test_unknown_names_are_shown_short_and_clean() -> None:
    fields = [Field("a", BOOLEAN, "Help.")]
    given = {"x" * 41: 1, "a\x1b[31m\n": 1, "sk-canary-0123456789": 1}
    assert read_values(fields, given, "field")[1] == [
        f"'{'x' * 40}…' is not a field of this request (fields: a)",
        "'a?[31m?' is not a field of this request (fields: a)",
        "'[redacted]' is not a field of this request (fields: a)",
    ]


def test_parameters_come_once_and_become_what_json_would_hold() -> None:
    fields = [Field("n", integer(0, 9), "Help."), Field("b", BOOLEAN, "Help."), Field("t", text(0, 9), "Help.")]
    given, mistakes = parse_query(fields, [("n", "007"), ("b", "FALSE"), ("t", "5"), ("u", "5")])
    assert (given, mistakes) == ({"n": 7, "b": False, "t": "5", "u": "5"}, [])
    given, mistakes = parse_query(fields, [("n", "٣"), ("b", "1"), ("n", "4")])
    assert (given, mistakes) == ({"n": 4, "b": "1"}, ["'n' comes more than once"])
    assert parse_query(fields, [("n", "9" * 5000)])[0] == {"n": "9" * 5000}


CREATION, BY_ID = pages.BY_CREATION[1], pages.BY_ID[1]


@given(at=st.datetimes(datetime(1970, 1, 1), datetime(9999, 12, 31), timezones=st.just(UTC)))  # noqa: DTZ001 - naive by contract
def test_a_cursor_leads_back_to_its_row(at: datetime) -> None:
    identity = new_id()
    position = CREATION.read(pages.position_cursor(at, identity))
    assert (position.created_at, position.id) == (at, identity)
    assert BY_ID.read(pages.id_cursor(identity)) == identity


@given(
    value=JSON
    | st.binary().map(lambda raw: pages._encode(raw.hex()))
    | st.text("0123456789:-abcdef").map(pages._encode)
)
def test_nothing_else_is_a_cursor(value: Any) -> None:
    for field in (CREATION, BY_ID):
        with pytest.raises(ValueError, match="must be the next_cursor of a page of this list"):
            field.read(value)


@pytest.mark.parametrize("micros", ["-1", "9" * 18, "9" * 19, "1.5", "٣", ""])
def test_a_cursor_of_no_time_is_refused(micros: str) -> None:
    raw = f"{micros}:{new_id()}".encode()
    with pytest.raises(ValueError, match="next_cursor"):
        CREATION.read(base64.urlsafe_b64encode(raw).decode())


def test_cursors_of_two_kinds_of_lists_are_not_mixed() -> None:
    with pytest.raises(ValueError, match="next_cursor"):
        BY_ID.read(pages.position_cursor(datetime(2027, 1, 1, tzinfo=UTC), new_id()))
    with pytest.raises(ValueError, match="next_cursor"):
        CREATION.read(pages.id_cursor(new_id()))


@pytest.mark.parametrize(("rows", "shown", "cursor"), [(0, 0, False), (2, 2, False), (3, 3, False), (4, 3, True)])
def test_there_is_a_next_page_where_there_is_one_row_more(rows: int, shown: int, cursor: bool) -> None:
    page = pages.page(range(rows), 3, str, lambda row: f"c{row}")
    assert page == {"data": ["0", "1", "2"][:shown], "next_cursor": "c2" if cursor else None}


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
def test_an_id_is_a_uuid_in_either_case_and_read_in_lower_case(value: object, good: bool) -> None:
    if good:
        assert read_id(value) == "6f1b4a52-8a39-4c0e-9d0e-6c1f7d1f3b11"
    else:
        with pytest.raises(ValueError):  # noqa: PT011 (that it is not an id says it all)
            read_id(value)


def test_times_of_cursors_are_exact_to_the_microsecond() -> None:
    identity = new_id()
    at = datetime(2027, 1, 15, 12, 0, 0, 999_999, tzinfo=UTC)
    for step in range(3):
        moment = at + step * timedelta(microseconds=1)
        assert CREATION.read(pages.position_cursor(moment, identity)).created_at == moment
