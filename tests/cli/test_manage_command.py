from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from llm_proxy.cli.client import find_server
from llm_proxy.cli.commands.manage import api_keys
from llm_proxy.cli.failures import WrongUsage
from tests.cli.conftest import Run
from tests.harness.files import write_secret
from tests.harness.server import MANAGEMENT_TOKEN, Server, running_server

API_KEY = "sk-canary-of-the-provider"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server on SQLite, shared by this module's tests; each makes projects of its own."""
    with running_server({"DATABASE_PATH": str(tmp_path_factory.mktemp("manage") / "proxy.db")}) as server:
        yield server


@pytest.fixture
def manage(run: Run, server: Server) -> Run:
    """Run `llm-proxy manage` against the server."""

    def invoke(*arguments: str, **options: Any) -> Any:
        where = ("--manage-api-base-url", server.url, "--management-token", MANAGEMENT_TOKEN)
        # After `--` there are no options.
        end = arguments.index("--") if "--" in arguments else len(arguments)
        return run("manage", *arguments[:end], *where, *arguments[end:], **options)

    return invoke


@pytest.fixture
def project_id(manage: Run, request: pytest.FixtureRequest) -> str:
    """A project of this test."""
    created = manage("project", "create", "--name", request.node.name, "--api-key", API_KEY, "--json")
    return str(json.loads(created.stdout)["id"])


@pytest.fixture
def token(manage: Run, project_id: str) -> dict[str, Any]:
    """A token of this test, with its secret."""
    made = manage("token", "generate", "--project-id", project_id, "--max-requests", "5", "--json")
    found: dict[str, Any] = json.loads(made.stdout)
    return found


def shown(text: str) -> dict[str, str]:
    """Read what a command shows of one thing."""
    pairs = (line.split("  ", maxsplit=1) for line in text.splitlines())
    return {name.strip(): value.strip() for name, value in pairs}


def test_a_project_is_created_and_shown_without_its_key(manage: Run) -> None:
    created = manage("project", "create", "--name", "Größe 日本", "--api-key", API_KEY)

    fields = shown(created.stdout)
    assert created.exit_code == 0
    assert fields["name"] == "Größe 日本"
    assert fields["provider"] == "openai"
    assert fields["API key"] == "…ider"
    assert fields["state"] == "active"
    assert manage("project", "get", fields["id"]).stdout == created.stdout
    listed = manage("project", "list").stdout
    assert listed.splitlines()[0].split() == ["ID", "NAME", "PROVIDER", "KEY", "STATE"]
    assert fields["id"] in listed
    assert API_KEY not in created.stdout + listed


@pytest.mark.parametrize("option", [("--api-key", "-"), ()])
def test_an_api_key_can_come_from_a_pipe(manage: Run, option: tuple[str, ...]) -> None:
    created = manage("project", "create", "--name", f"pipe {len(option)}", *option, input=f"{API_KEY}\n")

    assert shown(created.stdout)["API key"] == "…ider"
    assert created.stderr == ""


def test_an_api_key_is_asked_for_at_a_terminal_and_not_echoed(manage: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(api_keys, "sys", SimpleNamespace(stdin=SimpleNamespace(isatty=lambda: True)))

    created = manage("project", "create", "--name", "asked", input=f"{API_KEY}\n")

    assert shown(created.stdout)["API key"] == "…ider"
    assert created.stderr == "API key: \n"


def test_without_an_api_key_nothing_is_created(manage: Run) -> None:
    result = manage("project", "create", "--name", "none")

    assert result.exit_code == 2
    assert result.stderr == "error: no API key was given; pass it on stdin, or with --api-key\n"


def test_a_project_is_changed(manage: Run, project_id: str) -> None:
    changed = manage("project", "update", project_id, "--name", "new name", "--api-key", "sk-another-0000")
    assert shown(changed.stdout)["name"] == "new name"
    assert shown(changed.stdout)["API key"] == "…0000"

    assert shown(manage("project", "deactivate", project_id).stdout)["state"] == "inactive"
    assert shown(manage("project", "activate", project_id).stdout)["state"] == "active"


def test_a_credential_is_shared_rotated_and_deactivated(manage: Run) -> None:
    made = manage("credential", "create", "--name", "shared", "--provider", "openai", input=f"{API_KEY}\n")
    fields = shown(made.stdout)
    assert (made.exit_code, fields["provider"], fields["API key"], fields["projects"]) == (0, "openai", "…ider", "0")
    claude = ("credential", "create", "--name", "claude", "--provider", "anthropic", "--api-key", "sk-of-claude-4444")
    assert manage(*claude).exit_code == 0

    both = ("--credential", "shared", "--credential", "4444")
    team = shown(manage("project", "create", "--name", "team", *both, "--provider", "openai").stdout)
    assert (team["credentials"], team["provider"]) == ("claude (anthropic), shared (openai)", "openai")
    one = shown(manage("project", "update", "team", "--credential", "claude", "--provider", "anthropic").stdout)
    assert (one["credentials"], one["API key"]) == ("claude (anthropic)", "…4444")

    rotated = manage("credential", "rotate", "claude", "--api-key", "-", input="sk-another-5555\n")
    assert shown(rotated.stdout)["API key"] == shown(manage("project", "get", "team").stdout)["API key"] == "…5555"
    assert shown(manage("credential", "deactivate", "5555").stdout)["state"] == "inactive"
    lines = manage("credential", "list", "--provider", "anthropic").stdout.splitlines()
    assert lines[0].split() == ["ID", "NAME", "PROVIDER", "KEY", "PROJECTS", "STATE"]
    assert [line.split()[1:] for line in lines[1:]] == [["claude", "anthropic", "…5555", "1", "inactive"]]
    assert shown(manage("credential", "activate", "claude").stdout)["state"] == "active"
    assert API_KEY not in made.stdout + manage("credential", "list", "--json").stdout


def test_a_project_opens_and_closes_unknown_objects(manage: Run, project_id: str) -> None:
    opened = manage("project", "update", project_id, "--allow-unknown-objects", "--json")
    assert json.loads(opened.stdout)["allow_unknown_objects"] is True
    closed = manage("project", "update", project_id, "--refuse-unknown-objects", "--json")
    assert json.loads(closed.stdout)["allow_unknown_objects"] is False


def test_stream_usage_of_a_project_is_set_and_left_to_the_provider_again(manage: Run, project_id: str) -> None:
    for given, stored in (("off", "off"), ("ask", "ask"), ("default", None)):
        changed = manage("project", "update", project_id, "--stream-usage", given, "--json")
        assert json.loads(changed.stdout)["stream_usage"] == stored
    wrong = manage("project", "update", project_id, "--stream-usage", "on")
    assert wrong.exit_code == 2
    assert "'ask', 'off', 'default'" in wrong.stderr


def test_a_name_that_several_have_is_refused_with_their_ids(manage: Run, token: dict[str, Any]) -> None:
    made = [
        shown(manage("token", "generate", "--project-id", token["project_id"], "--name", "ci 7").stdout)["id"]
        for _ in range(2)
    ]
    refused = manage("token", "revoke", "ci 7")

    assert (refused.exit_code, refused.stdout) == (1, "")
    assert all(identity in refused.stderr for identity in made)
    # One in 64 begins with a dash.
    assert manage("token", "revoke", "--", token["last4"]).exit_code == 0
    assert shown(manage("token", "get", token["id"]).stdout)["state"] == "revoked"


def test_a_token_shows_its_secret_once(manage: Run, project_id: str) -> None:
    made = manage(
        "token", "generate", "--project-id", project_id, "--name", "ci", "--duration", "90m", "--max-requests", "7"
    )

    fields = shown(made.stdout)
    assert made.exit_code == 0
    assert made.stderr == "The token is shown only once; only its digest is stored.\n"
    secret = fields.pop("token")
    assert secret.startswith("sk-")
    assert len(secret) == 46
    assert fields["project"] == project_id
    assert fields["requests"] == "0 of 7"
    assert fields["ends in"] == secret[-4:]
    assert shown(manage("token", "get", fields["id"]).stdout) == fields
    assert secret not in manage("token", "list", "--json").stdout


def test_a_list_of_all_tokens_names_their_projects(manage: Run, token: dict[str, Any]) -> None:
    titles, *lines = manage("token", "list").stdout.splitlines()

    assert titles.split() == ["ID", "NAME", "TOKEN", "PROJECT", "USED", "LIMIT", "EXPIRES", "STATE"]
    project = json.loads(manage("project", "get", token["project_id"], "--json").stdout)["name"]
    assert [line.split()[3] for line in lines if line.startswith(token["id"])] == [project]


def test_tokens_are_listed_by_project(manage: Run, token: dict[str, Any]) -> None:
    lines = manage("token", "list", "--project-id", token["project_id"]).stdout.splitlines()

    assert lines[0].split() == ["ID", "NAME", "TOKEN", "USED", "LIMIT", "EXPIRES", "STATE"]
    (line,) = lines[1:]
    assert line.startswith(token["id"])
    assert line.endswith("active")
    assert f"…{token['last4']}     0      5  " in line


def test_a_token_is_changed_rotated_and_revoked(manage: Run, token: dict[str, Any]) -> None:
    identity = token["id"]

    changed = manage("token", "update", identity, "--max-requests", "unlimited", "--name", "x", "--duration", "2d")
    assert shown(changed.stdout)["requests"] == "0 of unlimited"
    assert shown(changed.stdout)["name"] == "x"

    rotated = shown(manage("token", "rotate", identity).stdout)
    assert rotated["token"] != token["token"]

    revoked = manage("token", "revoke", identity)
    assert revoked.stdout == f"Token {identity} is revoked.\n"
    assert shown(manage("token", "get", identity).stdout)["state"] == "revoked"
    project = token["project_id"]
    assert json.loads(manage("token", "list", "--project-id", project, "--active-only", "--json").stdout) == []


def test_all_tokens_of_a_project_are_revoked(manage: Run, token: dict[str, Any]) -> None:
    revoked = manage("token", "revoke-all", token["project_id"], "--yes")

    assert revoked.stdout == "Tokens revoked: 1\n"
    assert shown(manage("token", "get", token["id"]).stdout)["state"] == "revoked"


def test_revoking_all_tokens_takes_a_yes(
    manage: Run, token: dict[str, Any], request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    question = f"Revoke 1 token of the project {request.node.name}?"

    silent = manage("token", "revoke-all", token["project_id"])
    assert (silent.exit_code, silent.stdout) == (2, "")
    assert silent.stderr == f"error: this needs confirmation ({question}); run it with --yes\n"

    monkeypatch.setattr("llm_proxy.cli.options.sys", SimpleNamespace(stdin=SimpleNamespace(isatty=lambda: True)))
    refused = manage("token", "revoke-all", token["project_id"], input="n\n")
    assert (refused.exit_code, refused.stdout) == (1, "")
    assert refused.stderr.endswith("\nNothing was changed.\n")
    assert refused.stderr.startswith(question)
    assert shown(manage("token", "get", token["id"]).stdout)["state"] == "active"

    assert manage("token", "revoke-all", token["project_id"], input="y\n").stdout == "Tokens revoked: 1\n"


@pytest.mark.parametrize(
    ("arguments", "line", "code"),
    [
        (
            ("project", "get", "x"),
            "There is no such project: No project has this id or name: 'x'; 'llm-proxy manage project list' shows",
            1,
        ),
        (("token", "get", "../projects"), "This path must not contain percent escapes", 1),
        (
            ("project", "update", "x"),
            "nothing to change; give what to change, e.g. --api-key, --credential or --models",
            2,
        ),
        (
            ("token", "update", "x"),
            "nothing to change; give --name, --duration, --expires-at, --max-requests, --label or --models",
            2,
        ),
        (
            ("token", "generate", "--project-id", "x", "--duration", "24"),
            (
                "Invalid value for '--duration': '24' is not a duration from a minute to ten years, such as 30d, 12h "
                "or 90m; see 'llm-proxy manage token generate --help'"
            ),
            2,
        ),
        (
            ("token", "generate", "--project-id", "x", "--duration", "1h", "--expires-at", "2030-01-01T00:00:00Z"),
            "--duration and --expires-at cannot be used together; give one of them",
            2,
        ),
        (
            ("token", "generate", "--project-id", "x", "--label", "team"),
            "--label 'team' is not KEY=VALUE, such as team=search",
            2,
        ),
        (
            ("token", "update", "x", "--label", "team=a", "--label", "team=b"),
            "the label 'team' is given more than once",
            2,
        ),
        (
            ("token", "generate", "--project-id", "x", "--max-requests", "-1"),
            (
                "Invalid value for '--max-requests': '-1' is not allowed; give 1 or more, or 'unlimited'; "
                "see 'llm-proxy manage token generate --help'"
            ),
            2,
        ),
        (
            ("token", "update", "x", "--max-requests", "0"),
            (
                "Invalid value for '--max-requests': '0' is not allowed; give 1 or more, or 'unlimited'; "
                "see 'llm-proxy manage token update --help'"
            ),
            2,
        ),
        (
            ("token", "generate", "--project-id", "x", "--name", " x", "--max-requests", "99999999999999999999"),
            (
                "--name must be text of up "
                "to 255 characters, without control characters and without space at its ends; --max-requests must be "
            ),
            1,
        ),
        (("token", "generate"), "Missing option '--project-id'; see 'llm-proxy manage token generate --help'", 2),
    ],
)
def test_what_cannot_be_done_is_one_line(manage: Run, arguments: tuple[str, ...], line: str, code: int) -> None:
    result = manage(*arguments)

    assert (result.exit_code, result.stdout) == (code, "")
    assert result.stderr.startswith(f"error: {line}")
    assert result.stderr.count("\n") == 1


def test_a_wrong_token_is_exit_code_3(run: Run, server: Server) -> None:
    result = run(
        "manage", "project", "list", "--manage-api-base-url", server.url, env={"MANAGEMENT_TOKEN": "wrong-canary"}
    )

    assert result.exit_code == 3
    assert (
        result.stderr
        == f"error: the management token is wrong for {server.url}; set MANAGEMENT_TOKEN to that server's token\n"
    )


def test_without_any_token_nothing_is_sent(run: Run, server: Server) -> None:
    result = run("manage", "project", "list", "--manage-api-base-url", server.url)

    assert result.exit_code == 2
    assert result.stderr == (
        "error: the management token is not set; set MANAGEMENT_TOKEN or --management-token to the server's\n"
    )


def test_the_token_can_be_in_the_environment_a_file_or_dotenv(run: Run, server: Server, folder: Path) -> None:
    where = ("manage", "project", "list", "--manage-api-base-url", server.url)
    write_secret(folder / "secret", MANAGEMENT_TOKEN)

    assert run(*where, env={"MANAGEMENT_TOKEN": MANAGEMENT_TOKEN}).exit_code == 0
    assert run(*where, env={"MANAGEMENT_TOKEN_FILE": "secret"}).exit_code == 0
    write_secret(folder / "other.env", f"MANAGEMENT_TOKEN={MANAGEMENT_TOKEN}\n")
    assert run(*where, "--config", "other.env").exit_code == 0
    write_secret(folder / ".env", f"MANAGEMENT_TOKEN={MANAGEMENT_TOKEN}\n")
    assert run(*where).exit_code == 0


def test_the_token_of_a_server_here_is_sent_to_no_other(run: Run, folder: Path) -> None:
    (folder / "data").mkdir()
    file = folder / "data" / "llm-proxy.db.management-token"
    file.write_text("canary")
    file.chmod(0o600)

    elsewhere = run("manage", "project", "list", "--manage-api-base-url", "http://192.0.2.1:8080")
    assert elsewhere.stderr.startswith("error: the management token is not set")

    file.chmod(0o644)
    exposed = run("manage", "project", "list", "--manage-api-base-url", "http://127.0.0.1:9")
    assert exposed.stderr == (
        "error: the management token's file data/llm-proxy.db.management-token is open to other users (mode 0644): "
        "run chmod 600 data/llm-proxy.db.management-token\n"
    )
    assert exposed.exit_code == 1


@pytest.mark.parametrize(
    ("dotenv", "url"),
    [
        ("", "http://127.0.0.1:8080"),
        ("LISTEN_ADDR=:9", "http://127.0.0.1:9"),
        ("LISTEN_ADDR=0.0.0.0:9", "http://127.0.0.1:9"),
        ("LISTEN_ADDR=[::]:9", "http://127.0.0.1:9"),
        ("LISTEN_ADDR=[::1]:9", "http://[::1]:9"),
        ("LISTEN_ADDR=proxy.example.com:9\nENABLE_TLS=true", "https://proxy.example.com:9"),
        ("LISTEN_ADDR=:9\nLLM_PROXY_URL=https://proxy.example.com/", "https://proxy.example.com"),
    ],
)
def test_the_server_is_found_by_the_settings(folder: Path, dotenv: str, url: str) -> None:
    (folder / ".env").write_text(dotenv)

    assert find_server(None, None) == url
    assert find_server("http://flag:1", None) == "http://flag:1"


@pytest.mark.parametrize("end", ["v1", "manage"])
def test_an_address_that_ends_in_a_path_of_the_server_is_refused(end: str) -> None:
    with pytest.raises(WrongUsage, match=f"^the URL must not end in /{end}: use http://flag:1$"):
        find_server(f"http://flag:1/{end}/", None)


def test_manage_needs_no_address_beside_the_dotenv_file_of_the_server(run: Run, server: Server, folder: Path) -> None:
    write_secret(folder / ".env", f"LISTEN_ADDR=:{server.port}\nMANAGEMENT_TOKEN={MANAGEMENT_TOKEN}\n")

    assert run("manage", "project", "list").exit_code == 0
    elsewhere = run("manage", "project", "list", env={"LLM_PROXY_URL": "http://127.0.0.1:9"})
    assert elsewhere.stderr.startswith("error: cannot connect to http://127.0.0.1:9 ")


def test_a_wrong_address_in_the_settings_is_told(run: Run) -> None:
    result = run("manage", "project", "list", env={"LLM_PROXY_URL": "localhost:8080"})

    assert result.exit_code == 2
    assert result.stderr.startswith("error: LLM_PROXY_URL='localhost:8080': a base URL begins with https:// or http://")


def test_a_base_url_that_is_none(run: Run) -> None:
    result = run("manage", "project", "list", "--manage-api-base-url", "localhost:8080")

    assert result.exit_code == 2
    assert result.stderr.startswith(
        "error: Invalid value for '--manage-api-base-url': 'localhost:8080' is not an http or https URL"
    )


def test_the_audit_log_lists_changes_and_refused_calls(manage: Run, project_id: str) -> None:
    manage("project", "update", project_id, "--name", f"renamed {project_id}")
    assert manage("project", "deactivate", project_id).exit_code == 0
    found = manage("audit", "--resource-id", project_id)
    assert found.exit_code == 0
    title, *rows = [line.split() for line in found.stdout.splitlines()]
    assert title == ["TIME", "ACTOR", "ADDRESS", "OPERATION", "RESOURCE", "OUTCOME", "STATUS", "CHANGES"]
    assert " ".join(rows[0][2:]) == (
        f"management token 127.0.0.1 updateProject {project_id} accepted 200 active: true -> false"
    )
    assert rows[1][-5:-2] == ["name:", '"test_the_audit_log_lists_changes_and_refused_calls"', "->"]
    assert len(rows) == 3
    listed = json.loads(manage("audit", "--operation", "updateProject", "--limit", "1", "--json").stdout)
    assert [(entry["resource_id"], entry["after"]) for entry in listed] == [(project_id, {"active": False})]
    manage("token", "get", "00000000-0000-4000-8000-000000000000")
    refused = manage("audit", "--outcome", "refused", "--limit", "1")
    assert refused.stdout.splitlines()[1].endswith("refused     404  token_not_found")


def test_the_audit_log_is_csv_with_all_entries(manage: Run, project_id: str) -> None:
    manage("project", "update", project_id, "--name", f"=1+1 {project_id}")
    filters = ("--resource", "project", "--outcome", "accepted", "--actor", "management token")
    time = ("--from", "2020-01-01T00:00:00Z", "--to", "2100-01-01T00:00:00Z")
    printed = manage("audit", "--resource-id", project_id, *filters, *time, "--limit", "1", "--csv").stdout
    rows = list(csv.DictReader(io.StringIO(printed)))
    assert [row["operation"] for row in rows] == ["updateProject", "createProject"]
    assert json.loads(rows[0]["after"]) == {"name": f"=1+1 {project_id}"}
    assert manage("audit", "--to", "2020-01-01T00:00:00Z", "--csv").stdout.count("\n") == 1


def test_more_entries_of_the_audit_log_than_the_limit_are_told(manage: Run, project_id: str) -> None:
    manage("project", "deactivate", project_id)
    result = manage("audit", "--resource-id", project_id, "--limit", "1", "--json")
    assert len(json.loads(result.stdout)) == 1
    assert result.stderr == (
        "warning: there are more entries; these are the newest 1. Give a higher --limit, or --csv for all\n"
    )
    assert manage("audit", "--resource-id", project_id, "--limit", "2").stderr == ""


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (("--json", "--csv"), 2, "error: only one of --csv and --json can be given\n"),
        (
            ("--csv", "--resource", "\u00fc"),
            1,
            (
                "error: --resource must be one of"
                " project, credential, token, limit, request, refusal, usage, audit, server\n"
            ),
        ),
        (
            ("--from", "yesterday"),
            1,
            "error: --from must be a day such as 2030-01-31, or a time with its offset such as 2030-01-31T12:00:00Z\n",
        ),
    ],
)
def test_a_wrong_filter_of_the_audit_log_is_refused(
    manage: Run, options: tuple[str, ...], code: int, message: str
) -> None:
    result = manage("audit", *options)
    assert (result.exit_code, result.stderr, result.stdout) == (code, message, "")


def test_a_project_shows_what_is_not_the_default(manage: Run, project_id: str) -> None:
    usual = shown(manage("project", "get", project_id).stdout)
    options = ("--allow-request-labels", "--allow-unknown-objects", "--stream-usage", "off")
    changed = shown(manage("project", "update", project_id, *options).stdout)
    more = {"request labels": "allowed", "unknown objects": "allowed", "stream usage": "off"}
    assert not usual.keys() & more.keys()
    assert more.items() <= changed.items()


def test_an_empty_list_of_refusals_names_the_setting_that_records_them(manage: Run) -> None:
    result = manage("refusal", "list")
    assert result.exit_code == 0
    assert result.stderr == "There are none. The server records refused requests only if RECORD_REFUSALS is true.\n"


def test_a_reload_says_that_the_server_has_no_price_file(run: Run, server: Server) -> None:
    result = run("reload", "--manage-api-base-url", server.url, "--management-token", MANAGEMENT_TOKEN)
    assert shown(result.stdout)["price file"] == "none; with one worker, a new PRICES_PATH needs a restart"


def test_the_models_of_a_token_and_of_a_project_are_set_and_taken_back(
    manage: Run, project_id: str, token: dict[str, Any]
) -> None:
    made = manage("token", "generate", "--project-id", project_id, "--models", "gpt-5.4*, o4-mini", "--json")
    assert json.loads(made.stdout)["models"] == ["gpt-5.4*", "o4-mini"]
    for kind, identity in (("token", token["id"]), ("project", project_id)):
        changed = manage(kind, "update", identity, "--models", "o4*,gpt-5*")
        assert shown(changed.stdout)["models"] == "o4*, gpt-5*"
        freed = manage(kind, "update", identity, "--models", "all", "--json")
        assert json.loads(freed.stdout)["models"] is None
        assert shown(manage(kind, "get", identity).stdout)["models"] == "all"
    wrong = manage("token", "update", token["id"], "--models", "a,,b")
    assert wrong.exit_code == 2
    assert "'a,,b' has an empty pattern" in wrong.stderr
