"""The ledger: requests that have ended; and requests that were refused before their admission. The newest are first.

Refused requests are recorded only if `RECORD_REFUSALS` is set.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from datetime import datetime
from decimal import Decimal, InvalidOperation
from typing import Annotated, Any, Final, TypeVar, get_args, get_type_hints

from msgspec import UNSET, Struct, UnsetType, defstruct, field

from db import Connection, records
from db.queries import ledger, projects, refusals, tokens
from db.queries import requests as queries
from llm_proxy.api.operations import Call, Change, Operation, Resource, found
from llm_proxy.api.pages import ById, encode_cursor, page_of
from llm_proxy.api.schema import Body, Field, Id, LabelFilters, Reference, Time, doc, given, of, one_of, printable, text
from llm_proxy.config.kinds import Kind
from llm_proxy.errors import DATA_PLANE, ProjectNotFound, RequestKnown, RequestNotFound, TokenNotFound
from llm_proxy.logging import log

F = TypeVar("F")
R = TypeVar("R")

RESOURCE: Final = Resource("Requests", "request", RequestNotFound, id=Field.of("id", Annotated[str, printable(255)]))
REFUSALS: Final = Resource("Refusals", "refusal")

_log = log.logger("manage")


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
    return await _list_page(call, query, queries.page, queries.Filter, _shown)


async def _list_page(
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
    return _shown(found(await call.services.database.read(queries.find, call.id), RequestNotFound, call.id))


#: The most that one request can cost, in USD.
_MAX_USD: Final = 1_000_000


def _read_cost(value: str) -> int:
    try:
        nanousd = Decimal(value) * 10**9
        if 0 <= nanousd <= _MAX_USD * 10**9 and nanousd == int(nanousd):
            return int(nanousd)
    except InvalidOperation:
        pass
    raise ValueError


_USD: Final = Kind(
    "cost", f'USD from 0 to {_MAX_USD} with at most nine digits after the point, such as "0.12"', _read_cost
)


class Resolution(Body, kw_only=True):
    """What was found out about a request whose server died: exactly one of both."""

    cost: Annotated[str, of(_USD), doc("What it cost, in USD.")] | UnsetType = UNSET
    void: Annotated[bool, doc("Whether nothing of it was sent: its count is given back.")] = False


def _check_resolution(given: Collection[str], values: Mapping[str, Any], _now: datetime) -> Iterable[str]:
    if ("cost" in given) == bool(values.get("void")):
        yield "either 'cost' or 'void' (true) must be given"


@Operation(
    RESOURCE,
    "POST",
    "/manage/requests/{request_id}/resolve",
    "resolveRequest",
    Request,
    body=Resolution,
    check=_check_resolution,
    errors=(RequestKnown,),
)
async def _resolve(call: Call, body: Resolution) -> object:
    """Correct a request whose outcome is unknown, with all sums, counters and limits. Doing so again changes nothing.

    One that has a cost now can be corrected again.
    """
    cost: Any = None if body.cost is UNSET else body.cost

    def resolve(connection: Connection) -> Change[records.Result]:
        row = found(ledger.get_locked(connection, call.id.lower()), RequestNotFound, call.id)
        before = row.result
        if before.outcome != ("void" if cost is None else "unknown") or before.cost_nanousd != cost:
            if before.outcome != "unknown":
                raise RequestKnown(f"The outcome of the request is {before.outcome!r}. {RequestKnown.description}")
            row = ledger.resolve(connection, row, cost)
        return Change(before, row.result, id=row.id)

    await call.write(resolve)
    _log.info("request resolved", request_id=call.id, void=body.void)
    return _shown(found(await call.services.database.read(queries.find, call.id), RequestNotFound, call.id))


class ListRefusals(ById, kw_only=True):
    """The refusals to list."""

    token_id: Annotated[Reference, doc("Only requests with this token: its id or name.")] | UnsetType = UNSET
    project_id: Annotated[Reference, doc("Only requests of this project: its id or name.")] | UnsetType = UNSET
    code: (
        Annotated[str, one_of(sorted({kind.code for kind in DATA_PLANE})), doc("Only requests with this error.")]
        | UnsetType
    ) = UNSET
    since: Annotated[Time, doc("Only requests at this time or later.")] = field(name="from", default=UNSET)
    until: Annotated[Time, doc("Only requests before this time.")] = field(name="to", default=UNSET)


@Operation(REFUSALS, "GET", "/manage/refusals", "listRefusals", page_of(records.RefusedRequest), query=ListRefusals)
async def _list_refused(call: Call, query: ListRefusals) -> object:
    """List the requests that were refused before their admission, the newest first."""
    return await _list_page(call, query, refusals.page, refusals.Filter, lambda row: row)
