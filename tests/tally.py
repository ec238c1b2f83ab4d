"""Says at the end of a test run how much was tested on each database, and loudly what was not."""

from __future__ import annotations

from collections import Counter
from collections.abc import Generator, Iterator
from typing import Any

import pytest
from attrs import Factory, define

from tests.databases.fixtures import DATABASES
from tests.databases.kinds import Kind

#: Outcomes, the better before the worse: a test whose clean-up fails has failed, whatever it said before.
_OUTCOMES = ("passed", "skipped", "failed")
#: The name under which a test's report carries the databases that it ran on.
_PROPERTY = "database"


@define(eq=False)
class DatabaseCounts:
    """Counts tests per database; a test that is about two of them counts for both."""

    _outcomes: dict[str, str] = Factory(dict)
    _kinds: dict[str, set[Kind]] = Factory(dict)
    _reasons: dict[Kind, str] = Factory(dict)
    _servers: dict[Kind, str] = Factory(dict)

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        """Note on each test which databases its parameters name; reports carry it to the process that counts."""
        for item in items:
            item.user_properties += [(_PROPERTY, kind.value) for kind in kinds_of(item)]

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Take the worst of a test's phases; a set-up or clean-up that went well says nothing yet."""
        kinds = {Kind(str(value)) for name, value in report.user_properties if name == _PROPERTY}
        if not kinds or (report.when != "call" and report.outcome == "passed"):
            return
        known = self._outcomes.get(report.nodeid, "passed")
        self._outcomes[report.nodeid] = max(known, report.outcome, key=_OUTCOMES.index)
        self._kinds[report.nodeid] = kinds
        if report.outcome == "skipped" and isinstance(report.longrepr, tuple):
            for kind in kinds:
                self._reasons.setdefault(kind, str(report.longrepr[2]).removeprefix("Skipped: "))

    def counts(self) -> dict[Kind, Counter[str]]:
        """Tests per database and outcome."""
        counts: dict[Kind, Counter[str]] = {kind: Counter() for kind in Kind}
        for test, outcome in self._outcomes.items():
            for kind in self._kinds[test]:
                counts[kind][outcome] += 1
        return counts

    def lines(self, servers: dict[Kind, str]) -> Iterator[str]:
        """The table, and a line for each database that nothing ran on."""
        counts = self.counts()
        yield f"{'database':<10}{'passed':>8}{'failed':>8}{'skipped':>9}  server"
        for kind, of in counts.items():
            numbers = f"{of['passed']:>8}{of['failed']:>8}{of['skipped']:>9}"
            yield f"{kind:<10}{numbers}  {servers.get(kind, '')}".rstrip()
        for kind, of in counts.items():
            if not of["passed"] and not of["failed"]:
                yield f"NOT TESTED ON {kind.upper()}: {self._reasons.get(kind, 'no test for it was selected')}"

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        """Take note of the servers; where several processes run the tests, tell them to the one that counts."""
        databases = session.config.stash.get(DATABASES, None)
        if databases is not None:
            self._servers |= databases.describe()
        if hasattr(session.config, "workeroutput"):
            session.config.workeroutput[_PROPERTY] = {kind.value: server for kind, server in self._servers.items()}

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node: Any) -> None:
        """Hear of the servers that a process had."""
        told = getattr(node, "workeroutput", {}).get(_PROPERTY, {})
        self._servers |= {Kind(name): server for name, server in told.items()}

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> Generator[None]:
        """Print it after everything but pytest's own closing line, if any database test ran."""
        yield
        if not self._outcomes:
            return
        terminalreporter.section("tests per database")
        for line in self.lines(self._servers):
            terminalreporter.write_line(line, red=line.startswith("NOT TESTED"))


def kinds_of(item: pytest.Item) -> list[Kind]:
    """The databases among a test's parameters, each once."""
    callspec = getattr(item, "callspec", None)
    parameters = {} if callspec is None else callspec.params
    return list(dict.fromkeys(value for value in parameters.values() if isinstance(value, Kind)))


def pytest_configure(config: pytest.Config) -> None:
    """Start counting."""
    config.pluginmanager.register(DatabaseCounts(), "tally-of-databases")
