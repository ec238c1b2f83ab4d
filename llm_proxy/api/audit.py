"""The audit log: changes through this API and refused calls, the newest first. Nothing changes or deletes an entry."""

from __future__ import annotations

from typing import Annotated, Any, Final, get_args

from msgspec import UNSET, UnsetType, field

from db.queries import audit as queries
from db.records import AuditEntry, AuditOutcome
from llm_proxy.api.operations import Call, Operation, Resource
from llm_proxy.api.pages import ById, id_cursor, page, page_of
from llm_proxy.api.schema import Timestamp, doc, given, one_of, printable, text

RESOURCE: Final = Resource("Audit log", "audit")

#: The kinds of resources that entries name.
KINDS: Final = ("project", "credential", "token", "limit", "request", "refusal", "usage", "audit", "server")

_Text = Annotated[str, text(1, 255)]
_Word = Annotated[str, printable(64)]


class ListAudit(ById, kw_only=True):
    """The entries to list."""

    resource_id: Annotated[_Text, doc("Only calls on the resource of this id.")] | UnsetType = UNSET
    resource: Annotated[str, one_of(KINDS), doc("Only calls on this kind of resource.")] | UnsetType = UNSET
    operation: Annotated[_Word, doc("Only calls of this operationId.")] | UnsetType = UNSET
    outcome: Annotated[str, one_of(get_args(AuditOutcome)), doc("Only such calls.")] | UnsetType = UNSET
    actor: Annotated[_Text, doc("Only calls of this actor.")] | UnsetType = UNSET
    since: Annotated[Timestamp, doc("Only calls at this time or later.")] | UnsetType = field(
        name="from", default=UNSET
    )
    until: Annotated[Timestamp, doc("Only calls before this time.")] | UnsetType = field(name="to", default=UNSET)


@Operation(RESOURCE, "GET", "/manage/audit", "listAudit", page_of(AuditEntry), query=ListAudit)
async def _list(call: Call, query: ListAudit) -> object:
    """List changes and refused calls, the newest first."""
    sent: dict[str, Any] = given(query)
    limit, after = sent.pop("limit"), sent.pop("cursor", None)
    rows = await call.services.database.read(queries.page, limit + 1, after, queries.Filter(**sent))
    return page(rows, limit, lambda row: row, id_cursor)
