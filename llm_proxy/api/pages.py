"""Pages of long lists: `limit` and `cursor` in, `{"data": […], "next_cursor": …}` out.

A cursor names the last row of a page, and the next page begins behind it: rows that come or go meanwhile shift
nothing. It is opaque to clients and checked like everything that they send.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Final, TypeVar

from db.queries.rows import Position
from llm_proxy.api.fields import Field, Kind, integer, read_id

DEFAULT_LIMIT: Final = 50
LARGEST_LIMIT: Final = 500

LIMIT: Final = Field(
    "limit", integer(1, LARGEST_LIMIT), f"Most entries of a page; {DEFAULT_LIMIT} where it is left out."
)

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND: Final = timedelta(microseconds=1)

T = TypeVar("T")


def _cursor(read: Callable[[str], Any]) -> Field:
    def decode(value: object) -> Any:
        if not isinstance(value, str) or not value.isascii():
            raise ValueError
        try:
            text = base64.b64decode(value + "=" * (-len(value) % 4), altchars=b"-_", validate=True).decode("ascii")
        except binascii.Error:
            raise ValueError from None
        return read(text)

    words = "the next_cursor of a page of this list"
    kind = Kind(words, {"type": "string"}, decode)
    return Field("cursor", kind, "The `next_cursor` of the page before; left out for the first page.")


def _encode(text: str) -> str:
    return base64.urlsafe_b64encode(text.encode("ascii")).rstrip(b"=").decode("ascii")


def _read_position(text: str) -> Position:
    match = re.fullmatch(r"([0-9]{1,18}):(.*)", text, re.ASCII)
    if match is None:
        raise ValueError
    return Position(_EPOCH + int(match[1]) * _MICROSECOND, read_id(match[2]))


#: The parameters of lists in the order of creation, and of lists in the order of ids.
BY_CREATION: Final = (LIMIT, _cursor(_read_position))
BY_ID: Final = (LIMIT, _cursor(read_id))


def position_cursor(created_at: datetime, identity: str) -> str:
    """Give the cursor of a row of a list in the order of creation."""
    return _encode(f"{(created_at - _EPOCH) // _MICROSECOND}:{identity}")


def id_cursor(identity: str) -> str:
    """Give the cursor of a row of a list in the order of ids."""
    return _encode(identity)


def page(rows: Sequence[T], limit: int, show: Callable[[T], object], cursor: Callable[[T], str]) -> dict[str, object]:
    """Make the answer from one row more than the limit, if there are as many: then there is a next page."""
    shown = rows[:limit]
    return {
        "data": [show(row) for row in shown],
        "next_cursor": cursor(shown[-1]) if len(rows) > limit else None,
    }
