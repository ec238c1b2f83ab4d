"""The ledger's statements: reservations, settlement, roll-up, heartbeats, the sweep, and the proof.

Each function takes a connection inside a transaction and issues a fixed number of statements, whatever the number of
rows. Locks are taken in one order everywhere: own reservations, tokens (by digest), then roll-up rows (by key).
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from hashlib import blake2b
from operator import attrgetter
from typing import TYPE_CHECKING

from attrs import asdict, evolve, frozen
from msgspec.structs import replace
from sqlalchemy import (
    BindParameter,
    bindparam,
    delete,
    exists,
    func,
    insert,
    inspect,
    literal_column,
    or_,
    select,
    update,
)

from db.dialects.bulk import BulkInsert, DeleteByKeys, LockByKeys, SelectByKeys
from db.dialects.statements import add_to_counter, by_sorting, clock, for_update, upsert_add
from db.queries import limits as limit_queries
from db.queries.rows import SETTLED, columns, names
from db.records import (
    DETAIL_SUMS,
    ERRORS,
    TOKENS,
    UNKNOWN,
    VOID,
    Account,
    Project,
    Reservation,
    Result,
    SealedKey,
    SettledRequest,
    Token,
    Worker,
)
from db.schema import (
    DURATION_COLUMNS,
    DURATIONS,
    SERIES,
    SUMS,
    credentials,
    in_flight,
    limits,
    project_credentials,
    projects,
    requests,
    tokens,
    usage_days,
    usage_hourly,
    workers,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from typing import Any

    from sqlalchemy import Connection


@frozen
class Imbalance:
    """A token whose three request counts differ. `settled` counts the rows, pruned ones included."""

    token_id: str
    counter: int
    settled: int
    rolled_up: int
    in_flight: int


class ReservationsMissing(Exception):
    """Some of the reservations to settle are not there: swept meanwhile, settled already, or never committed."""


def _keys() -> BindParameter[Any]:
    return bindparam("keys", expanding=True)


# What every transaction needs, compiled once.
_lock_tokens = SelectByKeys(
    for_update(
        select(*columns(tokens, Token)).where(tokens.c.digest.in_(_keys())).order_by(tokens.c.id), by=tokens.c.digest
    ),
    tokens.c.digest.type,
    Token,
)
_lock_free_tokens = LockByKeys(
    for_update(
        select(*columns(tokens, Token)).where(tokens.c.digest.in_(_keys())).order_by(tokens.c.id),
        by=tokens.c.digest,
        skip_locked=True,
    ),
    tokens.c.digest.type,
    Token,
)
_find_tokens = SelectByKeys(
    select(*columns(tokens, Token)).where(tokens.c.digest.in_(_keys())), tokens.c.digest.type, Token
)
_PROJECT = columns(projects, Project)
_find_accounts = SelectByKeys(
    select(
        *_PROJECT,
        or_(
            exists().where(limits.c.subject == projects.c.id).correlate(projects),
            exists().where(limits.c.subject == literal_column("''")),
        ),
        *(credentials.c.id, credentials.c.provider, credentials.c.api_key, credentials.c.active),
    )
    .select_from(projects)
    .outerjoin(project_credentials, project_credentials.c.project_id == projects.c.id)
    .outerjoin(credentials, credentials.c.id == project_credentials.c.credential_id)
    .where(projects.c.id.in_(_keys())),
    projects.c.id.type,
    lambda *row: row,
)
_reserve = BulkInsert(insert(in_flight), names(Reservation))
_release = DeleteByKeys(in_flight.c.id)
delete_requests = DeleteByKeys(requests.c.id)
_settle = BulkInsert(insert(requests), SETTLED)
_roll_up = BulkInsert(
    upsert_add(usage_hourly, keys=("hour", "token_id", "model"), sums=SUMS),
    ["hour", "token_id", "model", "project_id", *SERIES, *SUMS],
)
_NOTHING = dict.fromkeys(SUMS, 0)
_counts_of = attrgetter(*TOKENS)
# What is needed now and then.
_reservations = select(*columns(in_flight, Reservation)).order_by(in_flight.c.id)


def lock_tokens(connection: Connection, digests: Iterable[bytes]) -> dict[bytes, Token]:
    """Read and lock the tokens that have these digests, until the transaction ends."""
    return {token.digest: token for token in _lock_tokens(connection, sorted(set(digests)))}


def lock_free_tokens(connection: Connection, digests: Iterable[bytes]) -> tuple[dict[bytes, Token], set[bytes]]:
    """Lock tokens as `lock_tokens` does, but without waiting.

    Returns:
        The tokens, and the digests of those that are left out because another transaction holds them.
    """
    wanted = sorted(set(digests))
    free = {token.digest: token for token in _lock_free_tokens(connection, wanted)}
    # Tokens that are found now exist, so another transaction holds them.
    held = _find_tokens(connection, [digest for digest in wanted if digest not in free])
    return free, {token.digest for token in held}


def find_accounts(connection: Connection, project_ids: Iterable[str]) -> dict[str, Account]:
    """Read these projects and their keys as they are committed now.

    The key of the default provider is the project's own copy: servers of the release before change that alone.
    """
    found: dict[str, Account] = {}
    width = len(_PROJECT)
    for row in _find_accounts(connection, sorted(set(project_ids))):
        account = found.get(row[0])
        if account is None:
            project = Project(*row[:width])
            key = SealedKey(project.id, project.api_key, active=True)
            account = found[project.id] = Account(project, {project.provider: key}, bool(row[width]))
        credential_id, provider, sealed, active = row[width + 1 :]
        if provider == account.project.provider:
            account.keys[provider] = SealedKey(account.project.id, account.project.api_key, active=active)
        elif provider is not None:
            account.keys[provider] = SealedKey(credential_id, sealed, active=active)
    return found


def look_up(connection: Connection, digests: Iterable[bytes]) -> dict[bytes, tuple[Token, Account]]:
    """Read the tokens that have these digests, each with its project; locks nothing."""
    found = {token.digest: token for token in _find_tokens(connection, sorted(set(digests)))}
    accounts = find_accounts(connection, {token.project_id for token in found.values()})
    return {digest: (token, accounts[token.project_id]) for digest, token in found.items()}


def add_to_counters(connection: Connection, added: Mapping[str, int], used_at: datetime | None) -> None:
    """Add to the request counters of tokens (by id; negative gives back), in one statement.

    `used_at` becomes their `last_used_at`; None leaves it.
    """
    changes = {token_id: count for token_id, count in sorted(added.items()) if count}
    also = {} if used_at is None else {tokens.c.last_used_at: used_at}
    add_to_counter(connection, tokens.c.request_count, changes, also)


def reserve(connection: Connection, reservations: Sequence[Reservation]) -> None:
    """Write one row per admitted request."""
    _reserve(connection, reservations)


def reserve_late(connection: Connection, reservations: Sequence[Reservation]) -> list[Reservation]:
    """Write and count the reservations that are neither open nor settled yet; return them.

    For requests that were admitted while the database was away: the limit is not looked at any more. Tokens are found
    by their ids, because their digests may have changed meanwhile. They count as used when the last of all these
    requests was admitted, unless they were used later.
    """
    ids = [row.id for row in reservations]
    # In this order: a row may be on its way from the one to the other.
    there = set(connection.scalars(select(in_flight.c.id).where(in_flight.c.id.in_(ids))))
    there.update(connection.scalars(select(requests.c.id).where(requests.c.id.in_(ids))))
    missing = [row for row in reservations if row.id not in there]
    uses = Counter(row.token_id for row in missing)
    latest = max((row.admitted_at for row in missing), default=None)
    last_used = select(tokens.c.id, tokens.c.last_used_at).where(tokens.c.id.in_(sorted(uses))).order_by(tokens.c.id)
    late: set[str] = set()
    if latest is not None:
        late = {
            key
            for key, used_at in connection.execute(for_update(last_used, by=tokens.c.id))
            if used_at and used_at > latest
        }
    add_to_counters(connection, {key: count for key, count in uses.items() if key not in late}, latest)
    add_to_counters(connection, {key: count for key, count in uses.items() if key in late}, None)
    reserve(connection, missing)
    return missing


def are_tokens(connection: Connection, ids: Sequence[str]) -> bool:
    """Whether there is a token for each of these different ids."""
    count = select(func.count()).select_from(tokens).where(tokens.c.id.in_(ids))
    return connection.execute(count).scalar_one() == len(ids)


def settle(connection: Connection, settled: Sequence[SettledRequest]) -> None:
    """Turn reservations into rows of the ledger.

    The hourly sums are the caller's next step (`roll_up`), after it has locked the tokens.

    Raises:
        ReservationsMissing: not every reservation is there; roll back and use `settle_doubtful`.
    """
    if _release(connection, [row.reservation.id for row in settled]) != len(settled):
        raise ReservationsMissing
    _settle(connection, [row.values() for row in settled])


def settle_doubtful(
    connection: Connection, settled: Sequence[SettledRequest]
) -> tuple[list[SettledRequest], list[SettledRequest]]:
    """Settle where each reservation may be open, swept to `unknown`, settled before, or never committed.

    The database says what each holds of limits.

    Returns:
        The rows that were written, and the `unknown` rows that they replaced (to be taken out of the roll-up).
    """
    ids = [row.reservation.id for row in settled]
    open_rows = connection.execute(for_update(_reservations.where(in_flight.c.id.in_(ids)), by=in_flight.c.id))
    holds: dict[str, dict[str, int] | None] = {row.id: row.limits for row in open_rows}
    open_ids = set(holds)
    unknown = select(*columns(requests, SettledRequest)).where(
        requests.c.id.in_(set(ids) - open_ids), requests.c.outcome == "unknown"
    )
    found = connection.execute(for_update(unknown, by=requests.c.id)).mappings()
    swept = {row["id"]: SettledRequest.of(row) for row in found}
    holds.update((key, row.reservation.limits) for key, row in swept.items())
    written = [
        row
        if row.reservation.limits == (held := holds[row.id])
        else replace(row, reservation=replace(row.reservation, limits=held))
        for row in settled
        if row.id in holds
    ]
    _release(connection, sorted(open_ids))
    delete_requests(connection, sorted(swept))
    _settle(connection, [row.values() for row in written])
    return written, list(swept.values())


def describe_late(connection: Connection, late: Sequence[SettledRequest]) -> list[SettledRequest]:
    """The rows of late usage, with what is known of the requests that they belong to, and what those held of limits."""
    own = requests.c
    found = select(own.id, own.requested_model, own.labels, own.summed_labels, own.limits)
    origins = {
        row.id: row for row in connection.execute(found.where(own.id.in_({row.result.origin_id for row in late})))
    }
    rows = []
    for row in late:
        origin = origins.get(row.result.origin_id)
        if origin is not None:
            requested, labels, summed = origin.requested_model or "", origin.labels, origin.summed_labels
            result = replace(row.result, requested_model=requested, labels=labels, summed_labels=summed)
            whose = replace(row.reservation, limits=origin.limits)
            row = SettledRequest(whose, result, row.settled_at)  # noqa: PLW2901 - the same row
        rows.append(row)
    return rows


def add_late(connection: Connection, late: Sequence[SettledRequest]) -> None:
    """Write rows of late usage. The hourly sums are the caller's next step (`roll_up`)."""
    _settle(connection, [row.values() for row in late])


#: Heartbeats that may be missing before a worker counts as dead.
MISSED_HEARTBEATS = 4
_DAY = timedelta(days=1)
#: Sums of a day that change later than this after its end are late. Nobody has summed the day up before that.
_LATE = timedelta(hours=1)


@lru_cache(maxsize=256)  # a transaction has few of them
def hour_of(admitted: datetime) -> datetime:
    """The hour whose sums a request that was admitted then belongs to."""
    return admitted.replace(minute=0, second=0, microsecond=0)


def series_of(provider: str, model: str, requested_model: str | None, summed_labels: Mapping[str, str] | None) -> str:
    """The key of a series in the hourly sums. Servers of the release before name no requested model."""
    if requested_model is None:
        return model
    return _digest_of(
        provider, model, requested_model, "" if summed_labels is None else repr(sorted(summed_labels.items()))
    )


@lru_cache(maxsize=1024)
def _digest_of(*series: str) -> str:
    return blake2b(repr(series).encode(), digest_size=16).hexdigest()


def roll_up(connection: Connection, added: Iterable[SettledRequest], removed: Iterable[SettledRequest] = ()) -> None:
    """Add settled rows to the hourly sums (void ones do not count), in one statement."""
    sums: dict[tuple[datetime, str, str], dict[str, Any]] = {}
    for sign, rows in ((1, added), (-1, removed)):
        for row in rows:
            of, result = row.reservation, row.result
            if result.outcome == "void":
                continue
            asked, labels = result.requested_model, result.summed_labels
            series = series_of(of.provider, result.model, asked, labels)
            key = hour, token_id, _ = hour_of(of.admitted_at), of.token_id, series
            bucket = sums.get(key)
            if bucket is None:
                bucket = sums[key] = {
                    "hour": hour,
                    "token_id": token_id,
                    "model": series,
                    "project_id": of.project_id,
                    "provider": None if asked is None else of.provider,
                    "answered_model": None if asked is None else result.model,
                    "requested_model": asked,
                    "labels": labels,
                    **_NOTHING,
                }
            _add(bucket, sign, result)
    keys = sorted(sums)
    _roll_up(connection, [sums[key] for key in keys])
    if keys and (keys[0][0] < (now := datetime.now(UTC)) - _LATE or keys[-1][0] > now):
        # Days to come are marked if the clock of a server was ahead.
        days = {hour.replace(hour=0) for hour, _, _ in keys}
        marked = {day for day in days if day + _DAY + _LATE <= now or day > now}
        connection.execute(delete(usage_days).where(usage_days.c.day.in_(marked)))


def sums_of(result: Result) -> list[int]:
    """What one request that is not void adds to each of `SUMS`."""
    sums = dict(_NOTHING)
    _add(sums, 1, result)
    return [sums[name] for name in SUMS]


def _add(bucket: dict[str, Any], sign: int, result: Result) -> None:
    if result.kind == "request":
        bucket["requests"] += sign
        if result.outcome != "ok":
            bucket["errors"] += sign * (result.outcome in ERRORS)
            bucket["client_closed"] += sign * (result.outcome == "client_closed")
        if result.unmetered:
            bucket["unmetered"] += sign
        if result.estimated:
            bucket["estimated"] += sign
        if result.duration_us is not None:
            bucket[DURATION_COLUMNS[bisect_left(DURATIONS, result.duration_us / 1000)]] += sign
    for name, count in zip(TOKENS, _counts_of(result), strict=True):
        if count:
            bucket[name] += sign * count
    if result.usage_details:
        for name in DETAIL_SUMS:
            bucket[name] += sign * result.usage_details.get(name, 0)
    if result.cost_nanousd:
        bucket["cost_nanousd"] += sign * result.cost_nanousd
    elif result.unpriced:
        bucket["unpriced"] += sign


def beat(connection: Connection, worker: Worker) -> datetime:
    """Say that the worker is alive, by the database's clock, and return that clock."""
    now = clock(connection)
    alive = connection.execute(update(workers).where(workers.c.id == worker.id).values(seen_at=now))
    if not alive.rowcount:
        connection.execute(insert(workers), asdict(evolve(worker, seen_at=now)))
    return now


def retire(connection: Connection, worker_id: str) -> None:
    """Take a worker that has settled everything out of the list."""
    connection.execute(delete(workers).where(workers.c.id == worker_id))


def list_workers(connection: Connection) -> list[Worker]:
    """All workers that are known, alive or not, in the order of their start."""
    rows = connection.execute(select(*columns(workers, Worker)).order_by(workers.c.started_at))
    return [Worker(*row) for row in rows]


def live_workers(connection: Connection, dead_after: timedelta) -> list[Worker]:
    """Workers that have been seen within `dead_after`, by the database's clock; none before their table is made."""
    if not inspect(connection).has_table(workers.name):
        return []
    seen = workers.c.seen_at >= clock(connection) - dead_after
    rows = connection.execute(select(*columns(workers, Worker)).where(seen).order_by(workers.c.started_at))
    return [Worker(*row) for row in rows]


def find_orphans(connection: Connection, now: datetime, dead_after: timedelta, limit: int) -> list[str]:
    """Reservations (ids, oldest first) whose worker has not been seen for `dead_after`; locks nothing."""
    live = list(connection.scalars(select(workers.c.id).where(workers.c.seen_at >= now - dead_after)))
    orphaned = select(in_flight.c.id).where(in_flight.c.worker_id.not_in(live)).order_by(in_flight.c.id).limit(limit)
    return list(connection.scalars(orphaned))


def sweep(connection: Connection, ids: Sequence[str], now: datetime) -> int:
    """Settle these reservations as `unknown`; those that another worker is sweeping are left to it.

    Returns:
        How many were swept.
    """
    locked = for_update(_reservations.where(in_flight.c.id.in_(ids)), by=in_flight.c.id, skip_locked=True)
    swept = [SettledRequest(Reservation(*row), UNKNOWN, now) for row in connection.execute(locked)]
    if swept:
        settle(connection, swept)
        limit_queries.settle(connection, swept)
        roll_up(connection, swept)
    return len(swept)


def give_back(connection: Connection, ids: Sequence[str], now: datetime) -> int:
    """Settle as `void` those of these reservations that exist, and give their counts back; return how many did."""
    locked = for_update(_reservations.where(in_flight.c.id.in_(ids)), by=in_flight.c.id)
    rows = [SettledRequest(Reservation(*row), VOID, now) for row in connection.execute(locked)] if ids else []
    settle(connection, rows)
    add_to_counters(
        connection, {token: -n for token, n in Counter(row.reservation.token_id for row in rows).items()}, None
    )
    limit_queries.settle(connection, rows)
    return len(rows)


def get_locked(connection: Connection, request_id: str) -> SettledRequest | None:
    """Read a settled request, and keep others from replacing it until the transaction ends."""
    one = select(*columns(requests, SettledRequest)).where(requests.c.id == request_id)
    found = connection.execute(for_update(one, by=requests.c.id)).mappings().one_or_none()
    return None if found is None else SettledRequest.of(found)


def resolve(connection: Connection, row: SettledRequest, cost: int | None) -> SettledRequest:
    """Correct a request whose worker died, read with `get_locked`: it cost so much, or None if it was never sent.

    One that was never sent gives its count back.
    """
    if cost is None:
        result = replace(row.result, outcome="void", cost_nanousd=None, cost_basis=None)
        add_to_counters(connection, {row.reservation.token_id: -1}, None)
    else:
        result = replace(row.result, cost_nanousd=cost, cost_basis="provider")
    resolved = replace(row, result=result)
    values = {"outcome": result.outcome, "cost_nanousd": result.cost_nanousd, "cost_basis": result.cost_basis}
    connection.execute(update(requests).where(requests.c.id == row.id).values(**values))
    limit_queries.correct(connection, resolved, row)
    roll_up(connection, [resolved], [row])
    return resolved


def forget_dead_workers(connection: Connection, now: datetime, dead_after: timedelta) -> None:
    """Remove workers that are long dead and have nothing in flight."""
    busy = select(in_flight.c.worker_id).where(in_flight.c.worker_id == workers.c.id).exists()
    connection.execute(delete(workers).where(workers.c.seen_at < now - 10 * dead_after, ~busy))


def verify(connection: Connection) -> list[Imbalance]:
    """Compare, for every token, counter with settled + in flight and roll-up + in flight.

    Settled requests that were pruned are known by the hourly sums alone, and count as settled. One statement, so one
    snapshot: it is true also while servers are writing.
    """
    settled = (
        by_sorting(select(requests.c.token_id, func.count().label("n")))
        .where(requests.c.outcome != "void", requests.c.kind == "request")
        .group_by(requests.c.token_id)
        .subquery("settled")
    )
    rolled = (
        by_sorting(
            select(
                usage_hourly.c.token_id,
                func.sum(usage_hourly.c.requests).label("n"),
                func.sum(usage_hourly.c.pruned).label("pruned"),
            )
        )
        .group_by(usage_hourly.c.token_id)
        .subquery("rolled")
    )
    flying = select(in_flight.c.token_id, func.count().label("n")).group_by(in_flight.c.token_id).subquery("flying")
    n_rows, n_rolled, n_flying = (func.coalesce(part.c.n, 0) for part in (settled, rolled, flying))
    n_settled = n_rows + func.coalesce(rolled.c.pruned, 0)
    rows = connection.execute(
        select(tokens.c.id, tokens.c.request_count, n_settled, n_rolled, n_flying)
        .outerjoin_from(tokens, settled, settled.c.token_id == tokens.c.id)
        .outerjoin(rolled, rolled.c.token_id == tokens.c.id)
        .outerjoin(flying, flying.c.token_id == tokens.c.id)
        .where(or_(tokens.c.request_count != n_settled + n_flying, tokens.c.request_count != n_rolled + n_flying))
        .order_by(tokens.c.id)
    )
    return [Imbalance(token_id, *map(int, counts)) for token_id, *counts in rows]
