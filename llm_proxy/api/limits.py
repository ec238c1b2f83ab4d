"""Limits of tokens, projects and the whole proxy: requests, tokens, money, concurrency."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from datetime import datetime
from decimal import Decimal, InvalidOperation
from typing import Annotated, Any, Final, get_args

from attrs import asdict, frozen
from msgspec import UNSET, Meta, Struct, UnsetType

from db import Connection, records
from db.dialects.statements import clock
from db.queries import limits as queries
from db.queries import projects as project_queries
from db.queries import tokens as token_queries
from llm_proxy import limits
from llm_proxy.api.operations import Call, Change, Operation, Resource, found
from llm_proxy.api.pages import ByCreation, page, page_of, position_cursor
from llm_proxy.api.requests import usd
from llm_proxy.api.schema import (
    MAX_SAFE_INTEGER,
    Body,
    Changes,
    Field,
    Id,
    Patterns,
    Reference,
    Timestamp,
    doc,
    given,
    of,
    one_of,
    patterns_of,
    shown,
    stored_patterns,
)
from llm_proxy.config import kinds
from llm_proxy.config.kinds import Kind
from llm_proxy.errors import InvalidBody, LimitNotFound, ProjectNotFound, TokenNotFound
from llm_proxy.identifiers import new_id
from llm_proxy.logging import log

_COLLECTION: Final = "/manage/limits"
_ONE: Final = "/manage/limits/{limit_id}"
_NANO: Final = 10**9
#: The most money that a limit can have, in USD.
_MAX_USD: Final = 9_000_000
#: Longest `wait` in seconds: clients and proxies in front of this one give up after a minute.
_MAX_WAIT: Final = 60.0
#: How long a request waits if a limit of `concurrency` does not say.
_CONCURRENCY_WAIT: Final = 1.0
_RESERVABLE: Final = ("cost", "tokens", "input_tokens", "output_tokens")

_log = log.logger("manage")

RESOURCE: Final = Resource("Limits", "limit", LimitNotFound, id=Field.of("id", Id))


def _read_amount(value: object) -> int | Decimal:
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    try:
        amount = Decimal(str(value))
        if amount.is_finite() and amount == round(amount, 9):
            return amount
    except InvalidOperation:
        pass
    raise ValueError


def _read_wait(value: str) -> float:
    seconds = kinds.parse_duration(value)
    if not 0 <= seconds <= _MAX_WAIT:
        raise ValueError
    return seconds


_AMOUNT: Final = Kind("amount", 'a whole number, or for cost USD such as "50.00"', _read_amount)
Amount = Annotated[Any, of(_AMOUNT, {"type": ["integer", "string"]}), doc("The limit: a number, or USD for `cost`.")]
Wait = Annotated[
    str,
    of(Kind("wait", "a duration from 0s to 60s, such as 5s", _read_wait)),
    doc("Maximum time that a request waits for running requests."),
]
_Models = Annotated[Patterns | None, doc("It counts only requests that name a model like one of these; null: all.")]
_Metric = Annotated[str, one_of(get_args(records.Metric)), doc("What it counts.")]
_Window = Annotated[
    str, one_of(get_args(records.Period)), doc("A calendar period in UTC; weeks begin on Monday. `total`: no period.")
]
_Policy = Annotated[str, one_of(get_args(records.Policy)), doc("What happens when it is reached.")]
_WarnAt = Annotated[
    Annotated[int, Meta(ge=1, le=100)] | None,
    doc("Percentage of the amount at which a warning is logged.", null="never"),
]
_Unpriced = Annotated[str, one_of(("refuse", "allow")), doc("Whether a limit of `cost` admits models without a price.")]


class Limit(Struct):
    """A limit, and what is used of it in its current window. Amounts of `cost` are USD as decimal text."""

    id: Annotated[Id, doc("Its id.")]
    token_id: Annotated[Id | None, doc("The token whose requests it counts.")]
    project_id: Annotated[Id | None, doc("The project whose requests it counts; both null: all requests.")]
    metric: _Metric
    window: _Window
    amount: Annotated[int | str, doc("The limit: a number, or USD for `cost`.")]
    models: _Models
    policy: _Policy
    wait: Wait
    warn_at: _WarnAt
    unpriced: _Unpriced
    used: Annotated[int | str, doc("Used in this window, `unknown` included.")]
    reserved: Annotated[int | str, doc("Held by running requests.")]
    unknown: Annotated[int | str, doc("Charged for requests whose server died.")]
    unpriced_requests: Annotated[int, Meta(ge=0, le=MAX_SAFE_INTEGER), doc("Requests whose cost is unknown.")]
    window_start: Annotated[Timestamp | None, doc("The start of the current window; null: it has none.")]
    resets_at: Annotated[Timestamp | None, doc("The end of the current window; null: never.")]
    created_at: Annotated[Timestamp, doc("When it was created.")]
    updated_at: Annotated[Timestamp, doc("When it was last changed.")]


class NewLimit(Body, kw_only=True):
    """A limit to create: of a token, of a project, or of the whole proxy."""

    token_id: Annotated[Reference, doc("The token: its id, name or last four characters.")] | UnsetType = UNSET
    project_id: Annotated[Reference, doc("The project: its id or name.")] | UnsetType = UNSET
    metric: _Metric
    window: _Window | UnsetType = UNSET
    amount: Amount
    models: Annotated[Patterns, doc("It counts only requests that name a model like one of these.")] | UnsetType = UNSET
    policy: _Policy = "settled"
    wait: Wait | UnsetType = UNSET
    warn_at: _WarnAt = None
    unpriced: _Unpriced = "refuse"
    backfill: Annotated[bool, doc("Whether what was used before, in this window, counts.")] = True


class LimitChanges(Changes, kw_only=True):
    """Changes of a limit. What it has counted stays."""

    amount: Amount | UnsetType = UNSET
    wait: Wait | UnsetType = UNSET
    warn_at: _WarnAt | UnsetType = UNSET
    unpriced: _Unpriced | UnsetType = UNSET


class ListLimits(ByCreation, kw_only=True):
    """The limits to list."""

    token_id: Annotated[Reference, doc("Only limits of this token.")] | UnsetType = UNSET
    project_id: Annotated[Reference, doc("Only limits of this project and its tokens.")] | UnsetType = UNSET


@frozen
class _Counted(records.Limit):
    """A limit, and its current counter."""

    counter: records.LimitCounter


def _check(given: Collection[str], values: Mapping[str, Any], _now: datetime) -> Iterable[str]:
    if "token_id" in given and "project_id" in given:
        yield "only one of 'token_id', 'project_id' can be given; without both, the limit is of the whole proxy"
    metric, policy = values.get("metric"), values.get("policy", "settled")
    if metric == "concurrency" and "window" in given:
        yield "'metric' concurrency takes no 'window'"
    if metric not in (None, "concurrency") and "window" not in given:
        yield f"'metric' {metric} needs a 'window': {', '.join(get_args(records.Period))}"
    if policy == "reserved" and metric is not None and metric not in _RESERVABLE:
        yield f"'policy' reserved is only for 'metric' {', '.join(_RESERVABLE)}"
    if "wait" in given and policy != "reserved" and metric != "concurrency":
        yield "'wait' is only for 'policy' reserved and 'metric' concurrency"
    if metric is not None and "unpriced" in given:
        yield from _unpriced_mistakes(metric, policy, values.get("unpriced"))
    if metric is not None and "amount" in values:
        yield from _amount_mistakes(metric, values["amount"])


def _amount_mistakes(metric: str, amount: int | Decimal) -> Iterable[str]:
    if metric == "cost":
        if not 0 <= amount <= _MAX_USD:
            yield f"'amount' of cost must be USD from 0 to {_MAX_USD}, with at most nine digits after the point"
    elif not isinstance(amount, int) or not 0 <= amount <= MAX_SAFE_INTEGER:
        yield f"'amount' of {metric} must be a whole number from 0 to {MAX_SAFE_INTEGER}"


def _unpriced_mistakes(metric: str, policy: str, unpriced: object) -> Iterable[str]:
    if metric != "cost":
        yield "'unpriced' is only for 'metric' cost"
    elif policy == "reserved" and unpriced == "allow":
        yield "'unpriced' allow is not for 'policy' reserved: a model without a price has no worst case"


def _stored(metric: str, amount: int | Decimal) -> int:
    return int(amount * _NANO) if metric == "cost" else int(amount)


def _shown(limit: _Counted) -> Limit:
    counter, is_cost = limit.counter, limit.metric == "cost"

    def amount(value: int) -> object:
        return usd(value) if is_cost else value

    return shown(
        Limit,
        limit,
        token_id=limit.subject if limit.scope == "token" else None,
        project_id=limit.subject if limit.scope == "project" else None,
        window=limit.period,
        models=patterns_of(limit.models),
        wait=f"{limit.wait_ms}ms" if limit.wait_ms % 1000 else f"{limit.wait_ms // 1000}s",
        unpriced="allow" if limit.allow_unpriced else "refuse",
        amount=amount(limit.amount),
        used=amount(counter.used),
        reserved=amount(counter.reserved),
        unknown=amount(counter.unknown),
        unpriced_requests=counter.unpriced,
        window_start=counter.started_at,
        resets_at=limits.ends_at(limit.period, counter.started_at),
    )


def _counted(connection: Connection, *limits_: records.Limit) -> list[_Counted]:
    if not limits_:
        return []
    now = clock(connection)
    keys = {one.id: queries.counter_id(one.id, limits.started_at(one.period, now)) for one in limits_}
    counters = queries.read_counters(connection, keys.values())
    return [
        _Counted(**asdict(one), counter=counters.get(keys[one.id]) or queries.new_counter(keys[one.id]))
        for one in limits_
    ]


async def _current(call: Call, limit: records.Limit) -> Limit:
    (counted,) = await call.services.database.read(_counted, limit)
    return _shown(counted)


@Operation(RESOURCE, "GET", _COLLECTION, "listLimits", page_of(Limit), query=ListLimits)
async def _list(call: Call, query: ListLimits) -> object:
    """List limits, the newest first, and what is used of each in its current window."""
    project_id = await call.resolve(query.project_id, project_queries.find, ProjectNotFound)
    token_id = await call.resolve(query.token_id, token_queries.find, TokenNotFound)

    def read(connection: Connection) -> list[_Counted]:
        after = query.cursor or None
        return _counted(
            connection, *queries.page(connection, query.limit + 1, after, project_id or None, token_id or None)
        )

    return page(await call.services.database.read(read), query.limit, _shown, position_cursor)


@Operation(
    RESOURCE,
    "POST",
    _COLLECTION,
    "createLimit",
    Limit,
    status=201,
    body=NewLimit,
    check=_check,
    errors=(TokenNotFound, ProjectNotFound),
)
async def _create(call: Call, new: NewLimit) -> Limit:
    """Create a limit; the next request on every replica is judged by it."""
    token_id = await call.resolve(new.token_id, token_queries.find, TokenNotFound)
    project_id = await call.resolve(new.project_id, project_queries.find, ProjectNotFound)
    wait: Any = new.wait
    if wait is UNSET:
        wait = _CONCURRENCY_WAIT if new.metric == "concurrency" else 0.0
    fields: Any = {
        "scope": "token" if token_id else "project" if project_id else "proxy",
        "subject": token_id or project_id,
        "metric": new.metric,
        "period": new.window or "total",
        "policy": new.policy,
    }
    limit = records.Limit(
        id=new_id(),
        **fields,
        amount=_stored(new.metric, new.amount),
        models=stored_patterns(new.models or None),
        wait_ms=round(wait * 1000),
        warn_at=new.warn_at,
        allow_unpriced=new.unpriced == "allow",
        created_at=call.now,
        updated_at=call.now,
    )

    def create(connection: Connection) -> Change[records.Limit]:
        if token_id:
            found(token_queries.get_locked(connection, token_id), TokenNotFound, token_id)
        elif project_id:
            found(project_queries.get(connection, project_id), ProjectNotFound, project_id)
        queries.create(connection, limit)
        started_at = limits.started_at(limit.period, clock(connection))
        opening = 0
        # The sums are those of whole hours.
        if new.backfill and limit.metric != "concurrency" and limit.period != "minute":
            used = queries.used_before(connection, limit, started_at)
            patterns = patterns_of(limit.models)
            opening = sum(n for model, n in used.items() if patterns is None or limits.matches(patterns, model))
        queries.open_counter(connection, queries.counter_id(limit.id, started_at), opening)
        return Change(None, limit)

    await call.write(create)
    _log.info("limit created", limit_id=limit.id, scope=limit.scope, subject=limit.subject, metric=limit.metric)
    return await _current(call, limit)


def _locked(connection: Connection, limit_id: str) -> records.Limit:
    return found(queries.get_locked(connection, limit_id), LimitNotFound, limit_id)


@Operation(RESOURCE, "GET", _ONE, "getLimit", Limit)
async def _get(call: Call) -> Limit:
    """Show a limit, and what is used of it in its current window."""
    return await _current(call, found(await call.services.database.read(queries.get, call.id), LimitNotFound, call.id))


@Operation(RESOURCE, "PATCH", _ONE, "updateLimit", Limit, body=LimitChanges)
async def _update(call: Call, body: LimitChanges) -> Limit:
    """Change a limit; what it has counted stays. To count something else, delete it and create another one."""
    sent = given(body)

    def change(connection: Connection) -> Change[records.Limit]:
        limit = _locked(connection, call.id)
        if mistakes := list(_change_mistakes(limit, sent)):
            raise InvalidBody("; ".join(mistakes) + ".")
        changes: Any = {}
        if "amount" in sent:
            changes["amount"] = _stored(limit.metric, sent["amount"])
        if "wait" in sent:
            changes["wait_ms"] = round(sent["wait"] * 1000)
        if "warn_at" in sent:
            changes["warn_at"] = sent["warn_at"]
        if "unpriced" in sent:
            changes["allow_unpriced"] = sent["unpriced"] == "allow"
        return Change(limit, queries.change(connection, limit, changes, call.now))

    answer = await call.write(change)
    _log.info("limit changed", limit_id=answer.id, fields=", ".join(sent))
    return await _current(call, answer)


def _change_mistakes(limit: records.Limit, sent: Mapping[str, Any]) -> Iterable[str]:
    if "amount" in sent:
        yield from _amount_mistakes(limit.metric, sent["amount"])
    if "wait" in sent and limit.policy != "reserved" and limit.metric != "concurrency":
        yield "'wait' is only for 'policy' reserved and 'metric' concurrency"
    if "unpriced" in sent:
        yield from _unpriced_mistakes(limit.metric, limit.policy, sent["unpriced"])


@Operation(RESOURCE, "DELETE", _ONE, "deleteLimit", None, status=204)
async def _delete(call: Call) -> None:
    """Delete a limit and what it has counted."""
    limit: records.Limit

    def delete(connection: Connection) -> Change[None]:
        nonlocal limit
        limit = _locked(connection, call.id)
        if limit.scope == "token":
            token_queries.get_locked(connection, limit.subject)
        queries.remove(connection, limit)
        return Change(limit, None, id=limit.id)

    await call.write(delete)
    _log.info("limit deleted", limit_id=limit.id, scope=limit.scope, subject=limit.subject, metric=limit.metric)
