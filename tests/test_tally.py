from __future__ import annotations

from typing import Literal

import pytest

from tests.databases.kinds import Kind
from tests.tally import DatabaseCounts

Outcome = Literal["passed", "failed", "skipped"]
Phase = Literal["setup", "call", "teardown"]


def report(test: str, when: Phase, outcome: Outcome, *kinds: Kind, words: str = "") -> pytest.TestReport:
    return pytest.TestReport(
        nodeid=test,
        location=(test, 1, test),
        keywords={},
        outcome=outcome,
        longrepr=(test, 1, f"Skipped: {words}") if outcome == "skipped" else None,
        when=when,
        user_properties=[("database", kind.value) for kind in kinds],
    )


def tally_of(*reports: pytest.TestReport) -> DatabaseCounts:
    tally = DatabaseCounts()
    for each in reports:
        tally.pytest_runtest_logreport(each)
    return tally


def test_a_test_counts_once() -> None:
    phases: tuple[Phase, ...] = ("setup", "call", "teardown")
    tally = tally_of(*(report("a", phase, "passed", Kind.MYSQL) for phase in phases))
    assert tally.counts()[Kind.MYSQL] == {"passed": 1}


def test_a_failing_clean_up_spoils_a_test_that_passed() -> None:
    tally = tally_of(report("a", "call", "passed", Kind.MYSQL), report("a", "teardown", "failed", Kind.MYSQL))
    assert tally.counts()[Kind.MYSQL] == {"failed": 1}


def test_a_test_about_two_databases_counts_for_both() -> None:
    counts = tally_of(report("a", "call", "passed", Kind.SQLITE, Kind.POSTGRES)).counts()
    assert (counts[Kind.SQLITE], counts[Kind.POSTGRES], counts[Kind.MARIADB]) == ({"passed": 1}, {"passed": 1}, {})


def test_an_untested_database_is_named_with_the_reason() -> None:
    tally = tally_of(
        report("a", "call", "passed", Kind.SQLITE),
        report("b", "setup", "skipped", Kind.MYSQL, words="no mysql server: set TEST_MYSQL_URL"),
    )
    lines = list(tally.lines({Kind.SQLITE: "a file"}))
    assert lines[1] == "sqlite           1       0        0  a file"
    assert lines[3] == "mysql            0       0        1"
    assert lines[5:] == [
        "NOT TESTED ON POSTGRES: no test for it was selected",
        "NOT TESTED ON MYSQL: no mysql server: set TEST_MYSQL_URL",
        "NOT TESTED ON MARIADB: no test for it was selected",
    ]
