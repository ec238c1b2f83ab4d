from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest
from sqlalchemy import Connection

from db import migrate
from db.database import opened
from db.dsn import Target
from db.options import Options
from db.queries import ledger, limits, objects, projects, tokens
from db.records import Limit, ProviderObject, SettledRequest
from db.schema import requests
from llm_proxy.cli.commands.manage.usage import _dollars
from llm_proxy.identifiers import new_id
from tests.cli.conftest import Run
from tests.db.queries.factories import NOON, a_limit, a_project, a_settled_request, a_token
from tests.harness.server import MANAGEMENT_TOKEN, Server, running_server

NOW = datetime.now(UTC)


def fill(connection: Connection) -> None:
    for name, cost in (("alpha", 2_500_000_000), ("beta", 500_000), ("gamma", None)):
        project = a_project(name=name, api_key="plain:sk-key-cdef")
        token = a_token(project.id, name="\u001b[1m" if name == "alpha" else "")
        projects.create(connection, project)
        tokens.create(connection, token)
        rows = [
            a_settled_request(
                token,
                model="gpt-5",
                requested_model="gpt-5",
                admitted_at=NOW - timedelta(days=day),
                cost_nanousd=cost,
                duration_us=75_000,
                input_tokens=1_234_567,
                usage_details={"web_searches": 2} if name == "alpha" else None,
                labels={"team": name, "env": "prod"},
                summed_labels={"team": name},
            )
            for day in (1, 2)
        ]
        ledger.roll_up(connection, rows)
        connection.execute(requests.insert(), [row.by_column() for row in rows])
        if name == "beta":
            whose = (project.id, token.id, "00000000-0000-7000-8000-000000000001", NOON, "")
            objects.record(connection, [ProviderObject("openai", "resp_1", "background_response", *whose)])


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server on SQLite with the sums of three projects."""
    path = tmp_path_factory.mktemp("usage") / "proxy.db"
    with opened(Target("sqlite", path=path), Options()) as database:
        migrate.up(database)
        database.write_now(fill)
    with running_server(
        {"DATABASE_PATH": str(path), "ALLOW_PLAINTEXT_API_KEYS": "true", "LABEL_KEYS": "team"}
    ) as server:
        yield server


@pytest.fixture
def manage(run: Run, server: Server) -> Run:
    """Run `llm-proxy manage` against the server."""

    def invoke(*arguments: str, **options: Any) -> Any:
        where = ("--manage-api-base-url", server.url, "--management-token", MANAGEMENT_TOKEN)
        return run("manage", *arguments, *where, **options)

    return invoke


@pytest.fixture
def usage(manage: Run) -> Run:
    """Run `llm-proxy manage usage` against the server."""
    return lambda *arguments: manage("usage", *arguments)


def test_groups_are_sorted_by_cost_with_bars_and_a_total(usage: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    assert usage().stdout.splitlines() == [
        "PROJECT  MODEL  REQUESTS      INPUT  OUTPUT  UNPRICED       COST  P50 MS  P95 MS",
        "alpha    gpt-5         2  2,469,134       8         0      $5.00      75      98  " + "█" * 20,
        "beta     gpt-5         2  2,469,134       8         0  $0.001000      75      98",
        "gamma    gpt-5         2  2,469,134       8         2          -      75      98",
        "total                  6  7,407,402      24         2      $5.00",
    ]


@pytest.mark.parametrize(("columns", "bar"), [(95, 13), (86, 4), (85, 0), (40, 0)])
def test_bars_take_the_rest_of_the_terminal(
    usage: Run, monkeypatch: pytest.MonkeyPatch, columns: int, bar: int
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    assert usage().stdout.count("█") == bar


def test_without_costs_the_bars_show_requests(usage: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    (title, row) = usage("--group-by", "label.team", "--label", "team=gamma").stdout.splitlines()
    assert title.split()[0] == "LABEL.TEAM"
    assert row.split()[0] == "gamma"
    assert row.endswith("█" * 20)


@pytest.mark.parametrize(
    ("cost", "unpriced", "shown"),
    [
        ("1234.5", 0, "$1,234.50"),
        ("0", 0, "$0.00"),
        ("0", 1, "-"),
        ("0.0125", 1, "$0.012500"),
        ("0.000001", 0, "$0.000001"),
        ("0.0000004", 0, "$0.000000400"),
    ],
)
def test_costs_have_as_many_digits_as_they_need(cost: str, unpriced: int, shown: str) -> None:
    assert _dollars(Decimal(cost), unpriced) == shown


def test_groups_of_a_time_stay_in_its_order(usage: Run) -> None:
    rows = usage("--group-by", "day", "--project-id", "beta").stdout.splitlines()
    days = [f"{NOW - timedelta(days=day):%Y-%m-%d}" for day in (2, 1)]
    assert [row.split()[0] for row in rows] == ["DAY", *days, "total"]


def test_a_name_cannot_control_the_terminal_and_a_missing_one_is_the_id(usage: Run) -> None:
    rows = usage("--group-by", "token").stdout.splitlines()
    assert rows[1].split()[0] == "\\x1b[1m"
    assert len(rows[2].split()[0]) == 36


def test_json_and_csv_have_all_fields(usage: Run) -> None:
    found = json.loads(usage("--group-by", "project", "--json").stdout)
    assert sorted(one["cost"] for one in found) == ["0.000000000", "0.001000000", "5.000000000"]
    rows = list(csv.DictReader(io.StringIO(usage("--group-by", "project", "--limit", "1", "--csv").stdout)))
    assert sorted(row["project"] for row in rows) == ["alpha", "beta", "gamma"]
    assert set(rows[0]) == set(found[0])
    assert [(row["web_searches"], row["output_image_tokens"]) for row in rows if row["project"] == "alpha"] == [
        ("4", "0")
    ]
    assert sorted(one["web_searches"] for one in found) == [0, 0, 4]


def test_no_requests_are_said_so(usage: Run) -> None:
    assert usage("--to", "2020-01-01", "--from", "2019-01-01").stdout == "No requests in this time.\n"
    assert usage("--model", "gpt-*").stdout == "No requests in this time match.\n"
    assert usage("--label", "team=nobody").stdout == "No requests in this time match.\n"


GROUPS = (
    "--group-by must be a list of hour, day, month, project, token, provider, model, requested_model and label.KEY,"
    " each at most once, separated by commas"
)


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (
            ("--limit", "1", "--to", "2100-01-01", "--from", "2020-01-01"),
            0,
            "warning: there are more groups; these are",
        ),
        (("--csv", "--json"), 2, "error: only one of --csv and --json can be given\n"),
        (("--label", "team"), 2, "error: --label 'team' is not KEY=VALUE, such as team=search"),
        (("--label", "a=1", "--label", "a=2"), 2, "error: the label 'a' is given more than once"),
        (("--group-by", "cost"), 1, "error: --group-by must be a list of hour, day, month, project, token"),
        (("--group-by", "modle"), 1, f'error: {GROUPS}: "modle" is not one of them; did you mean model?\n'),
        (("--group-by", "team"), 1, f'error: {GROUPS}: "team" is not one of them; did you mean label.team?\n'),
        (("--project-id", "delta"), 1, "error: "),
    ],
)
def test_what_cannot_be_shown_is_said(usage: Run, options: tuple[str, ...], code: int, message: str) -> None:
    result = usage(*options)
    assert (result.exit_code, result.stderr[: len(message)]) == (code, message)


def test_a_long_report_by_a_label_that_is_not_summed_is_refused(usage: Run) -> None:
    result = usage("--group-by", "label.env")
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr.startswith("error: --from (")
    assert "because the sums do not distinguish the label 'env' (LABEL_KEYS: team)" in result.stderr


def test_requests_are_listed_by_filter(manage: Run) -> None:
    title, *rows = manage("request", "list", "--project-id", "beta").stdout.splitlines()
    assert title.split() == ["TIME", "ID", "OUTCOME", "STATUS", "MODEL", "INPUT", "OUTPUT", "COST", "MS", "TOKEN", "ID"]
    (token_id,) = {
        one["token_id"] for one in json.loads(manage("request", "list", "--project-id", "beta", "--json").stdout)
    }
    assert [row.split()[-1] for row in rows] == [token_id] * 2
    assert [row.split()[-7:-1] for row in rows] == [["200", "gpt-5", "1234567", "4", "0.000500000", "75.0"]] * 2
    assert [row.split()[-3] for row in manage("request", "list", "--project-id", "gamma").stdout.splitlines()] == [
        *("MS", "-", "-")
    ]
    shown = manage("request", "get", rows[0].split()[2]).stdout.splitlines()
    assert shown[0].startswith("id ")
    assert ["labels", "env=prod,", "team=beta"] in [line.split() for line in shown]
    assert ["usage_details", "-"] in [line.split() for line in shown]
    first = json.loads(manage("request", "list", "--status", "200", "--limit", "1", "--json").stdout)
    assert len(first) == 1
    assert manage("request", "list", "--limit", "1").stderr.startswith("warning: there are more requests; these are")
    filters = ("--model", "gpt-5", "--outcome", "ok", "--from", "2020-01-01", "--to", "2100-01-01T00:00:00Z")
    printed = manage("request", "list", *filters, "--limit", "1", "--csv").stdout
    assert len(list(csv.DictReader(io.StringIO(printed)))) == 6
    assert manage("request", "list", "--label", "team=delta", "--json").stdout == "[]\n"


@pytest.fixture(scope="module")
def dead(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Server, list[SettledRequest], Limit]]:
    """A server with three requests of a worker that died, one of another such worker, and their budget."""
    project = a_project(name="alpha", api_key="plain:sk-key-cdef")
    token = a_token(project.id)
    limit = a_limit(
        scope="project", subject=project.id, metric="cost", amount=10**9, created_at=NOW - timedelta(days=1)
    )
    worker, key = new_id(), limits.counter_id(limit.id, None)
    rows = [
        a_settled_request(
            *(token,),
            outcome="unknown",
            status=None,
            worker_id=owner,
            admitted_at=NOW,
            cost_nanousd=None,
            input_tokens=None,
            output_tokens=None,
            limits={key: 7},
        )
        for owner in (worker, worker, worker, new_id())
    ]

    def write(connection: Connection) -> None:
        projects.create(connection, project)
        tokens.create(connection, token)
        limits.create(connection, limit)
        ledger.add_to_counters(connection, {token.id: len(rows)}, None)
        ledger.roll_up(connection, rows)
        connection.execute(requests.insert(), [row.by_column() for row in rows])
        limits.settle(connection, rows)

    path = tmp_path_factory.mktemp("dead") / "proxy.db"
    with opened(Target("sqlite", path=path), Options()) as database:
        migrate.up(database)
        database.write_now(write)
    with running_server({"DATABASE_PATH": str(path), "ALLOW_PLAINTEXT_API_KEYS": "true"}) as server:
        yield server, rows, limit


def test_requests_of_a_dead_worker_are_resolved(run: Run, dead: tuple[Server, list[SettledRequest], Limit]) -> None:
    server, rows, limit = dead
    where = ("--manage-api-base-url", server.url, "--management-token", MANAGEMENT_TOKEN)
    first, second, third, other = (row.id for row in rows)

    def resolve(*arguments: str) -> list[list[str]]:
        result = run("manage", "request", "resolve", *arguments, *where)
        assert (result.exit_code, result.stderr) == (0, "")
        return sorted(line.split() for line in result.stdout.splitlines()[1:])

    def used() -> tuple[str, str]:
        found = server.call("GET", f"/manage/limits/{limit.id}", token=MANAGEMENT_TOKEN).content
        return found["used"], found["unknown"]

    assert used() == ("0.000000028", "0.000000028")
    for _ in range(2):
        assert resolve(first, "--cost", "0.12") == [[first, "unknown", "0.120000000"]]
        assert used() == ("0.120000021", "0.000000021")
    # The one that was resolved by its id keeps its cost.
    worker = rows[0].reservation.worker_id
    for how, shown in ((("--void",), "void"), (("--cost", "1"), "a cost of 1 USD each")):
        question = f"Resolve 2 requests of the worker {worker!r} as {shown}? It cannot be undone."
        asked = run("manage", "request", "resolve", "--worker", worker, *how, *where)
        assert (asked.exit_code, asked.stdout) == (2, "")
        assert asked.stderr == f"error: this needs confirmation ({question}); run it with --yes\n"
    assert used() == ("0.120000021", "0.000000021")
    assert resolve("--worker", worker, "--void", "--yes") == sorted([one, "void", "-"] for one in (second, third))
    assert resolve("--worker", worker, "--void") == []
    assert used() == ("0.120000007", "0.000000007")
    assert resolve(other, "--void") == [[other, "void", "-"]]
    assert used() == ("0.120000000", "0.000000000")
    audited = server.call("GET", "/manage/audit", token=MANAGEMENT_TOKEN).content["data"]
    assert sorted(one["resource_id"] for one in audited if one["operation"] == "resolveRequest") == sorted(
        [first, first, second, third, other]
    )
    verified = run("ledger", "verify", env={"DATABASE_PATH": server.settings["DATABASE_PATH"]})
    assert (verified.exit_code, verified.stderr) == (0, ""), verified.stdout


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("--void",), 2, "error: give either ID or --worker"),
        (("x", "--worker", "w", "--void"), 2, "error: give either ID or --worker"),
        (("x",), 2, "error: give either --cost or --void"),
        (("x", "--void", "--cost", "1"), 2, "error: give either --cost or --void"),
        (("--worker", "nobody", "--void"), 1, "error: no request of the worker 'nobody' has the outcome 'unknown'"),
        (("nothing", "--void"), 1, "error: There is no such request"),
        (("{id}", "--cost", "-1"), 1, "error: --cost must be USD from 0 to 1000000"),
    ],
)
def test_what_cannot_be_resolved_is_said(
    run: Run, dead: tuple[Server, list[SettledRequest], Limit], arguments: tuple[str, ...], code: int, message: str
) -> None:
    server, rows, _ = dead
    where = ("--manage-api-base-url", server.url, "--management-token", MANAGEMENT_TOKEN)
    given = [argument.format(id=rows[0].id) for argument in arguments]
    result = run("manage", "request", "resolve", *given, *where)
    assert (result.exit_code, result.stderr[: len(message)]) == (code, message)


def test_objects_whose_usage_is_not_known_are_listed(usage: Run) -> None:
    title, line = usage("--unbooked").stdout.splitlines()
    assert title.split() == ["OBJECT", "KIND", "PROVIDER", "PROJECT", "ID", "TOKEN", "ID", "SINCE", "LOST"]
    assert line.split()[:3] == ["resp_1", "background_response", "openai"]
    assert line.split()[-1] in ("yes", "no")
    (one,) = json.loads(usage("--unbooked", "--json", "--project-id", "beta").stdout)
    assert one["object_id"] == "resp_1"
    assert usage("--unbooked", "--project-id", "alpha").stdout == "The usage of all objects is known.\n"
    header, row = csv.reader(io.StringIO(usage("--unbooked", "--csv").stdout))
    assert dict(zip(header, row, strict=True))["object_id"] == "resp_1"
