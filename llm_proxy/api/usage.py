"""Reports: what requests used and cost, by time, project, token, provider, model and label."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Annotated, Any, Final

import msgspec
from attrs import evolve
from msgspec import UNSET, Struct, UnsetType, field

from db.queries import objects, projects, tokens
from db.queries import usage as queries
from db.queries.rows import Position
from db.queries.usage import LABEL, SERIES, SUBJECTS, TIMES, Group, Key, Report
from db.records import Count, Id, Timestamp
from llm_proxy.api.operations import Call, Operation, Resource
from llm_proxy.api.pages import CURSOR, ByCreation, Paging, cursor_of, encode_cursor, page, page_of, position_cursor
from llm_proxy.api.requests import usd
from llm_proxy.api.schema import LabelFilters, Reference, Time, doc, of, shown, text
from llm_proxy.config import kinds
from llm_proxy.config.kinds import Kind
from llm_proxy.errors import InvalidQuery, ProjectNotFound, TokenNotFound
from llm_proxy.ledger.late import LOST_AFTER
from llm_proxy.logging.redaction import quoted

RESOURCE: Final = Resource("Usage", "usage")

_HOUR: Final = timedelta(hours=1)
#: The days before today in a report that names no time.
_DEFAULT_RANGE: Final = timedelta(days=30)
#: The time of a report by labels that are not summed.
_MAX_RANGE_BY_REQUEST: Final = timedelta(days=7)
_MAX_DIMENSIONS: Final = 10
_WORDS: Final = (*TIMES, *reversed(SUBJECTS), *SERIES)
_LIST: Final = f"a list of {', '.join(_WORDS)} and {LABEL}KEY, each at most once, separated by commas"


def _read_groups(value: object) -> tuple[str, ...]:
    names = tuple(part.strip() for part in str(value).split(","))
    if len(set(names)) != len(names) or len(names) > _MAX_DIMENSIONS:
        raise ValueError
    return names


def _check_groups(names: Sequence[str], label_keys: Collection[str]) -> None:
    """Raise `InvalidQuery` with the first name that is none to group by."""
    for name in names:
        if name not in _WORDS and not (name.startswith(LABEL) and kinds.LABEL_KEY.fullmatch(name.removeprefix(LABEL))):
            meant = f"; did you mean {LABEL}{name}?" if name in label_keys else kinds.did_you_mean(name, _WORDS)
            raise InvalidQuery(f"'group_by' must be {_LIST}: {quoted(name)} is not one of them{meant or '.'}")


def _read_key(text: str) -> Key:
    return tuple(msgspec.json.decode(text, type=list[str | None]))


_Groups = Annotated[Any, of(Kind("groups", _LIST, _read_groups), {"type": "string"})]
_Text = Annotated[str, text(0, 255)]


class Usage(Struct, kw_only=True, omit_defaults=True):
    """The sums of one group of requests. It has the fields that it is grouped by, and all sums."""

    hour: Annotated[str, doc("The hour, UTC, such as `2030-01-31T12:00:00Z`.")] | UnsetType = UNSET
    day: Annotated[str, doc("The day, UTC, such as `2030-01-31`.")] | UnsetType = UNSET
    month: Annotated[str, doc("The month, UTC, such as `2030-01`.")] | UnsetType = UNSET
    project: Annotated[str, doc("The name of the project.")] | UnsetType = UNSET
    project_id: Annotated[str, doc("Its id.")] | UnsetType = UNSET
    token: Annotated[str, doc("The name of the token.")] | UnsetType = UNSET
    token_id: Annotated[str, doc("Its id.")] | UnsetType = UNSET
    provider: Annotated[str | None, doc("The provider; null in sums of older versions.")] | UnsetType = UNSET
    model: Annotated[str, doc("The model that the provider named; may be empty.")] | UnsetType = UNSET
    requested_model: (
        Annotated[str | None, doc("The model that the request named; may be empty. Null in sums of older versions.")]
        | UnsetType
    ) = UNSET
    label: Annotated[str | None, doc("The value of the label; null if there is none.")] | UnsetType = field(
        name="label.KEY", default=UNSET
    )
    requests: Annotated[Count, doc("Number of requests; void ones do not count.")]
    errors: Annotated[Count, doc("Those of them that failed, or whose end is unknown.")]
    input_tokens: Annotated[Count, doc("Tokens of the prompts.")]
    cached_tokens: Annotated[Count, doc("Those of them from the provider's cache.")]
    cache_write_tokens: Annotated[Count, doc("Those of them that were written to the cache.")]
    cache_write_1h_tokens: Annotated[Count, doc("Those of `cache_write_tokens` that are kept for an hour.")]
    output_tokens: Annotated[Count, doc("Tokens of the responses.")]
    reasoning_tokens: Annotated[Count, doc("Those of them that are reasoning.")]
    input_audio_tokens: Annotated[Count, doc("Tokens of the prompts that are audio.")]
    output_audio_tokens: Annotated[Count, doc("Tokens of the responses that are audio.")]
    input_image_tokens: Annotated[Count, doc("Tokens of the prompts that are images.")]
    output_image_tokens: Annotated[Count, doc("Tokens of the responses that are images.")]
    web_searches: Annotated[Count, doc("Number of web searches by the provider.")]
    cost: Annotated[str, doc("The known cost in USD, a decimal number.")]
    unpriced: Annotated[Count, doc("Requests whose cost is unknown, and is not in `cost`.")]
    estimated: Annotated[Count, doc("Requests whose numbers of tokens are an estimate.")]
    unmetered: Annotated[Count, doc("Requests whose usage could not be read.")]
    p50_ms: Annotated[Count | None, doc("Half of the requests took at most so many milliseconds. Interpolated.")]
    p95_ms: Annotated[Count | None, doc("95 % of the requests took at most so many milliseconds. Interpolated.")]


_SUMS: Final = Usage.__struct_fields__[Usage.__struct_fields__.index("requests") :]


class GetUsage(Paging, kw_only=True):
    """The report."""

    group_by: Annotated[_Groups, doc("What to group by, such as `project,model,day`. Default: one sum of all.")] = ()
    since: Annotated[
        Time, doc("Only requests at this time or later, from a full hour. Default: the begin of the day 30 days ago.")
    ] = field(name="from", default=None)
    until: Annotated[Time, doc("Only requests before this time, to a full hour. Default: now.")] = field(
        name="to", default=None
    )
    project_id: Annotated[Reference, doc("Only requests of this project: its id or name.")] | UnsetType = UNSET
    token_id: Annotated[Reference, doc("Only requests with this token: its id or name.")] | UnsetType = UNSET
    model: Annotated[_Text, doc("Only requests that this model answered.")] | UnsetType = UNSET
    provider: Annotated[_Text, doc("Only requests to this provider.")] | UnsetType = UNSET
    labels: Annotated[
        LabelFilters,
        doc(
            "Only requests whose label KEY has this value. If a KEY, here or in `group_by`, is not in LABEL_KEYS, then"
            " `from` must be at most 7 days before `to`."
        ),
    ] = field(name="label.KEY", default_factory=dict)
    cursor: Annotated[Any, cursor_of(_read_key), CURSOR] = UNSET

    def columns(self, names: Sequence[str]) -> Sequence[str]:
        """The groups, and the sums."""
        return [column for name in self.group_by for column in _columns(name)] + [*_SUMS]


def _columns(name: str) -> tuple[str, ...]:
    return (name, f"{name}_id") if name in SUBJECTS else (name,)


@Operation(RESOURCE, "GET", "/manage/usage", "getUsage", page_of(Usage), query=GetUsage)
async def _get(call: Call, query: GetUsage) -> object:
    """Show what requests used and cost, by groups. The sums are by hour: times are rounded to full hours."""
    _check_groups(query.group_by, call.services.settings.label_keys)
    project_id = await call.resolve(query.project_id, projects.find, ProjectNotFound)
    token_id = await call.resolve(query.token_id, tokens.find, TokenNotFound)
    until = query.until or call.now
    # Whole days are read from the daily sums.
    since = query.since or (until - _DEFAULT_RANGE).replace(hour=0, minute=0, second=0, microsecond=0)
    if since >= until:
        raise InvalidQuery(f"'from' ({since.isoformat()}) must be before 'to' ({until.isoformat()}).")
    report = Report(
        since=_full_hour(since),
        until=_full_hour(until + _HOUR - timedelta(microseconds=1)),
        group_by=query.group_by,
        project_id=project_id or None,
        token_id=token_id or None,
        model=query.model if query.model is not UNSET else None,
        provider=query.provider if query.provider is not UNSET else None,
        labels=query.labels,
    )
    unknown = sorted(report.label_keys.difference(call.services.settings.label_keys))
    if unknown:
        if until - since > _MAX_RANGE_BY_REQUEST:
            summed = ", ".join(call.services.settings.label_keys) or "none"
            raise InvalidQuery(
                f"'from' ({since.isoformat()}) must be at most {_MAX_RANGE_BY_REQUEST.days} days before 'to'"
                f" ({until.isoformat()}), because the sums do not distinguish the label '{unknown[0]}'"
                f" (LABEL_KEYS: {summed}). Give a shorter range, or add the label to LABEL_KEYS for later requests."
            )
        report = evolve(report, by_request=True)
    after = query.cursor or None
    if after is not None and len(after) not in (1, len(report.dimensions)):
        raise InvalidQuery("'cursor' must be the next_cursor of a page of this list.")
    try:
        groups, following, names = await call.services.database.read(_read, report, query.limit, after)
    except queries.TooManyRows:
        raise InvalidQuery(
            f"this report needs more than {queries.MAX_ROWS:,} rows from {report.since.isoformat()} to"
            f" {report.until.isoformat()}. Give a shorter range, 'project_id' or 'token_id', or group by day or hour."
        ) from None
    except (ValueError, OverflowError):
        raise InvalidQuery("'cursor' must be the next_cursor of a page of this list.") from None
    return {
        "data": [_shown(report, group, names) for group in groups],
        "next_cursor": None if following is None else encode_cursor(msgspec.json.encode(following).decode()),
    }


class Unbooked(Struct, kw_only=True):
    """An object at a provider whose usage has not been seen yet."""

    provider: Annotated[str, doc("The provider that keeps it.")]
    object_id: Annotated[str, doc("Its id there.")]
    kind: Annotated[str, doc("Such as `background_response`, `run`, `batch`.")]
    project_id: Annotated[Id, doc("The project of the token that made it.")]
    token_id: Annotated[Id, doc("This token. The usage will be that of the token.")]
    request_id: Annotated[Id, doc("The request that made it.")]
    created_at: Annotated[Timestamp, doc("When that request was admitted.")]
    lost: Annotated[
        bool, doc("It is older than 25 hours: the proxy asks for its usage no more. A client's poll can still show it.")
    ]


class ListUnbooked(ByCreation, kw_only=True):
    """The objects to list."""

    project_id: Annotated[Reference, doc("Only objects of this project: its id or name.")] | UnsetType = UNSET


@Operation(RESOURCE, "GET", "/manage/usage/unbooked", "listUnbooked", page_of(Unbooked), query=ListUnbooked)
async def _list_unbooked(call: Call, query: ListUnbooked) -> object:
    """List background responses, runs and batches whose usage no answer has shown yet, the oldest first."""
    project_id = await call.resolve(query.project_id, projects.find, ProjectNotFound)
    rows = await call.services.database.read(
        objects.list_unbooked, query.limit + 1, query.cursor or None, project_id or None
    )
    return page(
        rows,
        query.limit,
        lambda row: shown(Unbooked, row, lost=row.created_at <= call.now - LOST_AFTER),
        lambda row: position_cursor(Position(row.created_at, row.request_id)),
    )


def _read(connection: Any, report: Report, limit: int, after: Key | None) -> tuple[list[Group], Key | None, Any]:
    groups, following = queries.page(connection, report, limit, after)
    return groups, following, queries.names_of(connection, report, groups)


def _full_hour(at: datetime) -> datetime:
    return at.replace(minute=0, second=0, microsecond=0)


def _shown(report: Report, group: Group, names: Mapping[str, str]) -> dict[str, object]:
    values = dict(zip(report.dimensions, group.key, strict=True))
    columns: dict[str, object] = {}
    for name in report.group_by:
        value = values[name]
        if name in SUBJECTS:
            columns |= {name: names.get(value or "", ""), f"{name}_id": value}
        else:
            columns[name] = value
    sums = dict(group.sums)
    columns |= {name: sums[name] for name in _SUMS if name in sums}
    return columns | {
        "cost": usd(sums["cost_nanousd"]),
        "p50_ms": group.duration_ms(0.5),
        "p95_ms": group.duration_ms(0.95),
    }
