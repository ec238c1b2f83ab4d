"""Late usage: what a provider says only after the request that made an object has ended.

The usage of a background response, a run or a batch is in a later answer, perhaps in many. It becomes a ledger row of
its own, of kind `late`: once, because the object's row says which ledger row has its usage, and is changed in the same
transaction. The row belongs to the token and the project that made the object.

A stream may deliver such usage to the request itself. If a poll has seen it earlier, its row is written without it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import timedelta
from typing import Final

import msgspec

from db import Connection
from db.queries import objects
from db.records import TOKENS, ProviderObject, Reservation, Result, SettledRequest
from llm_proxy.logging import log

#: Kinds of objects whose usage comes later.
AWAITED: Final = frozenset({"background_response", "run", "batch", "message_batch", "deferred_completion"})
#: Age of an object at which its usage counts as lost, and is not asked for any more. Batches end within 24 hours.
LOST_AFTER: Final = timedelta(hours=25)

_log = log.logger("late usage")


class ObjectUsage(msgspec.Struct, frozen=True, omit_defaults=True):
    """A request has seen the final state of an object at the provider.

    Attributes:
        object_id: the object.
        row_id: of the ledger row that shall have its usage: the request's own, or one of kind `late`. If there is no
            usage, of the request.
        late: the result of that row, if it is one of kind `late`.
    """

    object_id: str
    row_id: str
    late: Result | None = None


def book(
    connection: Connection, seen: Sequence[tuple[SettledRequest, ObjectUsage]]
) -> tuple[set[str], list[SettledRequest]]:
    """Decide which rows have the usage of objects that requests have seen.

    May be done again with the same requests, if it is not known whether a transaction was committed.

    Returns:
        The ids of requests whose usage was booked before, and the late rows that are to be written.
    """
    keys = [(row.reservation.provider, _resolved(connection, row, usage.object_id)) for row, usage in seen]
    known = objects.find_late(connection, keys)
    again: set[str] = set()
    late: list[SettledRequest] = []
    for (row, usage), key in sorted(zip(seen, keys, strict=True), key=lambda pair: pair[1]):
        found = known.get(key)
        if found is None or found.project_id != row.reservation.project_id:
            continue
        if not found.usage_id and objects.book(connection, *key, usage.row_id):
            known[key] = msgspec.structs.replace(found, usage_id=usage.row_id)
            if usage.late is not None:
                late.append(_late_row(row, usage.row_id, usage.late, found))
        elif usage.late is None and found.usage_id != usage.row_id:
            again.add(row.id)
    return again, late


def _resolved(connection: Connection, row: SettledRequest, object_id: str) -> str:
    """The batch, if the object is the file with its output."""
    reservation = row.reservation
    if "/files/" not in reservation.path:
        return object_id
    return objects.find_batch(connection, reservation.provider, object_id) or object_id


def without_usage(result: Result) -> Result:
    """The result of a request whose usage another row has."""
    nothing = dict.fromkeys((*TOKENS, "usage_details", "cost_nanousd", "cost_basis", "price_version"))
    return msgspec.structs.replace(result, **nothing, estimated=False)


def _late_row(seen: SettledRequest, row_id: str, result: Result, made: ProviderObject) -> SettledRequest:
    """The late row of an object, seen by a request of any token of its project."""
    by = seen.reservation
    whose = Reservation(
        row_id, by.worker_id, made.token_id, made.project_id, by.provider, by.method, by.path, by.admitted_at
    )
    return SettledRequest(whose, msgspec.structs.replace(result, origin_id=made.request_id), seen.settled_at)


def log_booked(rows: Iterable[SettledRequest]) -> None:
    """Log the late rows of a committed transaction."""
    for row in rows:
        of, result = row.reservation, row.result
        _log.info(
            "late usage was booked",
            request_id=row.id,
            origin_id=result.origin_id,
            provider=of.provider,
            token_id=of.token_id,
            project_id=of.project_id,
            model=result.model,
            input_tokens=result.input_tokens,
            output_tokens=result.output_tokens,
        )
