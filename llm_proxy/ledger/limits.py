"""The limits in one transaction: read once, their counters locked in one order, and moved in one statement."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from datetime import datetime
from typing import NamedTuple

import msgspec
from attrs import define, field

from db import Connection
from db.queries import limits as queries
from db.queries.counters import BEFORE
from db.queries.limits import Movement, Movements, counter_id
from db.records import Account, Limit, LimitCounter, Reservation, SettledRequest, Token
from llm_proxy.errors import ProxyError, TokenLocked
from llm_proxy.limits import Blocked, Demand, behind, covers, ends_at, held, matches, started_at, verdict, warns


class LimitState(msgspec.Struct, frozen=True):
    """A limit with the request that was admitted: what is used and reserved of it, and when its window ends."""

    limit: Limit
    used: int
    reserved: int
    ends_at: datetime | None

    @property
    def warns(self) -> bool:
        return warns(self.limit, self.used)


@define(eq=False)
class _Window:
    """A limit in its current window, with what its counter had when it was locked, and what is added to it."""

    limit: Limit
    key: str
    ends_at: datetime | None
    moved: Movement
    locked: bool = False
    used: int = 0
    reserved: int = 0

    def lock(self, counter: LimitCounter) -> None:
        self.locked, self.used, self.reserved = True, counter.used, counter.reserved

    def state(self) -> LimitState:
        moved = self.moved
        return LimitState(self.limit, self.used + moved.used, self.reserved + moved.reserved, self.ends_at)


class Admitted(NamedTuple):
    """What a request holds, by counter, the limits that it passed, and when, by the database's clock."""

    holds: dict[str, int]
    states: tuple[LimitState, ...]
    at: datetime


def subjects_of(reservations: Iterable[Reservation]) -> set[str]:
    """The tokens and projects of these requests."""
    return {key for one in reservations for key in (one.token_id, one.project_id)}


@define
class Limits:
    """The limits of a transaction's requests, and the database's clock when they were read."""

    now: datetime
    #: Limits that requests which are not in this transaction wait for.
    _waiting: Collection[str]
    _by_subject: Mapping[str, Sequence[Limit]]
    _movements: Movements
    #: Counters that are to be made by a transaction that may wait.
    _missing: Collection[str] = ()
    _windows: dict[str, _Window] = field(factory=dict, init=False)
    _applied: dict[str, list[Limit]] = field(factory=dict, init=False)
    #: Limits that an earlier request waits for.
    _busy: set[str] = field(factory=set)

    @classmethod
    def read(cls, connection: Connection, subjects: Iterable[str], waiting: Collection[str]) -> Limits:
        """Read the limits of these tokens and projects, and of the whole proxy."""
        found, now = queries.of_subjects(connection, {"", *subjects})
        by_subject: dict[str, list[Limit]] = {}
        for limit in found:
            by_subject.setdefault(limit.subject, []).append(limit)
        return cls(now, waiting, by_subject, Movements({limit.id: limit for limit in found}))

    @classmethod
    def of_rows(cls, connection: Connection, rows: Iterable[SettledRequest]) -> Limits:
        """Read those of these rows, and of the whole proxy."""
        return cls.read(connection, subjects_of(row.reservation for row in rows), ())

    def _applying(self, token_id: str, project_id: str) -> list[Limit]:
        found = self._applied.get(token_id)
        if found is None:
            by_subject = self._by_subject
            found = [limit for subject in (token_id, project_id, "") for limit in by_subject.get(subject, ())]
            self._applied[token_id] = found
        return found

    def _window(self, limit: Limit) -> _Window:
        """The current window, made once for the transaction."""
        found = self._windows.get(limit.id)
        if found is None:
            start = started_at(limit.period, self.now)
            key = counter_id(limit.id, start)
            found = _Window(limit, key, ends_at(limit.period, start), self._movements.of(key))
            self._windows[limit.id] = found
        return found

    def lock(
        self,
        connection: Connection,
        wanted: Iterable[tuple[Token, Account]],
        settled: Iterable[SettledRequest],
        *,
        skip_locked: bool,
    ) -> None:
        """Lock the counters that these requests need, and those that these settlements move."""
        keys = {
            self._window(limit).key
            for token, account in wanted
            for limit in self._applying(token.id, account.project.id)
        }
        if keys:
            known = self._movements.limits
            keys.update(
                key for row in settled for key in row.reservation.limits or () if queries.limit_of(key) in known
            )
            if skip_locked:
                counters, self._missing = queries.lock_free_counters(connection, keys)
            else:
                counters = queries.lock_counters(connection, keys)
            for window in self._windows.values():
                if counter := counters.get(window.key):
                    window.lock(counter)

    def settle(
        self, written: Sequence[SettledRequest], replaced: Sequence[SettledRequest], late: Sequence[SettledRequest]
    ) -> list[SettledRequest]:
        """Charge what settled; return the late rows with their counters.

        Late usage is charged in the windows of the request that saw it.
        """
        before = {row.id: row for row in replaced}
        for row in written:
            old = before.get(row.id)
            if old is None:
                self._movements.settle(row)
            else:
                self._movements.replace(row, old)
        return [self._charge_late(row) for row in late]

    def _charge_late(self, row: SettledRequest) -> SettledRequest:
        # If nobody counted it, it is charged what the request held that made the object.
        held = {queries.limit_of(key): amount for key, amount in (row.reservation.limits or {}).items()}
        charged = msgspec.structs.replace(row, reservation=self._assigned(row, lambda limit: held.get(limit.id, 0)))
        self._movements.settle(charged)
        return charged

    def assign(self, row: SettledRequest) -> Reservation:
        """The reservation of a request that was admitted without the database, with the counters of its windows.

        No limit counts it that was made long after it. If it is still running, it holds itself of limits of requests,
        and of nothing else.
        """
        if row.reservation.limits:
            return row.reservation
        running = row.result.outcome == "unknown"
        made_until = row.reservation.admitted_at + BEFORE
        return self._assigned(row, lambda limit: int(running and limit.metric == "requests"), made_until)

    def _assigned(
        self, row: SettledRequest, held_by: Callable[[Limit], int], made_until: datetime | None = None
    ) -> Reservation:
        # The models of a batch are in a file: the answer names one.
        whose, model = row.reservation, row.result.requested_model or row.result.model
        keys = {
            counter_id(limit.id, started_at(limit.period, whose.admitted_at)): held_by(limit)
            for limit in self._applying(whose.token_id, whose.project_id)
            if (made_until is None or limit.created_at <= made_until)
            and (limit.models is None or matches(limit.models["patterns"], model))
        }
        return msgspec.structs.replace(whose, limits=keys or None)

    def hold(self, reservations: Iterable[Reservation]) -> None:
        """Count what requests hold whose admission was not judged."""
        for reservation in reservations:
            for key, amount in (reservation.limits or {}).items():
                limit = self._movements.limits.get(queries.limit_of(key))
                if limit is not None and limit.reserves:
                    self._movements.of(key).reserved += amount

    def end_retries(self) -> None:
        """From now on, the requests are new: those that wait, here or elsewhere, come first."""
        self._busy.update(self._waiting)

    def judge(
        self, token: Token, account: Account, provider: str, demand: Demand | None
    ) -> Admitted | ProxyError | Blocked | None:
        """Judge a request, and count it if it is admitted; None if it has no limits."""
        blocked: Blocked | None = None
        holds: dict[str, int] = {}
        judged: list[_Window] = []
        for limit in self._applying(token.id, account.project.id):
            if demand is None:
                raise ProxyError
            if limit.models is not None and not covers(limit.models, demand, provider):
                continue
            window = self._window(limit)
            if not window.locked:
                locked = TokenLocked()
                locked.counter = window.key if window.key in self._missing else None
                return locked
            wanted = holds[window.key] = _held(limit, demand, provider)
            judged.append(window)
            found = self._verdict(judged, wanted)
            if isinstance(found, ProxyError):
                return found
            if found is not None and (blocked is None or found.seconds < blocked.seconds):
                blocked = found
        if blocked is not None:
            if blocked.seconds:
                self._busy.add(blocked.limit_id)
            return blocked
        if not judged:
            return None
        for window in judged:
            if window.limit.reserves:
                window.moved.reserved += holds[window.key]
        return Admitted(holds, tuple([window.state() for window in judged]), self.now)

    def _verdict(self, judged: Sequence[_Window], wanted: int) -> ProxyError | Blocked | None:
        """Judge a request by the last of these limits, after it was judged by the others."""
        limit, state = judged[-1].limit, judged[-1].state()
        found = verdict(limit, state.used, state.reserved, wanted, self.now)
        if found is None and wanted and limit.id in self._busy:
            found = behind(limit)
        if found is not None:
            error = found.error if isinstance(found, Blocked) else found
            error.limit_id, error.judged_at = limit.id, self.now
            error.limits = tuple(window.state() for window in judged)
        return found

    def write(self, connection: Connection) -> None:
        self._movements.write(connection)


def _held(limit: Limit, demand: Demand, provider: str) -> int:
    """What a request holds of a limit; the error names the limit if that cannot be computed."""
    try:
        return held(limit, demand, provider)
    except ProxyError as error:
        error.limit_id = limit.id
        raise
