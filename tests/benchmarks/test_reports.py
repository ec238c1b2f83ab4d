"""What reports and lists read, with few rows and bounds that are smaller by as much."""

from __future__ import annotations

from pathlib import Path

import pytest
from msgspec.structs import fields

from benchmarks import reports
from benchmarks.databases import Databases, Kind, Scratch
from benchmarks.reports import calls
from benchmarks.reports.data import Known, Size, fill
from benchmarks.rig import Bench
from benchmarks.targets import CSV_MB, ROWS_OF_A_PAGE
from db.database import opened
from db.options import Options
from db.queries import rows, usage
from db.queries.usage import SERIES
from llm_proxy.api.requests import ListRequests
from llm_proxy.api.usage import GetUsage
from tests.databases.kinds import on
from tests.db.queries.factories import NOON

SIZE = Size(requests=8000, tokens=1600, projects=160)
#: Those of the real pages, by 50.
EXAMINED, MAX_ROWS, ENOUGH_ROWS, STEP_ROWS = 400, 800, 400, 80
BOUND = 1000


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pages of a fiftieth."""
    monkeypatch.setattr(rows, "EXAMINED", EXAMINED)
    monkeypatch.setattr(usage, "MAX_ROWS", MAX_ROWS)
    monkeypatch.setattr(usage, "ENOUGH_ROWS", ENOUGH_ROWS)
    monkeypatch.setattr(usage, "_STEP_ROWS", STEP_ROWS)


@pytest.mark.usefixtures("small")
def test_each_filter_and_grouping_reads_few_rows_by_an_index(migrated_database: Scratch) -> None:
    known = fill(migrated_database, SIZE)
    found = calls.ask(migrated_database, known, calls.cases(known))
    assert {answer.case.title: answer.reads.scanned for answer in found if answer.reads.scanned} == {}
    assert {answer.case.title: answer.reads.rows for answer in found if answer.reads.rows > BOUND} == {}
    # A report that has nothing to be split by may need too many rows; it has read no more of them than others.
    refused = {answer.case.name for answer in found if answer.refused}
    assert refused <= {f"usage by {name}" for name in ("nothing", "project", "month", *SERIES, "label.team")}


@on("sqlite")
@pytest.mark.usefixtures("small")
@pytest.mark.parametrize(
    ("index", "title"),
    [
        ("ix_tokens_name_id", "requests: token_id, by name"),
        ("ix_tokens_last4_id", "requests: token_id, last four"),
        ("ix_projects_api_key_last4_id", "requests: project_id, last four"),
    ],
)
def test_a_missing_index_is_found(migrated_database: Scratch, index: str, title: str) -> None:
    known = fill(migrated_database, Size(requests=200, tokens=100, projects=10))
    with opened(migrated_database.target, Options()) as database:
        database.write_now(lambda connection: connection.exec_driver_sql(f"DROP INDEX {index}").close())
    (answer,) = calls.ask(migrated_database, known, [case for case in calls.cases(known) if case.title == title])
    assert answer.reads.scanned


def test_all_parameters_are_asked_for() -> None:
    known = Known("a", "b", "c", "d", "e", "f", "g", middle=NOON, until=NOON)
    asked = {
        (case.path, "label" if name.startswith("label.") else name)
        for case in calls.cases(known)
        for name, _ in case.query
    }
    paging = {"limit", "cursor"}
    for path, query in (("/manage/requests", ListRequests), ("/manage/usage", GetUsage)):
        names = {field.encode_name.partition(".")[0] for field in fields(query)} - paging
        assert {name for where, name in asked if where == path} == names


def test_the_memory_of_a_server_is_read_while_it_sends_csv(tmp_path: Path) -> None:
    databases = Databases()
    bench = Bench(tmp_path, databases, [Kind.SQLITE], 1, 0.01, lambda _: None)
    (chapter,) = reports.run(bench, Size(requests=3000, tokens=200, projects=20))
    databases.close()
    assert chapter.problems == []
    assert [check.bound for check in chapter.checks] == [ROWS_OF_A_PAGE, CSV_MB]
    assert chapter.passed
