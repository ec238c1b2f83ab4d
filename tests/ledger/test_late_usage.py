"""Late usage is booked once, to the token that made the object, whatever sees it and however often."""

from __future__ import annotations

import tempfile
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from attrs import define, field
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from sqlalchemy import func, select

from db import dsn
from db.database import Database, opened
from db.options import Options
from db.queries import counters, objects, projects, pruning, tokens
from db.queries import ledger as queries
from db.queries.counters import CounterProof
from db.queries.repair import repair
from db.records import Metric, Reservation, Result, SettledRequest, Token
from db.schema import limit_counters, metadata, provider_objects, requests, usage_hourly
from llm_proxy.identifiers import new_id, request_id
from llm_proxy.ledger import AdmissionRequest, Grant, ObjectUsage, Settlement, book_late
from llm_proxy.ledger.late import AWAITED
from llm_proxy.ledger.transaction import records_of, transact
from llm_proxy.limits import started_at
from tests.db.queries.factories import a_project, a_token, to_default
from tests.ledger.test_limits import FixedDemand, apply, limited

WORKER = new_id()
USED = 500
OK = Result(outcome="ok", status=200, requested_model="")
USAGE: dict[str, Any] = {
    "input_tokens": USED,
    "output_tokens": 7,
    "usage_details": {"web_searches": 3},
    "cost_nanousd": 11,
}
WITH_USAGE = Result(outcome="ok", status=200, model="m-1", requested_model="m", **USAGE)
LATE = Result(outcome="ok", status=200, model="m-1", kind="late", **USAGE)


def admit(database: Database, token: Token, path: str = "/v1/responses/x") -> Grant:
    request = AdmissionRequest(request_id(), token.digest, to_default, "GET", path, lambda _name: None)
    (decision,) = database.write_now(transact, WORKER, [request], [], datetime.now(UTC))
    assert isinstance(decision, Grant)
    return decision


def write(database: Database, *settlements: Settlement, doubtful: bool = False) -> None:
    work = partial(transact, doubtful=doubtful)
    try:
        database.write_now(work, WORKER, [], settlements, datetime.now(UTC))
    except queries.ReservationsMissing:
        database.write_now(partial(work, doubtful=True), WORKER, [], settlements, datetime.now(UTC))


def seen(grant: Grant, object_id: str) -> Settlement:
    """A request that has seen the usage of an object."""
    return Settlement.of(grant, OK, (), ObjectUsage(object_id, request_id(), LATE))


def poll(database: Database, grant: Grant, object_id: str, late: Result | None = LATE) -> list[SettledRequest]:
    """The proxy itself has seen the final state of an object, which this request has made."""
    made = grant.reservation
    path, now = f"/v1/responses/{object_id}", datetime.now(UTC)
    whose = Reservation(request_id(), WORKER, made.token_id, made.project_id, made.provider, "GET", path, now)
    usage = ObjectUsage(object_id, made.id if late is None else whose.id, late)
    return database.write_now(book_late, SettledRequest(whose, late or OK, now), usage)


def rows(database: Database) -> list[Any]:
    query = select(requests).order_by(requests.c.id)
    return list(database.read_now(lambda connection: connection.execute(query).all()))


def late_rows(database: Database) -> list[Any]:
    return [row for row in rows(database) if row.kind == "late"]


def sums(database: Database) -> list[tuple[str, int, int, int]]:
    found = usage_hourly.c
    query = select(found.token_id, found.requests, found.input_tokens, found.cost_nanousd)
    return [tuple(row) for row in database.read_now(lambda connection: connection.execute(query).all())]


def web_searches(database: Database) -> int:
    query = select(func.sum(usage_hourly.c.web_searches))
    return int(database.read_now(lambda connection: connection.scalar(query)) or 0)


def usage_id(database: Database, object_id: str) -> str | None:
    query = select(provider_objects.c.usage_id).where(provider_objects.c.object_id == object_id)
    found: str | None = database.read_now(lambda connection: connection.scalar(query))
    return found


@define
class Team:
    """A project with two tokens."""

    database: Database
    first: Token
    second: Token

    def post(self, object_id: str = "resp_1", kind: str = "background_response", result: Result = OK) -> Grant:
        grant = admit(self.database, self.first)
        write(self.database, Settlement.of(grant, result, ((object_id, kind),)))
        return grant


@pytest.fixture
def team(database: Database) -> Team:
    project = a_project()
    first, second = a_token(project.id), a_token(project.id)
    database.write_now(projects.create, project)
    for token in (first, second):
        database.write_now(tokens.create, token)
    return Team(database, first, second)


def test_the_output_of_a_batch_is_known_from_a_request_that_is_not_settled_yet(team: Team) -> None:
    team.post("batch_1", "batch")
    shows, reads = (
        admit(team.database, team.first, f"/v1/{path}") for path in ("batches/batch_1", "files/f-9/content")
    )
    write(team.database, Settlement.of(shows, OK, (("f-9", "batch_output"),)), seen(reads, "f-9"))
    assert [row.id for row in late_rows(team.database)] == [usage_id(team.database, "batch_1")]


def test_usage_that_a_poll_sees_is_a_row_of_the_token_that_made_the_object(team: Team) -> None:
    labels = {"team": "a"}
    asked = Result(outcome="ok", requested_model="m", labels=labels, summed_labels=labels)
    made = team.post(result=asked)
    poll = admit(team.database, team.second)
    write(team.database, seen(poll, "resp_1"))
    (late,) = late_rows(team.database)
    assert (late.token_id, late.project_id, late.origin_id) == (
        team.first.id,
        team.first.project_id,
        made.reservation.id,
    )
    assert (late.method, late.path, late.worker_id) == ("GET", "/v1/responses/x", WORKER)
    assert (late.admitted_at, late.input_tokens, late.cost_nanousd) == (poll.reservation.admitted_at, USED, 11)
    assert (late.requested_model, late.labels, late.summed_labels) == ("m", labels, labels)
    assert usage_id(team.database, "resp_1") == late.id
    found = sums(team.database)
    assert sum(count for token, count, *_ in found if token == team.first.id) == 1
    assert sum(used for token, _, used, _ in found if token == team.first.id) == USED
    assert sum(cost for *_, cost in found) == 11
    assert team.database.read_now(queries.verify) == []


def test_two_polls_in_one_transaction_and_one_after_it_are_booked_once(team: Team) -> None:
    team.post()
    polls = [seen(admit(team.database, token), "resp_1") for token in (team.first, team.second, team.first)]
    write(team.database, *polls[:2])
    write(team.database, polls[2])
    assert len(late_rows(team.database)) == 1


def test_a_settlement_that_is_written_again_adds_no_second_late_row(team: Team) -> None:
    team.post()
    poll = seen(admit(team.database, team.first), "resp_1")
    write(team.database, poll)
    write(team.database, poll, doubtful=True)
    assert len(late_rows(team.database)) == 1
    assert team.database.read_now(queries.verify) == []


def test_a_stream_that_delivers_its_usage_itself_is_booked_in_its_own_row(team: Team) -> None:
    grant = admit(team.database, team.first)
    team.database.write_now(objects.record, records_of(grant.reservation, (("resp_1", "background_response"),)))
    own = Settlement.of(grant, WITH_USAGE, (), ObjectUsage("resp_1", grant.reservation.id))
    write(team.database, own)
    write(team.database, own, doubtful=True)
    write(team.database, seen(admit(team.database, team.second), "resp_1"))
    assert [row.input_tokens for row in rows(team.database)] == [USED, None]
    assert usage_id(team.database, "resp_1") == grant.reservation.id


def test_a_stream_that_ends_after_a_poll_saw_its_usage_is_written_without_it(team: Team) -> None:
    grant = admit(team.database, team.first)
    team.database.write_now(objects.record, records_of(grant.reservation, (("resp_1", "background_response"),)))
    write(team.database, seen(admit(team.database, team.second), "resp_1"))
    write(team.database, Settlement.of(grant, WITH_USAGE, (), ObjectUsage("resp_1", grant.reservation.id)))
    assert [(row.kind, row.input_tokens, row.cost_nanousd) for row in rows(team.database) if row.input_tokens] == [
        ("late", USED, 11)
    ]
    assert sum(used for _, _, used, _ in sums(team.database)) == USED
    assert web_searches(team.database) == 3
    assert team.database.read_now(queries.verify) == []


@pytest.mark.parametrize("kind", ["response", "file", "completion"])
def test_the_usage_of_an_object_that_had_it_at_once_is_not_booked_later(team: Team, kind: str) -> None:
    team.post(kind=kind, result=WITH_USAGE)
    write(team.database, seen(admit(team.database, team.first), "resp_1"))
    assert late_rows(team.database) == []


def test_the_usage_of_an_object_of_another_project_is_not_booked(team: Team) -> None:
    team.post()
    other = a_project()
    stranger = a_token(other.id)
    team.database.write_now(projects.create, other)
    team.database.write_now(tokens.create, stranger)
    write(team.database, seen(admit(team.database, stranger), "resp_1"))
    assert late_rows(team.database) == []
    assert usage_id(team.database, "resp_1") == ""


def test_an_object_that_was_deleted_before_its_usage_was_known_stays(team: Team) -> None:
    team.post()
    team.post("resp_2")
    write(team.database, seen(admit(team.database, team.first), "resp_2"))
    for object_id in ("resp_1", "resp_2"):
        write(team.database, Settlement.of(admit(team.database, team.first), OK, ((object_id, ""),)))
    assert (usage_id(team.database, "resp_1"), usage_id(team.database, "resp_2")) == ("", None)


def test_late_rows_count_as_no_request_in_verify_repair_and_prune(team: Team) -> None:
    team.post()
    write(team.database, seen(admit(team.database, team.first), "resp_1"))
    before = sorted(sums(team.database))
    team.database.write_now(repair, team.first.id)
    assert sorted(sums(team.database)) == before
    assert team.database.read_now(queries.verify) == []
    done, _ = team.database.write_now(pruning.prune, datetime.now(UTC) + timedelta(hours=1), 10)
    assert (done.rows, done.kept) == (3, 0)
    assert team.database.read_now(queries.verify) == []
    assert sorted(sums(team.database)) == before


def test_usage_that_the_proxy_has_asked_for_is_a_row_of_the_token_that_made_the_object(team: Team) -> None:
    labels = {"team": "a"}
    asked = Result(outcome="ok", requested_model="m", labels=labels, summed_labels=labels)
    made = team.post(result=asked)
    limited(team.database, team.first, "project", metric="tokens", period="day", amount=10 * USED)
    (row,) = poll(team.database, made, "resp_1")
    (late,) = late_rows(team.database)
    assert (late.id, late.token_id, late.origin_id, late.method, late.path) == (
        row.id,
        team.first.id,
        made.reservation.id,
        "GET",
        "/v1/responses/resp_1",
    )
    assert (late.requested_model, late.labels, late.summed_labels) == ("m", labels, labels)
    assert (usage_id(team.database, "resp_1"), list(late.limits.values())) == (late.id, [0])
    assert team.database.read_now(queries.verify) == []
    used = team.database.read_now(lambda connection: connection.scalar(select(limit_counters.c.used)))
    assert used == USED + 7


@pytest.mark.parametrize(("named", "used"), [("", USED + 7), ("m-1", USED + 7), ("other", None)])
def test_a_limit_of_models_counts_late_usage_of_a_request_that_named_none(
    team: Team, named: str, used: int | None
) -> None:
    made = team.post(result=Result(outcome="ok", requested_model=named), kind="batch")
    limited(team.database, team.first, metric="tokens", amount=10 * USED, models={"patterns": ["m*"]})
    poll(team.database, made, "resp_1")
    assert team.database.read_now(lambda connection: connection.scalar(select(limit_counters.c.used))) == used


@pytest.mark.parametrize(("metric", "used"), [("input_tokens", 10), ("cost", 1000), ("requests", 1)])
def test_late_usage_that_nobody_counted_is_charged_what_its_request_held(team: Team, metric: Metric, used: int) -> None:
    today = datetime.now(UTC)
    limited(team.database, team.first, "project", metric=metric, period="day", amount=10**6, created_at=today)
    (made,) = team.database.write_now(transact, WORKER, [apply(team.first, FixedDemand())], [], datetime.now(UTC))
    assert isinstance(made, Grant)
    write(team.database, Settlement.of(made, OK, (("resp_1", "background_response"),)))
    poll(team.database, made, "resp_1", Result(outcome="ok", status=200, kind="late", usage_details={}))
    assert team.database.read_now(lambda connection: connection.scalar(select(limit_counters.c.used))) == used
    assert team.database.read_now(counters.prove, started_at) == CounterProof()


def test_the_proxy_and_clients_that_see_the_same_usage_book_it_once(team: Team) -> None:
    made = team.post()
    client = seen(admit(team.database, team.second), "resp_1")
    assert len(poll(team.database, made, "resp_1")) == 1
    write(team.database, client)
    assert poll(team.database, made, "resp_1") == []
    assert len(late_rows(team.database)) == 1
    other = team.post("resp_2")
    write(team.database, seen(admit(team.database, team.second), "resp_2"))
    assert poll(team.database, other, "resp_2") == []
    assert len(late_rows(team.database)) == 2
    assert team.database.read_now(queries.verify) == []


def test_an_object_without_usage_is_not_awaited_after_the_proxy_has_asked(team: Team) -> None:
    made = team.post()
    assert poll(team.database, made, "resp_1", None) == []
    assert (usage_id(team.database, "resp_1"), late_rows(team.database)) == (made.reservation.id, [])


def test_objects_that_are_awaited_come_with_the_path_and_the_model_of_their_request(team: Team) -> None:
    made = team.post("resp_1", result=WITH_USAGE)
    team.post("req_1", "deferred_completion")
    team.post("file-1", "file")
    running = admit(team.database, team.first)
    team.database.write_now(objects.record, records_of(running.reservation, (("resp_2", "background_response"),)))
    since = made.reservation.admitted_at - timedelta(seconds=1)

    def listed(since: datetime, kinds: tuple[str, ...] = ("background_response", "batch")) -> list[tuple[Any, ...]]:
        found = team.database.read_now(objects.list_awaited, kinds, since, 10, None)
        return [(one.object_id, path, model) for one, path, model in found]

    assert listed(since) == [("resp_1", "/v1/responses/x", "m")]
    assert listed(since, ("run",)) == listed(datetime.now(UTC)) == []
    assert team.database.read_now(objects.count_unbooked, since, datetime.now(UTC)) == 3
    assert team.database.read_now(objects.count_unbooked, datetime.now(UTC), datetime.now(UTC)) == 0
    poll(team.database, made, "resp_1")
    assert listed(since) == []


@define
class Made:
    """An object at the provider."""

    grant: Grant
    kind: str
    recorded: bool = False
    #: An answer has shown the file with the results.
    shown: bool = False
    done: bool = False
    #: A settlement with its usage has been written after the object was recorded.
    must_be_booked: bool = False


@define
class Open:
    """A request that runs; `own` if it is the one that makes the object, which it streams."""

    grant: Grant
    object_id: str
    own: bool
    #: What it sees the usage of, if that is not the object itself.
    names: str = ""
    written: list[Settlement] = field(factory=list)


def test_the_output_of_a_batch_is_booked_as_the_usage_of_the_batch(team: Team) -> None:
    team.post("batch_1", "batch")
    show = admit(team.database, team.second, "/v1/batches/batch_1")
    write(team.database, Settlement.of(show, OK, (("file-9", "batch_output"),)))
    for _ in range(2):
        download = admit(team.database, team.second, "/v1/files/file-9/content")
        write(team.database, seen(download, "file-9"))
        (late,) = late_rows(team.database)
        assert (late.token_id, usage_id(team.database, "batch_1")) == (team.first.id, late.id)


class LateUsage(RuleBasedStateMachine):
    """Requests that make objects, poll, cancel, resume and download results, and end in any order.

    Workers die, commits have an unknown fate, and the proxy asks for usage itself.

    Whether a poll, a cancel or a stream shows the usage is no difference here.
    """

    def __init__(self) -> None:
        super().__init__()
        self.stack = ExitStack()
        folder = Path(self.stack.enter_context(tempfile.TemporaryDirectory()))
        target = dsn.parse("sqlite", None, str(folder / "x.db"))
        self.database = self.stack.enter_context(opened(target, Options(sqlite_synchronous="NORMAL")))
        self.database.write_now(metadata.create_all)
        project = a_project()
        self.tokens = [a_token(project.id), a_token(project.id)]
        self.database.write_now(projects.create, project)
        for token in self.tokens:
            self.database.write_now(tokens.create, token)
        self.made: dict[str, Made] = {}
        self.open: list[Open] = []
        self.lost: list[Settlement] = []

    def teardown(self) -> None:
        self.stack.close()

    @rule(token=st.integers(0, 1), at_once=st.booleans(), kind=st.sampled_from(["background_response", "batch"]))
    def make(self, token: int, at_once: bool, kind: str) -> None:
        grant = admit(self.database, self.tokens[token])
        object_id = f"made_{len(self.made)}"
        made = self.made[object_id] = Made(grant, kind)
        if at_once:
            self.database.write_now(objects.record, records_of(grant.reservation, ((object_id, kind),)))
            made.recorded = True
        self.open.append(Open(grant, object_id, own=True))

    @precondition(lambda self: self.made)
    @rule(data=st.data(), token=st.integers(0, 1))
    def ask(self, data: st.DataObject, token: int) -> None:
        object_id = data.draw(st.sampled_from(sorted(self.made)))
        self.open.append(Open(admit(self.database, self.tokens[token]), object_id, own=False))

    @precondition(lambda self: self.made)
    @rule(data=st.data())
    def finish(self, data: st.DataObject) -> None:
        """The provider has generated it."""
        self.made[data.draw(st.sampled_from(sorted(self.made)))].done = True

    @precondition(lambda self: any(one.kind == "batch" for one in self.made.values()))
    @rule(data=st.data(), token=st.integers(0, 1))
    def download(self, data: st.DataObject, token: int) -> None:
        """A client downloads the results of a batch, which somebody has been shown before."""
        batches = sorted(key for key, one in self.made.items() if one.kind == "batch")
        object_id = data.draw(st.sampled_from(batches))
        if not self.made[object_id].shown:
            self.made[object_id].shown = True
            show = admit(self.database, self.tokens[token], f"/v1/batches/{object_id}")
            write(self.database, Settlement.of(show, OK, ((f"file-{object_id}", "batch_output"),)))
        grant = admit(self.database, self.tokens[token], f"/v1/files/file-{object_id}/content")
        self.open.append(Open(grant, object_id, own=False, names=f"file-{object_id}"))

    @precondition(lambda self: self.made)
    @rule(data=st.data())
    def poller_asks(self, data: st.DataObject) -> None:
        object_id = data.draw(st.sampled_from(sorted(self.made)))
        made = self.made[object_id]
        now = datetime.now(UTC)
        found = self.database.read_now(objects.list_awaited, AWAITED, now - timedelta(hours=1), 100, None)
        awaited = {one.object_id for one, _, _ in found}
        if made.done and object_id in awaited:
            assert len(poll(self.database, made.grant, object_id)) == 1
            made.must_be_booked = True
        elif made.done and made.recorded:
            # It was listed before a client or another worker has booked it.
            written = poll(self.database, made.grant, object_id)
            made.must_be_booked |= bool(written)

    @precondition(lambda self: self.open)
    @rule(data=st.data(), sees=st.booleans(), fate=st.sampled_from(["written", "lost", "unsure", "swept"]))
    def end(self, data: st.DataObject, sees: bool, fate: str) -> None:
        """A request ends, and its settlement is written, lost before or after the commit, or comes after a sweep."""
        one = self.open.pop(data.draw(st.integers(0, len(self.open) - 1)))
        made = self.made[one.object_id]
        sees = sees and made.done
        if one.own:
            usage = ObjectUsage(one.object_id, one.grant.reservation.id) if sees else None
            unrecorded = () if made.recorded else ((one.object_id, made.kind),)
            settlement = Settlement.of(one.grant, WITH_USAGE if sees else OK, unrecorded, usage)
        else:
            settlement = seen(one.grant, one.names or one.object_id) if sees else Settlement.of(one.grant, OK)
        if fate == "swept":
            self.database.write_now(queries.sweep, [one.grant.reservation.id], datetime.now(UTC))
        if fate in ("lost", "swept", "unsure"):
            self.lost.append(settlement)
        if fate in ("written", "unsure"):
            write(self.database, settlement)
            self._was_written(settlement, one)

    def _was_written(self, settlement: Settlement, one: Open | None = None) -> None:
        for object_id, _ in settlement.objects:
            self.made[object_id].recorded = True
        if settlement.usage is not None:
            made = self.made[settlement.usage.object_id.removeprefix("file-")]
            made.must_be_booked |= made.recorded or made.grant.reservation.id == settlement.row.id

    @precondition(lambda self: self.lost)
    @rule(data=st.data(), count=st.integers(1, 4), again=st.booleans())
    def replay(self, data: st.DataObject, count: int, again: bool) -> None:
        chosen = [
            self.lost.pop(data.draw(st.integers(0, len(self.lost) - 1))) for _ in range(min(count, len(self.lost)))
        ]
        write(self.database, *chosen, doubtful=True)
        for settlement in chosen:
            self._was_written(settlement)
        if again:
            self.lost += chosen

    @invariant()
    def booked_once(self) -> None:
        found = rows(self.database)
        for object_id, made in self.made.items():
            used = [row for row in found if row.input_tokens and made.grant.reservation.id in (row.id, row.origin_id)]
            assert len(used) <= 1, object_id
            assert used or not made.must_be_booked, object_id
            assert all(row.token_id == made.grant.reservation.token_id for row in used)
        total = sum(row.input_tokens or 0 for row in found)
        assert sum(count for _, _, count, _ in sums(self.database)) == total
        searches = sum(row.usage_details["web_searches"] for row in found if row.usage_details)
        assert web_searches(self.database) == searches == total // USED * 3
        assert self.database.read_now(queries.verify) == []


TestLateUsage = LateUsage.TestCase
TestLateUsage.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
