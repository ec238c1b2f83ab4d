"""Reports and lists on a database with many rows: what each filter and each grouping reads, and how long it takes."""

from __future__ import annotations

import http.client
import math
import statistics
import time
from collections.abc import Sequence
from urllib.parse import urlsplit

from attrs import frozen

from benchmarks.databases import NAMES, Kind, Scratch
from benchmarks.findings import Chapter, Check, Table, at_most
from benchmarks.proxy import Proxy
from benchmarks.reports.calls import Answer, ask, cases
from benchmarks.reports.data import Size, fill
from benchmarks.reports.reads import INSTRUCTIONS_PER_ROW
from benchmarks.rig import Bench, Rig
from benchmarks.targets import CSV_MB, ROWS_OF_A_PAGE

_MB = 1_000_000
#: Bytes of CSV that are read at once, and the share of the rows after which memory is read for the first time.
_PIECE = 1_000_000
_FIRST = 0.1


@frozen
class Csv:
    """One download of all requests.

    Attributes:
        before, after: resident memory when a tenth has been sent, and the most from then on, in bytes.
    """

    rows: int
    seconds: float
    before: int
    after: int


def run(bench: Bench, size: Size | None = None) -> list[Chapter]:
    """Measure on each database. Raises ProcessFailed."""
    if size is None:
        size = Size(bench.scaled(1_000_000, 20_000), bench.scaled(100_000, 2000), bench.scaled(10_000, 200))
    answers: dict[Kind, list[Answer]] = {}
    downloads: dict[Kind, Csv] = {}
    for kind in bench.kinds:
        with Rig(bench, "reports") as rig:
            bench.say(f"reports: {NAMES[kind]}: filling in {size.tokens:,} tokens and {size.requests:,} requests")
            scratch = rig.stack.enter_context(bench.databases.migrated(kind))
            known = fill(scratch, size)
            bench.say(f"reports: {NAMES[kind]}: asking")
            answers[kind] = ask(scratch, known, cases(known))
            bench.say(f"reports: {NAMES[kind]}: all requests as CSV")
            downloads[kind] = _download(rig, scratch, size.requests)
    return [_tell(size, answers, downloads)]


def _download(rig: Rig, scratch: Scratch, expected: int) -> Csv:
    """Download all requests from a server, and read its memory meanwhile."""
    folder = rig.directory / scratch.kind
    folder.mkdir(parents=True, exist_ok=True)
    with Proxy.start(rig.start_upstream().url, folder, scratch.env) as proxy:
        connection = http.client.HTTPConnection(urlsplit(proxy.url).netloc, timeout=60)
        headers = {"Authorization": f"Bearer {proxy.env['MANAGEMENT_TOKEN']}", "Accept": "text/csv"}
        began = time.monotonic()
        connection.request("GET", "/manage/requests", headers=headers)
        response = connection.getresponse()
        rows, before, after = -1, 0, 0
        while piece := response.read(_PIECE):
            rows += piece.count(b"\n")
            resident = proxy.process.resident_bytes()
            if not before and rows >= expected * _FIRST:
                before = resident
            after = max(after, resident if before else 0)
        connection.close()
        return Csv(rows, time.monotonic() - began, before, after)


def _tell(size: Size, answers: dict[Kind, list[Answer]], downloads: dict[Kind, Csv]) -> Chapter:
    problems: list[str] = []
    checks: list[Check] = []
    for kind, found in answers.items():
        name = NAMES[kind]
        most = max(answer.reads.rows for answer in found)
        checks.append(at_most(f"Rows that a page of a report or list reads, {name}", most, ROWS_OF_A_PAGE, "rows"))
        problems += [
            f"{name}: {answer.case.title} reads all rows of {', '.join(sorted(answer.reads.scanned))}"
            for answer in found
            if answer.reads.scanned
        ]
        problems += [f"{name}: {answer.case.title}: {answer.refused}" for answer in found if answer.refused]
        csv = downloads[kind]
        grown = (csv.after - csv.before) / _MB
        checks.append(
            at_most(f"Growth of memory while {csv.rows:,} requests are sent as CSV, {name}", grown, CSV_MB, "MB")
        )
        if csv.rows != size.requests:
            problems.append(f"{name}: the CSV of all requests has {csv.rows:,} rows of {size.requests:,}")
    return Chapter(
        title="Reports and lists",
        method=(
            f"{size.requests:,} requests of 30 days, of {size.tokens:,} tokens in {size.projects:,} projects; a "
            "quarter is of one project. Their hourly sums are there, and the daily sums of all days that have ended. "
            "Each call of the management API is answered for two pages of 50 entries, and what was asked of the "
            "database is run again to see what it reads; the page that reads most counts. Usage is grouped by each "
            "dimension, without a filter and with each of those for project, token, model, provider, label, 90 days "
            "and 6 hours, and the one that reads most counts. Rows are those that PostgreSQL, MySQL and MariaDB "
            "report when they analyze the statements. The handlers of the latter two count more: a row that goes "
            "through a temporary table counts each time. SQLite does not count rows: the number is that of the "
            f"instructions of its virtual machine over {INSTRUCTIONS_PER_ROW}, about what a row of sums costs; a row "
            "of a list costs less. A plan that reads a table without an index is a problem. Times are of the whole "
            "call, the first time; they depend on the machine, and have no target. For CSV, a server sends all "
            "requests, and its memory is read after each MB: the growth is from the first tenth of the rows on."
        ),
        tables=[
            Table(
                [
                    "database",
                    "pages",
                    "most rows read",
                    "handler reads",
                    "median ms",
                    "slowest ms",
                    "CSV rows/s",
                    "CSV memory MB",
                    "then MB",
                ],
                [
                    [
                        *(NAMES[kind], sum(answer.pages for answer in found)),
                        max(answer.reads.rows for answer in found),
                        max(answer.reads.handler for answer in found) or math.nan,
                        statistics.median(answer.ms for answer in found),
                        max(answer.ms for answer in found),
                        *(downloads[kind].rows / downloads[kind].seconds, downloads[kind].before / _MB),
                        downloads[kind].after / _MB,
                    ]
                    for kind, found in answers.items()
                ],
            ),
            Table(
                ["database", "asked for", "rows read", "ms"],
                [[NAMES[kind], *row] for kind, found in answers.items() for row in _rows(found)],
            ),
        ],
        checks=checks,
        problems=problems,
        raw={
            kind.value: [[answer.case.title, answer.reads.rows, answer.ms] for answer in found]
            for kind, found in answers.items()
        },
    )


def _rows(found: Sequence[Answer]) -> list[list[str | float]]:
    """The answers of each name: the most rows, and the slowest."""
    names = dict.fromkeys(answer.case.name for answer in found)
    alike = {name: [answer for answer in found if answer.case.name == name] for name in names}
    return [
        [name, max(answer.reads.rows for answer in those), max(answer.ms for answer in those)]
        for name, those in alike.items()
    ]
