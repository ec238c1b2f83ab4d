"""Pages of long lists: `limit` and `cursor` in, `{"data": […], "next_cursor": …}` out.

With `Accept: text/csv` the answer is one table of all entries instead, sent page by page.

A cursor names the last row of a page, and the next page begins after it, so rows that are added or removed meanwhile
do not shift the pages. A cursor is opaque to clients and validated like everything that they send.
"""

from __future__ import annotations

import base64
import binascii
import csv
import io
import json
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, Final, TypeVar

from msgspec import UNSET, Meta, Struct, defstruct, structs, to_builtins

from db.queries.rows import Position
from llm_proxy.api.schema import Query, doc, fields, of, read_id
from llm_proxy.config.kinds import Kind

DEFAULT_LIMIT: Final = 50
MAX_LIMIT: Final = 500

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND: Final = timedelta(microseconds=1)

T = TypeVar("T")


def cursor_of(read: Callable[[str], Any]) -> Meta:
    def decode(value: object) -> Any:
        if not isinstance(value, str) or not value.isascii():
            raise ValueError
        try:
            text = base64.b64decode(value + "=" * (-len(value) % 4), altchars=b"-_", validate=True).decode()
        except binascii.Error:
            raise ValueError from None
        return read(text)

    return of(Kind("cursor", "the next_cursor of a page of this list", decode), {"type": "string"})


def _read_position(text: str) -> Position:
    match = re.fullmatch(r"([0-9]{1,18}):(.*)", text, re.ASCII)
    if match is None:
        raise ValueError
    return Position(_EPOCH + int(match[1]) * _MICROSECOND, read_id(match[2]))


CURSOR: Final = doc("The `next_cursor` of the previous page; omit it for the first page.")


class Paging(Query, kw_only=True):
    """The parameters of every list."""

    limit: Annotated[int, Meta(ge=1, le=MAX_LIMIT), doc("Maximum number of entries on a page.")] = DEFAULT_LIMIT

    def columns(self, names: Sequence[str]) -> Sequence[str]:
        """The columns of the list as a table, of the fields of an entry."""
        return names


class ByCreation(Paging, kw_only=True):
    """The parameters of a list in the order of creation."""

    cursor: Annotated[Any, cursor_of(_read_position), CURSOR] = UNSET


class ById(Paging, kw_only=True):
    """The parameters of a list in the order of ids."""

    cursor: Annotated[Any, cursor_of(read_id), CURSOR] = UNSET


def position_cursor(row: Any) -> str:
    return encode_cursor(f"{(row.created_at - _EPOCH) // _MICROSECOND}:{row.id}")


def id_cursor(row: Any) -> str:
    return encode_cursor(row.id)


def encode_cursor(text: str) -> str:
    return base64.urlsafe_b64encode(text.encode()).rstrip(b"=").decode("ascii")


def page(rows: Sequence[T], limit: int, show: Callable[[T], object], cursor: Callable[[T], str]) -> dict[str, object]:
    """Give a page; there is a next one if there is one row more than the limit."""
    shown = rows[:limit]
    return {"data": [show(row) for row in shown], "next_cursor": cursor(shown[-1]) if len(rows) > limit else None}


def page_of(entry: type[Struct]) -> type[Struct]:
    next_cursor = Annotated[str | None, doc("The `cursor` of the next page; null on the last page.")]
    rows: Any = list[entry]  # type: ignore[valid-type] # a type that is known at run time only
    return defstruct(f"{entry.__name__}Page", [("data", rows), ("next_cursor", next_cursor)])


async def csv_of(
    answer: type[Struct], query: Paging, list_page: Callable[[Any], Awaitable[Any]]
) -> AsyncIterator[bytes]:
    """Read the first page, and give all entries from it on as CSV (RFC 4180).

    `answer` is the type of a page, and `query` the one of the first page; its `limit` is not used.
    """
    names = query.columns(answer.__annotations__["data"].__args__[0].__struct_fields__)
    query = structs.replace(query, limit=MAX_LIMIT)
    first = await list_page(query)

    async def lines() -> AsyncIterator[bytes]:
        found, title = first, [names]
        while True:
            entries = to_builtins(found["data"])
            yield _csv([*title, *([_cell(entry.get(name)) for name in names] for entry in entries)])
            if found["next_cursor"] is None:
                return
            title, cursor = [], fields(type(query))["cursor"].read(found["next_cursor"])
            found = await list_page(structs.replace(query, cursor=cursor))

    return lines()


def _csv(rows: Iterable[Sequence[object]]) -> bytes:
    text = io.StringIO()
    csv.writer(text, quoting=csv.QUOTE_NONNUMERIC).writerows(rows)
    return text.getvalue().encode()


def _cell(value: object) -> object:
    """Write a value for a cell. Text that a spreadsheet would take for a formula begins with an apostrophe."""
    if isinstance(value, str):
        return f"'{value}" if value.startswith(("=", "+", "-", "@", "\t", "\r")) else value
    if isinstance(value, bool | dict):
        return json.dumps(value, ensure_ascii=False)
    return value
