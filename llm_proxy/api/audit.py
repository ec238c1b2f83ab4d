"""The audit log: changes through this API and refused calls, the newest first. Nothing changes or deletes an entry.

The entry of a change is written in the transaction of the change, by `operations.Call.write`. That of a refused call is
written in a transaction of its own, before the answer. Anybody can send calls that are not authenticated, so only a few
of these are written one by one. The others are counted, and one entry has their number.
"""

from __future__ import annotations

from typing import Annotated, Any, Final, get_args

import trio
from msgspec import UNSET, UnsetType, field, structs

from db.database import Database
from db.errors import DatabaseError
from db.queries import audit as queries
from db.records import AuditEntry, AuditOutcome
from llm_proxy.api.operations import Call, Operation, Resource
from llm_proxy.api.pages import ById, id_cursor, page, page_of
from llm_proxy.api.schema import Time, doc, given, one_of, printable, text
from llm_proxy.identifiers import request_id
from llm_proxy.logging import log

RESOURCE: Final = Resource("Audit log", "audit")

#: The kinds of resources that entries name.
KINDS: Final = ("project", "credential", "token", "limit", "request", "refusal", "usage", "audit", "server")

#: Maximum number of unauthenticated calls that are written one by one in an interval, and its length in seconds.
LIMIT: Final = 20
INTERVAL: Final = 600.0

_log = log.logger("manage")

_Text = Annotated[str, text(1, 255)]
_Word = Annotated[str, printable(64)]


class ListAudit(ById, kw_only=True):
    """The entries to list."""

    resource_id: Annotated[_Text, doc("Only calls on the resource of this id.")] | UnsetType = UNSET
    resource: Annotated[str, one_of(KINDS), doc("Only calls on this kind of resource.")] | UnsetType = UNSET
    operation: Annotated[_Word, doc("Only calls of this operationId.")] | UnsetType = UNSET
    outcome: Annotated[str, one_of(get_args(AuditOutcome)), doc("Only calls with this outcome.")] | UnsetType = UNSET
    actor: Annotated[_Text, doc("Only calls of this actor.")] | UnsetType = UNSET
    since: Annotated[Time, doc("Only calls at this time or later.")] = field(name="from", default=UNSET)
    until: Annotated[Time, doc("Only calls before this time.")] = field(name="to", default=UNSET)


@Operation(RESOURCE, "GET", "/manage/audit", "listAudit", page_of(AuditEntry), query=ListAudit)
async def _list(call: Call, query: ListAudit) -> object:
    """List changes and refused calls, the newest first."""
    sent: dict[str, Any] = given(query)
    limit, after = sent.pop("limit"), sent.pop("cursor", None)
    rows = await call.services.database.read(queries.page, limit + 1, after, queries.Filter(**sent))
    return page(rows, limit, lambda row: row, id_cursor)


class RefusedCalls:
    """Writes the refused calls of this process."""

    def __init__(self, database: Database, nursery: trio.Nursery) -> None:
        self._database = database
        self._nursery = nursery
        self._interval_ends = 0.0
        self._written = 0
        self._counted = 0

    async def add(self, entry: AuditEntry) -> None:
        """Write an entry; if it is not authenticated and there have been many, count it."""
        if entry.actor or self._has_room():
            await self._write(entry)
            return
        self._counted += 1
        if self._counted == 1:
            self._nursery.start_soon(self._sum_up, entry)

    def _has_room(self) -> bool:
        now = trio.current_time()
        if now >= self._interval_ends:
            self._interval_ends, self._written = now + INTERVAL, 0
        self._written += 1
        return self._written <= LIMIT

    async def _sum_up(self, first: AuditEntry) -> None:
        """Write the number of calls that were only counted, at the end of the interval or of the process."""
        try:
            await trio.sleep_until(self._interval_ends)
        finally:
            calls, self._counted = self._counted, 0
            _log.warning("unauthenticated calls were refused and are in the audit log as one entry", calls=calls)
            nobody = structs.replace(first, id=request_id(), address="", operation="", resource="", resource_id="")
            await self._write(structs.replace(nobody, after={"calls": calls}))

    async def _write(self, entry: AuditEntry) -> None:
        try:
            # A client that disconnects must not keep its call out of the log. The database has deadlines of its own.
            with trio.CancelScope(shield=True):
                await self._database.write(queries.create, entry)
        except DatabaseError as error:
            _log.error(
                "a refused call is missing in the audit log",
                reason=str(error),
                operation=entry.operation,
                status=entry.status,
                address=entry.address,
            )
