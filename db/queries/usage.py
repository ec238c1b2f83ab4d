"""Reports: what requests used and cost, by time, project, token, provider, model and label, a page at a time.

A page reads a bounded number of rows. Groups are in the order of one leading dimension: the token, else the project,
else the time. The sums of a few of its values are read at once, until there are enough groups or enough rows were read.
So a page may have fewer groups than its limit, and there may still be a next one. A report that has no such dimension
is one page; it is refused if it needs too many rows.

Labels that the sums do not distinguish are read from the requests themselves.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime, timedelta
from functools import cached_property
from typing import Any

from attrs import define, evolve, field, frozen
from sqlalchemy import ColumnElement, Connection, CursorResult, Select, Table, func, select

from db.dialects.statements import by_index, by_key, without_sorting
from db.queries import daily, ledger
from db.queries.rows import made_in
from db.records import DETAIL_SUMS, TOKENS, Result
from db.schema import DURATION_COLUMNS, DURATIONS, SUMS, projects, requests, tokens, usage_daily, usage_hourly

#: Rows of sums that a page reads at most, and after which it ends if it can.
MAX_ROWS = 40_000
ENOUGH_ROWS = 20_000
#: Rows that one statement should read, so that the next ones do not read many too many.
_STEP_ROWS = 4_000
#: Projects or tokens in one statement.
_MAX_SUBJECTS = 250
#: Hours, days or months in one step of a report by time.
_MAX_SPAN = 240
#: Statements for a page, in which nothing may be found.
_MAX_STEPS = 60

_HOUR = timedelta(hours=1)
_DAY = timedelta(days=1)

#: What reports can be grouped by, besides labels.
TIMES = ("hour", "day", "month")
SUBJECTS = ("token", "project")
SERIES = ("provider", "model", "requested_model")
_RANK = (*SUBJECTS, *TIMES)
#: What begins the name of a label as a dimension.
LABEL = daily.LABEL

#: The columns of requests that their sums are made of, and those that a report by requests reads.
_OF_RESULT = (
    *("outcome", "kind", "unmetered", "estimated", "duration_us", "cost_nanousd", "usage_details"),
    *TOKENS,
)
_READ = ("admitted_at", "token_id", "project_id", "labels", *SERIES, *_OF_RESULT)

#: The value of each dimension of a group, or of the first one alone: all of its groups. None is null.
Key = tuple[str | None, ...]


class TooManyRows(Exception):
    """The report would read more than `MAX_ROWS` rows for one page."""


@frozen
class Report:
    """What is asked for.

    Attributes:
        since, until: whole hours; the second one is not included.
        group_by: the dimensions: `hour`, `provider`, `label.team` and so on.
        labels: values of labels by their keys, that all must be there.
        by_request: whether to read the requests, because the sums do not distinguish the labels.
    """

    since: datetime
    until: datetime
    group_by: tuple[str, ...] = ()
    project_id: str | None = None
    token_id: str | None = None
    model: str | None = None
    provider: str | None = None
    labels: Mapping[str, str] = field(factory=dict)
    by_request: bool = False

    @property
    def dimensions(self) -> tuple[str, ...]:
        """The dimensions in the order by which groups are sorted: the leading one first."""
        return tuple(sorted(self._ranked, key=lambda name: name != self.lead))

    @property
    def _ranked(self) -> list[str]:
        """The dimensions: tokens, projects and short times come first."""
        return sorted(self.group_by, key=lambda name: _RANK.index(name) if name in _RANK else len(_RANK))

    @property
    def label_keys(self) -> set[str]:
        """The labels that matter."""
        return {*self.labels, *(name.removeprefix(LABEL) for name in self.group_by if name.startswith(LABEL))}

    @property
    def lead(self) -> str | None:
        """The dimension by whose values the report is read; None if it is read at once."""
        for name in self._ranked:
            if name == "project" and (self.project_id or self.token_id):
                continue
            if name in TIMES or (name in SUBJECTS and not self.token_id):
                return name
        return None


@define
class Group:
    """The sums of one group; `key` has the values of the report's `dimensions`."""

    key: Key
    sums: dict[str, int]

    def duration_ms(self, share: float) -> int | None:
        """The duration that this share of the requests does not exceed; None if there are none.

        It is interpolated within its class. The last class has no upper bound, and is taken for its lower one.
        """
        counts = [self.sums[name] for name in DURATION_COLUMNS]
        wanted = share * sum(counts)
        lower = 0
        for count, upper in zip(counts, DURATIONS, strict=False):
            if count and wanted <= count:
                return round(lower + (upper - lower) * wanted / count)
            wanted -= count
            lower = upper
        return lower if any(counts) else None


def page(connection: Connection, report: Report, limit: int, after: Key | None) -> tuple[list[Group], Key | None]:
    """Read the groups behind a key.

    Args:
        connection: a transaction that sees one state of the database.
        report: what is asked for.
        limit: maximum number of groups.
        after: the key that the page before returned.

    Returns:
        The groups, and the key for the next page; None if there is none.

    Raises:
        TooManyRows: the report has no dimension to split it by, or one value of it has too many rows.
        ValueError: there is no such key.
    """
    reader = _Reader(connection, report)
    found: list[Group] = []
    reached: str | None = None
    for step in _steps(reader, report, after):
        try:
            groups = reader.sum_up(step)
        except TooManyRows:
            if reached is None:
                raise
            return found, (reached,)
        shown = (group for group in groups if any(group.sums.values()) and _is_after(group.key, after))
        found += sorted(shown, key=lambda group: _order(group.key))
        if len(found) > limit:
            return found[:limit], found[limit - 1].key
        reached = step.last
        if reached is None:
            break
        if reader.rows > ENOUGH_ROWS or reader.steps >= _MAX_STEPS:
            return found, (reached,)
    return found, None


def _order(key: Key) -> list[tuple[bool, str]]:
    return [(value is not None, value or "") for value in key]


def _is_after(key: Key, after: Key | None) -> bool:
    return after is None or _order(key[: len(after)]) > _order(after)


@frozen
class _Step:
    """Some values of the leading dimension.

    Attributes:
        ids: of tokens or projects; None if that is not the dimension.
        since, until: the time to read.
        last: the last of the values; None if all have been read.
    """

    ids: tuple[str, ...] | None
    since: datetime
    until: datetime
    last: str | None


def _steps(reader: _Reader, report: Report, after: Key | None) -> Iterator[_Step]:
    lead = report.lead
    if lead is None:
        if report.since < report.until:
            yield _Step(None, report.since, report.until, None)
    elif lead in SUBJECTS:
        yield from _by_subject(reader, report, lead, after)
    else:
        yield from _by_time(reader, report, lead, after)


def _by_subject(reader: _Reader, report: Report, lead: str, after: Key | None) -> Iterator[_Step]:
    table = tokens if lead == "token" else projects
    position = "" if after is None else after[0] or ""
    # A whole key names a group, and there may be more of the same subject.
    included = after is not None and len(after) > 1
    while True:
        query = select(table.c.id).where(table.c.id >= position if included else table.c.id > position)
        if report.project_id:
            query = query.where(table.c.project_id == report.project_id)
        size = reader.next_size(_MAX_SUBJECTS)
        ids = tuple(reader.connection.scalars(query.order_by(table.c.id).limit(size)))
        reader.rows += len(ids)
        if not ids:
            return
        yield _Step(ids, report.since, report.until, ids[-1])
        position, included = ids[-1], False


def _by_time(reader: _Reader, report: Report, lead: str, after: Key | None) -> Iterator[_Step]:
    begin = report.since
    if after is not None:
        begin = _parsed(lead, after[0] or "")
        if len(after) == 1:
            begin = _next(lead, begin)
        begin = max(begin, report.since)
    while begin < report.until:
        end = begin
        for _ in range(reader.next_size(_MAX_SPAN)):
            if end >= report.until:
                break  # there may be no time behind it
            end = _next(lead, end)
        last = None if end >= report.until else _written(lead, end - _HOUR)
        yield _Step(None, begin, min(end, report.until), last)
        begin = end


_FORMATS = {"hour": "%Y-%m-%dT%H:00:00Z", "day": "%Y-%m-%d", "month": "%Y-%m"}


def _written(time: str, at: datetime) -> str:
    return at.strftime(_FORMATS[time])


def _parsed(time: str, text: str) -> datetime:
    return datetime.strptime(text, _FORMATS[time]).replace(tzinfo=UTC)


def _next(time: str, at: datetime) -> datetime:
    if time == "hour":
        return at + _HOUR
    midnight = at.replace(hour=0)
    return (midnight.replace(day=1) + 31 * _DAY).replace(day=1) if time == "month" else midnight + _DAY


@define(slots=False)
class _Reader:
    """Reads sums, and counts the rows.

    Attributes:
        rows: that were read.
        steps: statements that were executed.
    """

    connection: Connection
    report: Report
    rows: int = field(default=0, init=False)
    steps: int = field(default=0, init=False)
    _size: int = field(default=0, init=False)
    _rows_before: int = field(default=0, init=False)

    def next_size(self, largest: int) -> int:
        """How many values of the leading dimension the next step has."""
        read, self._rows_before = self.rows - self._rows_before, self.rows
        self._size = max(1, self._size // 2) if read > _STEP_ROWS else min(max(1, self._size * 2), largest)
        return self._size

    def sum_up(self, step: _Step) -> list[Group]:
        """The groups of a step, in any order. Raises TooManyRows."""
        groups: dict[Key, Group] = {}
        for table, since, until in self._spans(step.since, step.until):
            if table is usage_daily:
                self._add_days(groups, since, until, step.ids)
            elif self.report.by_request:
                self._add_requests(groups, since, until, step.ids)
            else:
                time = (usage_hourly.c.hour >= since, usage_hourly.c.hour < until)
                self._add_rows(groups, usage_hourly, time, ids=step.ids)
        return list(groups.values())

    def _spans(self, since: datetime, until: datetime) -> Iterator[tuple[Table, datetime, datetime]]:
        """Divide a time: whole days whose sums are written, and all else by the hour."""
        begin = since
        while begin < until:
            table, end = usage_hourly, begin
            if begin in self._days and begin + _DAY <= until:
                table = usage_daily
                while end in self._days and end + _DAY <= until:
                    end += _DAY
            else:
                while end < until and (end == begin or end not in self._days):
                    end = min(end.replace(hour=0) + _DAY, until)
            yield table, begin, end
            begin = end

    @cached_property
    def _days(self) -> set[datetime]:
        """The days that are read from the daily sums: these know no hours, no tokens, and single labels only."""
        report = self.report
        if report.by_request or report.token_id or {"hour", "token"} & set(report.group_by):
            return set()
        if len(report.label_keys) > 1 and not report.project_id and report.lead != "project":
            return set()
        days = daily.written(self.connection, report.since, report.until)
        self.rows += len(days)
        return days

    def _of_subjects(
        self, query: Select[*tuple[Any, ...]], table: Table, ids: tuple[str, ...] | None
    ) -> Select[*tuple[Any, ...]]:
        """Select the rows of the tokens or projects by their index; if there are none, by the primary key."""
        report = self.report
        subjects: dict[str, tuple[str, ...]] = {
            name: (one,) for name in ("token_id", "project_id") if (one := getattr(report, name))
        }
        if ids is not None:
            subjects = {f"{report.lead}_id": ids}
        second = table.c.hour if table is usage_hourly else table.c.id
        if not subjects:
            return by_key(self.connection, query, second)
        (first, values), *further = subjects.items()
        query = query.where(*(table.c[name].in_(one) for name, one in further))
        return by_index(self.connection, query, (table.c[first], second), values)

    def _execute(self, query: Select[*tuple[Any, ...]]) -> CursorResult[*tuple[Any, ...]]:
        with without_sorting(self.connection):
            return self.connection.execute(query)

    def _add_days(
        self, groups: dict[Key, Group], since: datetime, until: datetime, ids: tuple[str, ...] | None
    ) -> None:
        report = self.report
        days = (usage_daily.c.day >= since, usage_daily.c.day < until)
        scopes = ids or (report.project_id or "",)
        if scopes == ("",) and report.label_keys:
            (key,) = report.label_keys
            of_label = (usage_daily.c.scope == daily.LABEL + key, *days)
            self._add_rows(groups, usage_daily, of_label)
            if report.labels:
                return
            # The rest of all requests has no such label.
            self._add_rows(groups, usage_daily, of_label, sign=-1)
        self._add_rows(groups, usage_daily, (usage_daily.c.scope.in_(scopes), *days))

    def _add_rows(
        self,
        groups: dict[Key, Group],
        table: Table,
        conditions: tuple[ColumnElement[bool], ...],
        *,
        sign: int = 1,
        ids: tuple[str, ...] | None = None,
    ) -> None:
        """Add the sums of rows to groups. With a negative sign, take them out of those without labels.

        The conditions are those of an index. All others are checked afterwards.
        """
        report, hourly = self.report, table is usage_hourly
        filters = {name: wanted for name in ("model", "provider") if (wanted := getattr(report, name)) is not None}
        known: dict[str, ColumnElement[Any]] = {
            "project": table.c.project_id if hourly else table.c.scope,
            "provider": table.c.provider,
            "model": daily.answered_model(table),
            "requested_model": table.c.requested_model,
            "time": table.c.hour if hourly else table.c.day,
            "labels": table.c.labels,
        }
        if hourly:
            known["token"] = table.c.token_id
        names = {*report.group_by, *filters}
        if names & {*TIMES}:
            names.add("time")
        if report.label_keys:
            names.add("labels")
        shown = [name for name in known if name in names]
        read = select(*(known[name].label(name) for name in shown), *daily.summed(table)).where(*conditions)
        if hourly:
            read = self._of_subjects(read, table, ids)
        else:
            read = by_key(self.connection, read, table.c.scope, table.c.day)
        # The limit is inside, so that it is one of rows that are read.
        limited = read.limit(self._rest).subquery()
        keys = [limited.c[name] for name in shown]
        query = select(*keys, func.count(), *(func.sum(limited.c[name]) for name in SUMS)).group_by(*keys)
        for row in self._execute(query):
            values = dict(zip(shown, row, strict=False))
            count, *numbers = row[len(shown) :]
            self.rows += count
            labels: Mapping[str, str] = (values.get("labels") or {}) if sign > 0 else {}
            if count and report.labels.items() <= labels.items() and filters.items() <= values.items():
                _merge(groups, self._key(values, labels), numbers, sign)
        self._end_statement()

    def _add_requests(
        self, groups: dict[Key, Group], since: datetime, until: datetime, ids: tuple[str, ...] | None
    ) -> None:
        report = self.report
        first, after = made_in(since, until)
        time = (requests.c.id >= first, requests.c.id < after)
        query = self._of_subjects(select(*(requests.c[name] for name in _READ)).where(*time), requests, ids)
        for row in self._execute(query.limit(self._rest)):
            self.rows += 1
            values = row._mapping  # noqa: SLF001 - SQLAlchemy's public name
            labels = row.labels or {}
            if (
                row.outcome == "void"
                or not since <= row.admitted_at < until
                or (report.model is not None and row.model != report.model)
                or (report.provider is not None and row.provider != report.provider)
                or not report.labels.items() <= labels.items()
            ):
                continue
            known = {"token": row.token_id, "project": row.project_id, "time": row.admitted_at}
            known |= {name: values[name] for name in SERIES}
            result = Result(**{name: values[name] for name in _OF_RESULT})
            _merge(groups, self._key(known, labels), ledger.sums_of(result), 1)
        self._end_statement()

    @property
    def _rest(self) -> int:
        """How many rows a statement reads at most: one more than the page may."""
        return max(MAX_ROWS - self.rows, 0) + 1

    def _end_statement(self) -> None:
        self.steps += 1
        if self.rows > MAX_ROWS:
            raise TooManyRows

    def _key(self, values: Mapping[str, Any], labels: Mapping[str, str]) -> Key:
        return tuple(_value(name, values, labels) for name in self.report.dimensions)


def _value(name: str, values: Mapping[str, Any], labels: Mapping[str, str]) -> str | None:
    if name in TIMES:
        return _written(name, values["time"])
    if name.startswith(LABEL):
        return labels.get(name.removeprefix(LABEL))
    value: str | None = values[name]
    return value


def _merge(groups: dict[Key, Group], key: Key, numbers: Iterable[Any], sign: int) -> None:
    group = groups.get(key)
    if group is None:
        group = groups[key] = Group(key, dict.fromkeys(SUMS, 0))
    for name, number in zip(SUMS, numbers, strict=True):
        group.sums[name] += sign * int(number)


def names_of(connection: Connection, report: Report, groups: list[Group]) -> dict[str, str]:
    """The names of the projects and tokens in groups, by id."""
    found: dict[str, str] = {}
    for name, table in (("project", projects), ("token", tokens)):
        if name in report.group_by:
            place = report.dimensions.index(name)
            ids = {group.key[place] for group in groups}
            rows = connection.execute(select(table.c.id, table.c.name).where(table.c.id.in_(ids)))
            found |= {row.id: row.name for row in rows}
    return found


@frozen(kw_only=True)
class UnpricedModel:
    """A model that was used without a cost, and all that was used of it; its fields are those of a usage.

    Attributes:
        requested_model: the name in the requests.
        unpriced: number of requests without a cost.
        input_tokens, output_tokens: None if no answer counted any tokens.
        details: those that are summed.
        service_tier: not known, because the sums do not distinguish tiers.
    """

    provider: str
    model: str
    requested_model: str
    requests: int
    unpriced: int
    input_tokens: int | None
    output_tokens: int | None
    cached_tokens: int
    cache_write_tokens: int
    cache_write_1h_tokens: int
    reasoning_tokens: int
    details: Mapping[str, int] | None
    service_tier: str = field(default="", init=False)


def unpriced_models(connection: Connection, since: datetime, until: datetime) -> tuple[list[UnpricedModel], datetime]:
    """The models that were used without a cost, by provider and name, and until when this was read.

    That is earlier if too much was used since the last day that is summed up. Raises TooManyRows.
    """
    try:
        groups, _ = page(connection, Report(since, until, SERIES), MAX_ROWS, None)
    except TooManyRows:
        days = daily.written(connection, since, until)
        if not days or max(days) + _DAY == until:
            raise
        return unpriced_models(connection, since, max(days) + _DAY)
    found = [
        UnpricedModel(
            provider=provider,
            model=model or "",
            requested_model=requested_model or "",
            details={name: count for name in DETAIL_SUMS if (count := group.sums[name])} or None,
            **{name: group.sums[name] for name in ("requests", "unpriced", *TOKENS)},
        )
        for group in groups
        for provider, model, requested_model in [group.key]
        if provider is not None and group.sums["unpriced"]
    ]
    return [
        one if one.input_tokens or one.output_tokens else evolve(one, input_tokens=None, output_tokens=None)
        for one in found
    ], until
