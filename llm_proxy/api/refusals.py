"""Requests that were refused before their admission, the newest first; recorded if `RECORD_REFUSALS` is set."""

from __future__ import annotations

from typing import Annotated, Final

from msgspec import UNSET, UnsetType, field

from db.queries import refusals as queries
from db.records import RefusedRequest
from llm_proxy.api.operations import Call, Operation, Resource
from llm_proxy.api.pages import ById, page_of
from llm_proxy.api.requests import list_page
from llm_proxy.api.schema import Reference, Time, doc, one_of
from llm_proxy.errors import DATA_PLANE

RESOURCE: Final = Resource("Refusals", "refusal")


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


@Operation(RESOURCE, "GET", "/manage/refusals", "listRefusals", page_of(RefusedRequest), query=ListRefusals)
async def _list(call: Call, query: ListRefusals) -> object:
    """List the requests that were refused before their admission, the newest first."""
    return await list_page(call, query, queries.page, queries.Filter, lambda row: row)
