from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from llm_proxy.cli.commands.manage.limit import columns
from tests.cli.conftest import Run
from tests.harness.server import MANAGEMENT_TOKEN, Server, running_server

API_KEY = "sk-canary-of-the-provider"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with running_server({"DATABASE_PATH": str(tmp_path_factory.mktemp("limits") / "proxy.db")}) as server:
        yield server


@pytest.fixture
def manage(run: Run, server: Server) -> Run:
    """Run `llm-proxy manage` against the server."""

    def invoke(*arguments: str, **options: Any) -> Any:
        where = ("--manage-api-base-url", server.url, "--management-token", MANAGEMENT_TOKEN)
        return run("manage", *arguments, *where, **options)

    return invoke


@pytest.fixture
def project(manage: Run, request: pytest.FixtureRequest) -> str:
    """The name of a project of this test."""
    name = str(request.node.name)
    assert manage("project", "create", "--name", name, "--api-key", API_KEY).exit_code == 0
    return name


def shown(text: str) -> dict[str, str]:
    pairs = (line.split("  ", maxsplit=1) for line in text.splitlines())
    return {name.strip(): value.strip() for name, value in pairs}


def test_a_budget_is_created_listed_changed_and_deleted(manage: Run, project: str) -> None:
    fields = ("--metric", "cost", "--window", "month", "--amount", "50", "--warn-at", "80", "--model", "gpt-5.4*")
    made = manage("limit", "set", "--project-id", project, *fields)
    found = shown(made.stdout)

    assert (made.exit_code, made.stderr) == (0, "")
    assert found["scope"] == f"project {project}"
    assert (found["limit"], found["models"], found["policy"]) == ("$50.00 per month", "gpt-5.4*", "settled")
    assert (found["warn at"], found["used"], found["reserved"]) == ("80 %", "$0.00", "$0.00")
    titles, row = manage("limit", "list", "--project-id", project).stdout.splitlines()
    names = ["ID", "SCOPE", "METRIC", "WINDOW", "MODELS", "USED", "RESERVED", "AMOUNT", "WARN", "AT", "RESETS"]
    assert titles.split() == names
    assert row.split()[:4] == [found["id"], "project", project, "cost"]
    assert row.split()[4:9] == ["month", "gpt-5.4*", "$0.00", "$0.00", "$50.00"]

    changed = manage("limit", "update", found["id"], "--amount", "1234.5", "--warn-at", "never", "--unpriced", "allow")
    assert shown(changed.stdout)["limit"] == "$1,234.50 per month"
    assert (shown(changed.stdout)["warn at"], shown(changed.stdout)["unpriced"]) == ("-", "allow")
    assert manage("limit", "delete", found["id"], "--yes").stdout == f"Limit {found['id']} is deleted.\n"
    assert json.loads(manage("limit", "list", "--project-id", project, "--json").stdout) == []
    assert "amount: 1234500000000" in manage("audit", "--operation", "deleteLimit", "--resource-id", found["id"]).stdout


def test_a_limit_is_deleted_only_after_confirmation(manage: Run, project: str) -> None:
    made = manage("limit", "set", "--project-id", project, "--metric", "concurrency", "--amount", "4", "--wait", "5s")
    identity = shown(made.stdout)["id"]

    refused = manage("limit", "delete", identity)

    assert (refused.exit_code, refused.stdout) == (2, "")
    assert refused.stderr == (
        f"error: this needs confirmation (Delete the limit of 4 concurrent requests of project {project}?); run it with"
        " --yes\n"
    )
    assert len(json.loads(manage("limit", "list", "--project-id", project, "--json").stdout)) == 1


def test_a_limit_without_a_token_and_a_project_is_of_the_whole_proxy(manage: Run) -> None:
    made = manage("limit", "set", "--metric", "requests", "--window", "hour", "--amount", "1000000")

    assert (shown(made.stdout)["scope"], shown(made.stdout)["limit"]) == ("proxy", "1000000 requests per hour")
    assert manage("limit", "delete", shown(made.stdout)["id"], "--yes").exit_code == 0


def test_a_token_is_generated_with_limits(manage: Run, project: str) -> None:
    flags = ("--budget", "50/month", "--budget", "2.50/day", "--rpm", "60", "--tpm", "100000", "--concurrency", "4")
    made = manage("token", "generate", "--project-id", project, "--name", "limited", *flags)

    assert made.exit_code == 0
    assert shown(made.stdout)["limits"] == (
        "$50.00 per month, $2.50 per day, 60 requests per minute, 100000 tokens per minute, 4 concurrent requests"
    )
    of_the_token = manage("token", "get", "limited")
    assert shown(of_the_token.stdout)["limits"] == shown(made.stdout)["limits"]
    listed = manage("limit", "list", "--token-id", "limited").stdout.splitlines()
    assert len(listed) == 6
    assert {" ".join(line.split()[1:3]) for line in listed[1:]} == {"token limited"}
    generated = json.loads(manage("token", "generate", "--project-id", project, "--rpm", "1", "--json").stdout)
    assert [one["token_id"] for one in generated["limits"]] == [generated["id"]]
    assert "limits" not in shown(manage("token", "generate", "--project-id", project).stdout)


def test_a_project_is_created_with_a_budget(manage: Run) -> None:
    made = manage("project", "create", "--name", "with a budget", "--api-key", API_KEY, "--budget", "5")

    assert (made.exit_code, shown(made.stdout)["limits"]) == (0, "$5.00 in total")
    manage("token", "generate", "--project-id", "with a budget", "--rpm", "1")
    assert manage("project", "get", "with a budget").stdout == made.stdout
    (of_the_project,) = json.loads(manage("project", "get", "with a budget", "--json").stdout)["limits"]
    assert of_the_project["amount"] == "5.000000000"


def test_a_token_is_shown_with_what_is_missing_if_a_limit_cannot_be_created(manage: Run, project: str) -> None:
    flags = ("--budget", "1/day", "--budget", "9999999/month", "--rpm", "60")
    made = manage("token", "generate", "--project-id", project, *flags)

    fields = shown(made.stdout)
    assert (made.exit_code, fields["limits"]) == (1, "$1.00 per day")
    assert fields["token"].startswith("sk-")
    assert made.stderr.splitlines()[-1] == (
        f"error: the token {fields['id']} was created, but not its limit of $9,999,999.00 per month; 60 requests per"
        " minute: --amount of cost must be USD from 0 to 9000000, with at most nine digits after the point; create"
        f" what is missing with 'llm-proxy manage limit set --token-id {fields['id']}'"
    )


@pytest.mark.parametrize(
    ("arguments", "line", "code"),
    [
        (
            ("limit", "set", "--metric", "cost", "--amount", "much", "--wait", "2h"),
            (
                '--amount must be a whole number, or for cost USD such as "50.00"; --wait must be a duration from 0s to'
                " 60s, such as 5s; --metric cost needs a --window: total, minute, hour, day, week, month; --wait is"
                " only for --policy reserved and --metric concurrency\n"
            ),
            1,
        ),
        (
            ("limit", "set", "--metric", "concurrency", "--amount", "1.5", "--window", "day"),
            (
                "--metric concurrency takes no --window; --amount of concurrency must be a whole number from 0 to"
                " 9007199254740991\n"
            ),
            1,
        ),
        (
            ("limit", "set", "--metric", "requests", "--window", "day", "--amount", "1", "--project-id", "nowhere"),
            "There is no such project: No project has",
            1,
        ),
        (("limit", "update", "x"), "nothing to change; give --amount, --wait, --warn-at or --unpriced\n", 2),
        (
            ("limit", "update", "x", "--amount", "1"),
            "There is no such limit: No limit has this id: 'x'; 'llm-proxy manage limit list' shows those that exist",
            1,
        ),
        (("limit", "delete", "x", "--yes"), "There is no such limit", 1),
        (
            ("token", "generate", "--project-id", "x", "--budget", "50/year"),
            "Invalid value for '--budget': '50/year' is not a budget; give USD and a period, such as 50/month",
            2,
        ),
        (
            ("project", "create", "--name", "x", "--budget", "1e3/day"),
            "Invalid value for '--budget': '1e3/day' is not a budget",
            2,
        ),
        (("token", "generate", "--project-id", "x", "--rpm", "0"), "Invalid value for '--rpm'", 2),
    ],
)
def test_a_wrong_limit_is_one_line(manage: Run, arguments: tuple[str, ...], line: str, code: int) -> None:
    result = manage(*arguments)

    assert (result.exit_code, result.stdout) == (code, "")
    assert result.stderr.startswith(f"error: {line}")
    assert result.stderr.count("\n") == 1


def test_columns_that_are_empty_are_left_out() -> None:
    limit: dict[str, Any] = {
        "id": "a",
        "token_id": None,
        "project_id": None,
        "metric": "cost",
        "window": "total",
        "amount": "1.000000000",
        "models": None,
        "policy": "settled",
        "used": "0.000084750",
        "reserved": "0.000000000",
        "unknown": "0.000000000",
        "unpriced_requests": 0,
        "warn_at": None,
        "resets_at": None,
    }
    other = limit | {"unknown": "0.250000000", "unpriced_requests": 3, "policy": "warn", "warn_at": 80}

    titles, (row,) = columns([limit], {})
    more, (plain, full) = columns([limit, other], {})

    assert titles == ["ID", "SCOPE", "METRIC", "WINDOW", "USED", "RESERVED", "AMOUNT", "RESETS"]
    assert row == ("a", "proxy", "cost", "total", "$0.00008475", "$0.00", "$1.00", None)
    assert set(more) - set(titles) == {"POLICY", "UNKNOWN", "UNPRICED", "WARN AT"}
    used = "$0.00008475", "$0.00"
    assert plain == ("a", "proxy", "cost", "total", "settled", *used, None, None, "$1.00", None, None)
    assert full == ("a", "proxy", "cost", "total", "warn", *used, "$0.25", 3, "$1.00", "80 %", None)
