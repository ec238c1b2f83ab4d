"""Limits against a model: whatever happens to requests, workers, limits and the clock, the counters are the model's."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any, get_args

import pytest
from attrs import define, field
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from sqlalchemy import select

from db import Connection
from db.database import Database
from db.queries import counters, projects, pruning, tokens
from db.queries import ledger as queries
from db.queries import limits as limit_queries
from db.records import VOID, Limit, LimitCounter, Period, Result, Token
from db.schema import limit_counters
from llm_proxy.errors import ProxyError
from llm_proxy.identifiers import request_id
from llm_proxy.ledger import AdmissionRequest, Grant, ObjectUsage, Settlement
from llm_proxy.ledger.transaction import Decision, transact
from llm_proxy.limits import Blocked, Bound, started_at
from tests.databases.kinds import Kind
from tests.db.queries.factories import a_project, a_token, to_default
from tests.ledger.test_limits import WORKER, FixedDemand, limited

#: In the middle of a minute, close to the end of an hour, a day, a week, a month and a year.
START = datetime(2028, 12, 31, 23, 58, 30, tzinfo=UTC)
RESULTS = (
    Result(outcome="ok", status=200, requested_model="m", input_tokens=7, output_tokens=5, cost_nanousd=1200),
    Result(
        outcome="client_closed", requested_model="m", input_tokens=9, output_tokens=0, cost_nanousd=90, estimated=True
    ),
    Result(outcome="ok", status=200, requested_model="m", input_tokens=4, output_tokens=4),
    Result(outcome="ok", status=200, requested_model="m", usage_details={}),
    Result(outcome="rejected", status=400, requested_model="m"),
    VOID,
)
REFUSALS = {
    *("rate_limit_exceeded", "request_limit_exceeded", "budget_exceeded", "cost_unbounded", "model_not_priced"),
}
LATE = Result(outcome="ok", kind="late", input_tokens=50, output_tokens=30, cost_nanousd=5000)
DEMANDS = (
    FixedDemand("m", bound=Bound(20, 30, 3000)),
    FixedDemand("gpt-5", bound=Bound(10, 10, 2000)),
    FixedDemand("m", cost=None, bound=Bound(5, 5, None)),
    FixedDemand("m"),
    FixedDemand("", bills=False),
)


@define
class Counted:
    """A limit of the model, with its counters by the start of their window: used, reserved, unknown, unpriced."""

    limit: Limit
    counters: dict[datetime | None, list[int]] = field(factory=dict)

    def counter(self, at: datetime) -> list[int]:
        return self.counters.setdefault(started_at(self.limit.period, at), [0, 0, 0, 0])

    def counts(self, model: str) -> bool:
        patterns = None if self.limit.models is None else self.limit.models["patterns"]
        return patterns is None or model in patterns or (model == "gpt-5" and "GPT*" in patterns)

    def judge(self, demand: FixedDemand, at: datetime) -> tuple[str, int]:
        """Whether the request is admitted (`ok`), refused (`no`) or has to wait, and what it holds."""
        limit, (used, reserved, _, _) = self.limit, self.counter(at)
        wanted = 1 if limit.metric in ("requests", "concurrency") else self.estimate(demand)
        if wanted is None:
            return "no", 0
        if limit.policy == "warn":
            word = "ok"
        elif limit.metric == "concurrency":
            word = "ok" if reserved < limit.amount else "wait"
        elif limit.policy == "settled" and limit.metric != "requests":
            word = "ok" if used < limit.amount else "no"
        elif used + reserved + wanted <= limit.amount:
            word = "ok"
        else:
            never = limit.metric == "requests" or used >= limit.amount or used + wanted > limit.amount
            word = "no" if never else "wait"
        return word, wanted

    def estimate(self, demand: FixedDemand) -> int | None:
        """What it holds of tokens or money; None: that cannot be computed."""
        limit, bound = self.limit, demand.bound
        if not demand.bills:
            return 0
        if limit.policy == "reserved":
            if bound is None:
                return None
            tokens = {"input_tokens": bound.input_tokens, "output_tokens": bound.output_tokens}
            return bound.cost if limit.metric == "cost" else tokens.get(limit.metric, sum(tokens.values()))
        if limit.metric == "cost":
            unpriced = 0 if limit.allow_unpriced or limit.policy == "warn" else None
            return unpriced if demand.cost is None else demand.cost
        return 0 if limit.metric == "output_tokens" else demand.tokens

    def charge(self, result: Result, held: int) -> int:
        metric = self.limit.metric
        if metric == "concurrency" or result.outcome == "void":
            return 0
        if metric == "requests":
            return 0 if result.kind == "late" else 1
        if result.outcome == "unknown" or result.usage_details == {} or (metric == "cost" and result.unpriced):
            return held
        tokens = {"input_tokens": result.input_tokens or 0, "output_tokens": result.output_tokens or 0}
        return (result.cost_nanousd or 0) if metric == "cost" else tokens.get(metric, sum(tokens.values()))

    def book(self, result: Result, held: int, at: datetime, sign: int = 1) -> None:
        counter, amount = self.counter(at), sign * self.charge(result, held)
        counter[0] += amount
        counter[2] += amount if result.outcome == "unknown" else 0
        counter[3] += sign if self.limit.metric == "cost" and result.unpriced else 0


@define(eq=False)
class Sent:
    """A request that was admitted. `result`: how it has ended. `pruned`: its row was deleted after that."""

    grant: Grant
    at: datetime
    #: By the limit's id.
    held: dict[str, int]
    result: Result | None = None
    pruned: bool = False


class LimitMachine(RuleBasedStateMachine):
    """Tokens of two projects, their limits, and requests of workers that may die and come back."""

    database: Database
    numbers = itertools.count()

    def __init__(self) -> None:
        super().__init__()
        self.now = START
        #: Rows of earlier examples stay in the database, and name limits of these.
        self.number = next(self.numbers)
        self.limits: dict[str, Counted] = {}
        self.deleted: set[str] = set()
        self.sent: list[Sent] = []
        self.batches = 0
        self.tokens: list[Token] = []
        self.patch = pytest.MonkeyPatch()
        real = limit_queries.of_subjects
        self.patch.setattr(
            limit_queries, "of_subjects", lambda connection, subjects: (real(connection, subjects)[0], self.now)
        )
        self.patch.setattr(counters, "clock", lambda _: self.now)

    @initialize(data=st.data())
    def begin(self, data: st.DataObject) -> None:
        """Two tokens of one project, one of another, and a few limits."""
        for count in (2, 1):
            project = a_project()
            self.database.write_now(projects.create, project)
            for _ in range(count):
                self.tokens.append(a_token(project.id))
                self.database.write_now(tokens.create, self.tokens[-1])
        for scope in ("project", "proxy", "token"):
            self.create_a_limit(data, scope)

    def transact(
        self, requests: Sequence[AdmissionRequest], ended: Sequence[Settlement], **options: Any
    ) -> list[Decision]:
        work = partial(transact, **options)
        try:
            return self.database.write_now(work, WORKER, requests, ended, datetime.now(UTC))
        except queries.ReservationsMissing:
            return self.database.write_now(partial(work, doubtful=True), WORKER, requests, ended, datetime.now(UTC))

    def applying(self, token: Token) -> list[Counted]:
        found = [self.limits[key] for key in sorted(self.limits)]
        return [one for subject in (token.id, token.project_id, "") for one in found if one.limit.subject == subject]

    def some(self, data: st.DataObject, which: Sequence[Sent]) -> list[Sent]:
        return data.draw(st.lists(st.sampled_from(which), unique_by=id, min_size=1, max_size=4)) if which else []

    @property
    def open(self) -> list[Sent]:
        return [one for one in self.sent if one.result is None]

    @precondition(lambda self: len(self.limits) < 5)
    @rule(data=st.data(), scope=st.sampled_from(["token", "project", "proxy"]))
    def create_a_limit(self, data: st.DataObject, scope: str) -> None:
        draw = data.draw
        metric = draw(st.sampled_from(["requests", "concurrency", "cost", "tokens", "input_tokens", "output_tokens"]))
        counts = metric in ("requests", "concurrency")
        most = 1 if counts else 2000 if metric == "cost" else 30
        limit = limited(
            self.database,
            draw(st.sampled_from(self.tokens)),
            scope,
            id=f"{self.number:08x}-0000-7000-8000-{len(self.limits) + len(self.deleted):012d}",
            metric=metric,
            period="total" if metric == "concurrency" else draw(st.sampled_from(get_args(Period))),
            amount=draw(st.integers(0, 6) if counts else st.integers(1, 8)) * most,
            policy=draw(st.sampled_from(["settled", "warn"] if counts else ["settled", "reserved", "warn"])),
            wait_ms=draw(st.sampled_from([0, 1000])),
            models=draw(st.sampled_from([None, None, {"patterns": ["GPT*"]}, {"patterns": ["m", "o4"]}])),
            allow_unpriced=draw(st.booleans()),
            created_at=datetime.now(UTC),
        )
        self.limits[limit.id] = Counted(limit)

    @precondition(lambda self: self.limits)
    @rule(data=st.data(), factor=st.sampled_from([0, 1, 2]), unpriced=st.booleans())
    def change_a_limit(self, data: st.DataObject, factor: int, unpriced: bool) -> None:
        one = self.limits[data.draw(st.sampled_from(sorted(self.limits)))]
        changes: limit_queries.LimitValues = {"amount": one.limit.amount * factor + 1, "allow_unpriced": unpriced}
        one.limit = self.database.write_now(limit_queries.change, one.limit, changes, datetime.now(UTC))

    @precondition(lambda self: len(self.limits) > 2)
    @rule(data=st.data())
    def delete_a_limit(self, data: st.DataObject) -> None:
        one = self.limits.pop(data.draw(st.sampled_from(sorted(self.limits))))
        self.deleted.add(one.limit.id)
        self.database.write_now(limit_queries.remove, one.limit)

    @rule(seconds=st.sampled_from([1, 40, 3600, 86_400, 7 * 86_400, 31 * 86_400]))
    def let_time_pass(self, seconds: int) -> None:
        self.now += timedelta(seconds=seconds)

    @rule(
        data=st.data(),
        asked=st.lists(st.tuples(st.integers(0, 2), st.sampled_from(DEMANDS)), min_size=1, max_size=6),
        ended=st.booleans(),
        skip_locked=st.booleans(),
    )
    def admit(
        self,
        data: st.DataObject,
        asked: list[tuple[int, FixedDemand]],
        ended: bool,
        skip_locked: bool,
    ) -> None:
        """Requests in one transaction, some of them again after they waited; perhaps others end in it."""
        waiting = set(data.draw(st.lists(st.sampled_from(sorted(self.limits)), max_size=2))) if self.limits else set()
        retried = data.draw(st.integers(0, len(asked)))
        settlements = [
            self.ended(sent, data.draw(st.sampled_from(RESULTS)))
            for sent in (self.some(data, self.open) if ended else [])
        ]
        requests = [
            AdmissionRequest(
                *(request_id(), self.tokens[number].digest, to_default, "POST", "/v1/x", lambda _name: None),
                demand=demand,
            )
            for number, demand in asked
        ]
        if skip_locked and not settlements:
            # Such a transaction makes no counter, because it must not wait for another one that makes it.
            keys = [
                limit_queries.counter_id(key, started_at(one.limit.period, self.now))
                for key, one in self.limits.items()
            ]
            self.database.write_now(limit_queries.make_counters, keys)
        decisions = self.transact(
            requests, settlements, waiting=waiting, retried=retried, skip_locked=skip_locked and not settlements
        )
        busy: set[str] = set()
        for number, ((token, demand), decision) in enumerate(zip(asked, decisions, strict=True)):
            if number == retried:
                busy |= waiting
            self.judge(self.tokens[token], demand, decision, busy)

    def judge(self, token: Token, demand: FixedDemand, decision: Decision, busy: set[str]) -> None:
        applying = [one for one in self.applying(token) if one.counts(demand.model)]
        found = {one.limit.id: one.judge(demand, self.now) for one in applying}
        if any(word == "no" for word, _ in found.values()):
            assert isinstance(decision, ProxyError)
            assert decision.code in REFUSALS
            return
        waits = [
            one.limit
            for one in applying
            if found[one.limit.id][0] == "wait" or (found[one.limit.id][1] and one.limit.id in busy)
        ]
        if waits:
            assert isinstance(decision, Blocked)
            shortest = min(waits, key=lambda limit: limit.wait_ms)
            assert (decision.limit_id, decision.seconds) == (shortest.id, shortest.wait_ms / 1000)
            if shortest.wait_ms:
                busy.add(shortest.id)
            return
        assert isinstance(decision, Grant)
        sent = Sent(decision, self.now, {key: held for key, (_, held) in found.items()})
        self.sent.append(sent)
        assert list((decision.reservation.limits or {}).values()) == list(sent.held.values())
        for one, state in zip(applying, decision.limits, strict=True):
            counter = one.counter(self.now)
            counter[1] += sent.held[one.limit.id] if one.limit.reserves else 0
            assert (state.used, state.reserved) == (counter[0], counter[1])
            if one.limit.reserves and one.limit.policy != "warn":
                assert counter[0] + counter[1] <= one.limit.amount

    def ended(self, sent: Sent, result: Result) -> Settlement:
        """End a request in the model, whatever became of it before."""
        if sent.result is None or (sent.result.outcome == "unknown" and not sent.pruned):
            for key, held in sent.held.items():
                if (one := self.limits.get(key)) is not None:
                    if sent.result is not None:
                        one.book(sent.result, held, sent.at, -1)
                    elif one.limit.reserves:
                        one.counter(sent.at)[1] -= held
                    one.book(result, held, sent.at)
            sent.result = result
        return Settlement.of(sent.grant, result)

    @precondition(lambda self: self.open)
    @rule(data=st.data())
    def settle(self, data: st.DataObject) -> None:
        self.transact([], [self.ended(one, data.draw(st.sampled_from(RESULTS))) for one in self.some(data, self.open)])

    @precondition(lambda self: self.sent)
    @rule(data=st.data(), doubtful=st.booleans(), back=st.booleans())
    def settle_what_may_be_settled(self, data: st.DataObject, doubtful: bool, back: bool) -> None:
        """A worker that was paused is back, or does not know the fate of its commit."""
        swept = [one for one in self.sent if one.result is not None and one.result.outcome == "unknown"]
        some = self.some(data, swept if back and swept else self.sent)
        self.transact([], [self.ended(one, data.draw(st.sampled_from(RESULTS))) for one in some], doubtful=doubtful)

    @precondition(lambda self: self.open)
    @rule(data=st.data(), give_back=st.booleans())
    def sweep_or_give_back(self, data: st.DataObject, give_back: bool) -> None:
        some = self.some(data, self.open)
        ids = [one.grant.reservation.id for one in some]
        for one in some:
            self.ended(one, VOID if give_back else Result(outcome="unknown", requested_model=""))
        self.database.write_now(queries.give_back if give_back else queries.sweep, ids, datetime.now(UTC))

    @precondition(lambda self: self.open)
    @rule(data=st.data(), again=st.booleans())
    def book_late_usage(self, data: st.DataObject, again: bool) -> None:
        """A request has made a batch, and another one of its project sees the batch's usage."""
        maker = data.draw(st.sampled_from(self.open))
        sees = data.draw(
            st.sampled_from(
                [one for one in self.open if one.grant.account.project.id == maker.grant.account.project.id]
            )
        )
        if sees is maker:
            return
        self.batches += 1
        name = f"{self.tokens[0].id}-{self.batches}"
        self.transact([], [Settlement(self.ended(maker, RESULTS[0]).row, maker.grant.digest, ((name, "batch"),))])
        seen = self.ended(sees, RESULTS[3])
        booked = Settlement(seen.row, seen.digest, (), ObjectUsage(name, request_id(), LATE))
        self.transact([], [booked])
        if again:
            self.transact([], [booked], doubtful=True)
        token = next(one for one in self.tokens if one.id == maker.grant.token.id)
        for one in self.applying(token):
            if one.counts("m"):
                one.book(LATE, 0, sees.grant.reservation.admitted_at)

    @rule(later=st.booleans())
    def prune_counters(self, later: bool) -> None:
        """Those of windows that ended more than two days ago are deleted, unless something is reserved of them."""
        if later:
            self.now += timedelta(days=40)
        self.database.write_now(counters.prune, started_at, 1000)
        for one in self.limits.values():
            oldest = started_at(one.limit.period, self.now - counters.KEPT)
            for start, (_, reserved, _, _) in list(one.counters.items()):
                if start is not None and oldest is not None and start < oldest and not reserved:
                    del one.counters[start]

    @precondition(lambda self: self.sent)
    @rule()
    def prune_rows(self) -> None:
        """What ended is charged, and its rows are deleted: nothing can correct it any more."""
        before = max(self.now, datetime.now(UTC)) + timedelta(seconds=1)
        pruned, _ = self.database.write_now(pruning.prune, before, 10_000)
        assert pruned.kept == 0
        for one in self.sent:
            one.pruned = one.pruned or one.result is not None

    @invariant()
    def counters_are_those_of_the_model(self) -> None:
        def read(connection: Connection) -> list[LimitCounter]:
            known = [*self.limits, *self.deleted]
            rows = connection.execute(select(limit_counters).where(limit_counters.c.limit_id.in_(known)))
            return [LimitCounter(**row) for row in rows.mappings()]

        found = {
            (one.limit_id, one.started_at): [one.used, one.reserved, one.unknown, one.unpriced]
            for one in self.database.read_now(read)
        }
        wanted = {(key, start): counter for key, one in self.limits.items() for start, counter in one.counters.items()}
        nothing = [0] * 4
        assert {key: value for key, value in found.items() if value != nothing} == {
            key: value for key, value in wanted.items() if value != nothing
        }

    def teardown(self) -> None:
        try:
            self.transact([], [self.ended(one, RESULTS[0]) for one in self.open])
            self.counters_are_those_of_the_model()
            for one in self.limits.values():
                assert not any(reserved for _, reserved, _, _ in one.counters.values())
            assert self.database.read_now(queries.verify) == []
            assert self.database.read_now(counters.prove, started_at).wrong == []
        finally:
            for one in self.limits.values():
                self.database.write_now(limit_queries.remove, one.limit)
            self.patch.undo()


def test_the_counters_of_limits_are_those_of_a_model(database: Database, database_kind: Kind) -> None:
    machine = type("Machine", (LimitMachine,), {"database": database})
    examples = 60 if database_kind is Kind.SQLITE else 6
    run_state_machine_as_test(machine, settings=settings(max_examples=examples, stateful_step_count=40, deadline=None))
