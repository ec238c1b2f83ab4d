"""The ledger: requests that have ended, the newest first."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, Final, TypeVar, get_args, get_type_hints

from msgspec import UNSET, Struct, UnsetType, defstruct, field

from db import Connection, records
from db.queries import projects, tokens
from db.queries import requests as queries
from llm_proxy.api.operations import Call, Operation, Resource, found
from llm_proxy.api.pages import ById, encode_cursor, page_of
from llm_proxy.api.schema import Field, Id, LabelFilters, Reference, Time, doc, given, one_of, printable, text
from llm_proxy.errors import ProjectNotFound, RequestNotFound, TokenNotFound

F = TypeVar("F")
R = TypeVar("R")

RESOURCE: Final = Resource("Requests", "request", RequestNotFound, id=Field.of("id", Annotated[str, printable(255)]))


def _columns(record: type[Struct]) -> dict[str, Any]:
    hints = get_type_hints(record, include_extras=True)
    return {name: hints[name] for name in record.__struct_fields__}


_SETTLED_AT: Final = _columns(records.SettledRequest)["settled_at"]
_RESULT: Final = _columns(records.Result)
#: Columns that are shown in another way, or not at all.
_HIDDEN: Final = ("cost_nanousd", "summed_labels", "limits")
_COST: Final = Annotated[str | None, doc("The cost in USD, a decimal number; null if it is unknown.")]
#: One row of the ledger: what the records of it have, on one level.
Request: Final = defstruct(
    "Request",
    [
        *((name, hint) for name, hint in (_columns(records.Reservation) | _RESULT).items() if name not in _HIDDEN),
        ("cost", _COST),
        ("settled_at", _SETTLED_AT),
    ],
)


def usd(nanousd: int | None) -> str | None:
    """Write an amount of 10^-9 USD as a decimal number of USD."""
    return None if nanousd is None else f"{nanousd // 10**9}.{nanousd % 10**9:09d}"


def _shown(row: records.SettledRequest) -> dict[str, Any]:
    columns = row.by_column()
    columns["cost"] = usd(columns["cost_nanousd"])
    return {name: columns[name] for name in Request.__struct_fields__}


class ListRequests(ById, kw_only=True):
    """The requests to list."""

    id: Annotated[Id, doc("Only the request of this id.")] | UnsetType = UNSET
    provider_request_id: (
        Annotated[str, printable(255), doc("Only requests to which the provider gave this id.")] | UnsetType
    ) = UNSET
    project_id: Annotated[Reference, doc("Only requests of this project: its id or name.")] | UnsetType = UNSET
    token_id: Annotated[Reference, doc("Only requests with this token: its id or name.")] | UnsetType = UNSET
    model: Annotated[str, text(0, 255), doc("Only requests that this model answered.")] | UnsetType = UNSET
    status: Annotated[records.Status, doc("Only requests whose response had this status.")] | UnsetType = UNSET
    outcome: (
        Annotated[str, one_of(get_args(records.Outcome)), doc("Only requests that ended like this.")] | UnsetType
    ) = UNSET
    since: Annotated[Time, doc("Only requests at this time or later.")] = field(name="from", default=UNSET)
    until: Annotated[Time, doc("Only requests before this time.")] = field(name="to", default=UNSET)
    labels: Annotated[LabelFilters, doc("Only requests whose label KEY has this value.")] = field(
        name="label.KEY", default_factory=dict
    )


@Operation(RESOURCE, "GET", "/manage/requests", "listRequests", page_of(Request), query=ListRequests)
async def _list(call: Call, query: ListRequests) -> object:
    """List the requests that have ended, the newest first."""
    return await list_page(call, query, queries.page, queries.Filter, _shown)


async def list_page(
    call: Call,
    query: ById,
    read: Callable[[Connection, int, str | None, F], tuple[list[R], str | None]],
    wanted: Callable[..., F],
    show: Callable[[R], object],
) -> dict[str, object]:
    """Read one page of a list whose entries belong to a token and a project; `wanted` makes the filter of `read`."""
    sent: dict[str, Any] = given(query)
    limit, after = sent.pop("limit"), sent.pop("cursor", None)
    for name, find, missing in (
        ("project_id", projects.find, ProjectNotFound),
        ("token_id", tokens.find, TokenNotFound),
    ):
        if name in sent:
            sent[name] = await call.resolve(sent[name], find, missing)
    rows, following = await call.services.database.read(read, limit, after, wanted(**sent))
    return {
        "data": [show(row) for row in rows],
        "next_cursor": None if following is None else encode_cursor(following),
    }


@Operation(RESOURCE, "GET", "/manage/requests/{request_id}", "getRequest", Request)
async def _get(call: Call) -> object:
    """Show a request that has ended, by its own id or the provider's (of successful ones, the newest million)."""
    return _shown(found(await call.services.database.read(queries.find, call.id), RequestNotFound))
