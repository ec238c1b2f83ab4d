"""Bounds how many values of a label the sums of a day distinguish, at all servers together."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import date

from attrs import define, field
from msgspec.structs import replace

from db import Connection
from db.queries import label_values as queries
from db.records import SettledRequest

#: Maximum number of values of one key of a project that the sums distinguish in a day.
MAX_VALUES = 1000
#: The value of further ones.
OTHER = "other"


@define(eq=False)
class LabelValues:
    """Remembers what the database knows of the newest day, so that it is asked for new values only."""

    _day: date = field(default=date.min, init=False)
    _known: dict[str, set[str]] = field(factory=dict, init=False)

    def bound(self, connection: Connection, rows: Sequence[SettledRequest]) -> Sequence[SettledRequest]:
        """The rows, with `OTHER` for what the sums do not distinguish. New values are written.

        Transactions that write new values at the same moment do not see each other's: each may add its own.
        """
        if not any(row.result.summed_labels for row in rows):
            return rows
        day = max(row.reservation.admitted_at for row in rows).date()
        if day > self._day:
            self._day, self._known = day, {}
        known = self._known
        ids = [_ids(row) for row in rows]
        unknown: set[str] = set()
        for one in {one for of_row in ids for one in of_row.values()}:
            series = queries.series_of(one)
            if len(seen := known.setdefault(series, set())) < MAX_VALUES and one not in seen:
                unknown.add(series)
        for one in queries.find(connection, sorted(unknown)):
            known[queries.series_of(one)].add(one)
        added: dict[str, set[str]] = {}
        bounded = []
        for row, of_row in zip(rows, ids, strict=True):
            others: dict[str, str] = {}
            for key, one in of_row.items():
                seen, new = known[series := queries.series_of(one)], added.setdefault(series, set())
                if one in seen or one in new:
                    continue
                if len(seen) + len(new) < MAX_VALUES:
                    new.add(one)
                else:
                    others[key] = OTHER
            if others:
                labels = {**(row.result.summed_labels or {}), **others}
                row = replace(row, result=replace(row.result, summed_labels=labels))  # noqa: PLW2901 - the same row
            bounded.append(row)
        if any(added.values()):
            queries.add(connection, set().union(*added.values()))
        return bounded


def _ids(row: SettledRequest) -> dict[str, str]:
    of = row.reservation
    labels = row.result.summed_labels or {}
    return {key: queries.id_of(of.admitted_at.date(), of.project_id, key, value) for key, value in labels.items()}
