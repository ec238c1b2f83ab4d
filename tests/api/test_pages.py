from __future__ import annotations

import base64
from datetime import UTC, datetime, timedelta
from typing import Any, get_type_hints

import pytest
from hypothesis import given
from hypothesis import strategies as st

from db.queries.rows import Position
from llm_proxy.api import pages
from llm_proxy.api.pages import ByCreation, ById
from llm_proxy.api.schema import Field, Query
from llm_proxy.identifiers import new_id
from tests.api.conftest import NOON
from tests.api.test_schema import JSON


def cursor(struct: type[Query], value: Any) -> Any:
    return Field.of("cursor", get_type_hints(struct, include_extras=True)["cursor"]).read(value)


@given(at=st.datetimes(datetime(1970, 1, 1), datetime(9999, 12, 31), timezones=st.just(UTC)))  # noqa: DTZ001 - naive by contract
def test_a_cursor_is_decoded_to_its_row(at: datetime) -> None:
    identity = new_id()
    position = cursor(ByCreation, pages.position_cursor(Position(at, identity)))
    assert (position.created_at, position.id) == (at, identity)
    assert cursor(ById, pages.id_cursor(Position(NOON, identity))) == identity


@given(
    value=JSON
    | st.binary().map(lambda raw: pages.encode_cursor(raw.hex()))
    | st.text("0123456789:-abcdef").map(pages.encode_cursor)
)
def test_any_other_value_is_refused_as_cursor(value: Any) -> None:
    for struct in (ByCreation, ById):
        with pytest.raises(ValueError, match="must be the next_cursor of a page of this list"):
            cursor(struct, value)


@pytest.mark.parametrize("micros", ["-1", "9" * 18, "9" * 19, "1.5", "٣", ""])
def test_a_cursor_with_an_invalid_time_is_refused(micros: str) -> None:
    raw = f"{micros}:{new_id()}".encode()
    with pytest.raises(ValueError, match="next_cursor"):
        cursor(ByCreation, base64.urlsafe_b64encode(raw).decode())


def test_a_cursor_of_another_kind_of_list_is_refused() -> None:
    with pytest.raises(ValueError, match="next_cursor"):
        cursor(ById, pages.position_cursor(Position(NOON, new_id())))
    with pytest.raises(ValueError, match="next_cursor"):
        cursor(ByCreation, pages.id_cursor(Position(NOON, new_id())))


@pytest.mark.parametrize(("rows", "shown", "cursor"), [(0, 0, False), (2, 2, False), (3, 3, False), (4, 3, True)])
def test_a_page_has_a_cursor_if_there_is_one_row_more(rows: int, shown: int, cursor: bool) -> None:
    page = pages.page(range(rows), 3, str, lambda row: f"c{row}")
    assert page == {"data": ["0", "1", "2"][:shown], "next_cursor": "c2" if cursor else None}


def test_cursor_times_are_exact_to_the_microsecond() -> None:
    identity = new_id()
    at = datetime(2027, 1, 15, 12, 0, 0, 999_999, tzinfo=UTC)
    for step in range(3):
        at_step = at + step * timedelta(microseconds=1)
        assert cursor(ByCreation, pages.position_cursor(Position(at_step, identity))).created_at == at_step
