"""Commands that are used wrongly, or that the server refuses, and what exactly each of them says."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.processes import Upstream
from tests.databases.kinds import Kind
from tests.databases.scratch import Databases
from tests.harness.deployment import Deployment, provider_settings
from tests.harness.server import MANAGEMENT_TOKEN, running_server
from tests.scenarios.bad_input import CANARY, Command, assert_fit_for_users

UNKNOWN = "6f1b4a52-8a39-4c0e-9d0e-6c1f7d1f3b11"

USAGE = (
    Command("no such command", ("spam",), "No such command 'spam'; see 'llm-proxy --help'"),
    Command("a misspelt command", ("mange",), "No such command 'mange'. Did you mean 'manage'? See 'llm-proxy --help'"),
    Command(
        "a command that is nearly there",
        ("manage", "projects"),
        "No such command 'projects'. Did you mean 'project'? See 'llm-proxy manage --help'",
    ),
    Command(
        "projects are not deleted",
        ("manage", "project", "delete", UNKNOWN),
        "No such command 'delete'; see 'llm-proxy manage project --help'",
    ),
    Command("no such option", ("--nonsense",), "No such option '--nonsense'; see 'llm-proxy --help'"),
    Command(
        "an option of another command",
        ("migrate", "up", "--to", "0001"),
        "No such option '--to'; see 'llm-proxy migrate up --help'",
    ),
    Command(
        "a word too many", ("server", "8080"), "Got unexpected extra argument (8080); see 'llm-proxy server --help'"
    ),
    Command("a value for a switch", ("ledger", "verify", "--repair=yes"), "Option '--repair' does not take a value"),
    Command("no id", ("manage", "project", "get"), "Missing argument 'ID'; see 'llm-proxy manage project get --help'"),
    Command(
        "no name",
        ("manage", "project", "create", "--api-key", CANARY),
        "Missing option '--name'; see 'llm-proxy manage project create --help'",
    ),
    Command(
        "no project",
        ("manage", "token", "generate"),
        "Missing option '--project-id'; see 'llm-proxy manage token generate --help'",
    ),
    Command(
        "a server without a scheme",
        ("manage", "project", "list", "--manage-api-base-url", "localhost:8080"),
        "Invalid value for '--manage-api-base-url': 'localhost:8080' is not an http or https URL without user and "
        "query, such as http://localhost:8080; see 'llm-proxy manage project list --help'",
    ),
    Command(
        "a server with a password",
        ("manage", "project", "list", "--manage-api-base-url", f"http://me:{CANARY}@localhost"),
        "Invalid value for '--manage-api-base-url': (hidden) is not an http or https URL without user and "
        "query, such as http://localhost:8080; see 'llm-proxy manage project list --help'",
    ),
    Command(
        "no address for the demo",
        ("demo", "--addr", "8080"),
        "Invalid value for '--addr': '8080' is not :port, host:port or [IPv6 address]:port, such as 127.0.0.1:8080; "
        "see 'llm-proxy demo --help'",
    ),
    Command(
        "a ledger that there is not",
        ("ledger", "verify", "--db", "none.db"),
        "there is no SQLite file none.db; 'llm-proxy migrate up' makes it",
        1,
    ),
)


def manage(says: str, arguments: str, line: str, code: int = 1) -> Command:
    """A use of the management API that is refused; words in braces are the world's."""
    access = ("--manage-api-base-url", "{url}", "--management-token", MANAGEMENT_TOKEN)
    return Command(says, ("manage", *arguments.split(" "), *access), line, code)


def listing(says: str, url: str, token: str | None, line: str, code: int = 2) -> Command:
    """A list from a server that does not give one."""
    given = () if token is None else ("--management-token", token)
    return Command(says, ("manage", "project", "list", "--manage-api-base-url", url, *given), line, code)


RANGE = "is not a duration from a minute to ten years, such as 30d, 12h or 90m"
LIMIT = "is not allowed; give 1 or more, or 'unlimited'"
HELP = "; see 'llm-proxy manage token generate --help'"


def no_project(reference: str) -> str:
    listed = "'llm-proxy manage project list' shows those that exist"
    return f"There is no such project: No project has this id or name: '{reference}'; {listed}"


def no_token(reference: str) -> str:
    listed = "'llm-proxy manage token list' shows those that exist"
    description = f"No token has this id or name: '{reference}'. A token's secret is neither"
    return f"There is no such token: {description}; {listed}"


NAMES = "openai, anthropic, gemini, openrouter, groq, mistral, deepseek, xai, together, cohere"
NAME = "--name must be text of 1 to 255 characters, without control characters and without space at its ends"

ACCESS = (
    listing(
        "nobody there",
        "http://127.0.0.1:9",
        CANARY,
        "cannot connect to http://127.0.0.1:9 (Connection refused); is the server running, and --manage-api-base-url "
        "right?",
    ),
    listing(
        "no such host",
        "http://nowhere.invalid",
        CANARY,
        "cannot connect to http://nowhere.invalid (Name or service not known); is the server running, and "
        "--manage-api-base-url right?",
    ),
    listing(
        "no TLS there",
        "{https}",
        CANARY,
        "cannot connect to {https} (TLS: wrong version number); is the server running, and --manage-api-base-url "
        "right?",
    ),
    listing(
        "another kind of server",
        "{mute}",
        CANARY,
        "cannot connect to {mute} (Server disconnected without sending a response); is the server running, and "
        "--manage-api-base-url right?",
    ),
    listing(
        "another server",
        "{provider}",
        CANARY,
        "{provider} answered 401 and is not an llm-proxy server; check --manage-api-base-url or LLM_PROXY_URL",
        1,
    ),
    listing(
        "a path too many",
        "{url}/manage",
        MANAGEMENT_TOKEN,
        "the URL must not end in /manage: use {url}",
    ),
    listing(
        "no token",
        "{url}",
        None,
        "the management token is not set; set MANAGEMENT_TOKEN or --management-token to the server's",
    ),
    listing(
        "a wrong token",
        "{url}",
        CANARY,
        "the management token is wrong for {url}; set MANAGEMENT_TOKEN to that server's token",
        3,
    ),
    listing(
        "a token that is none",
        "{url}",
        f"{CANARY} {CANARY}",
        "--management-token (value hidden): allowed: 1 to 4096 printable ASCII characters without spaces",
    ),
    listing(
        "an empty token",
        "{url}",
        "",
        "--management-token (value hidden): it is empty; set a value, or remove the flag",
    ),
)

REFUSED = (
    manage("an id that is none", "project get nonsense", no_project("nonsense")),
    manage("a project that there is not", f"project get {UNKNOWN}", no_project(UNKNOWN)),
    manage(
        "no key",
        "project create --name a",
        "no API key was given; pass it on stdin, or with --api-key",
        2,
    ),
    manage(
        "a key with a line end",
        f"project create --name a --api-key {CANARY}\n{CANARY}",
        "--api-key must be 1 to 4096 printable ASCII characters without spaces",
    ),
    manage("an empty name", f"project create --name  --api-key {CANARY}", NAME),
    manage(
        "a name that is taken",
        f"project create --name taken --api-key {CANARY}",
        "The name is taken: Another credential has this name, and names of credentials are unique. Choose another one",
    ),
    manage(
        "a provider that is misspelt",
        f"project create --name a --provider opanai --api-key {CANARY}",
        f"--provider must be one of {NAMES}, the configured ones",
    ),
    manage(
        "no change",
        "project update {project}",
        "nothing to change; give what to change, e.g. --api-key, --credential or --models",
        2,
    ),
    manage(
        "another provider with the old key",
        "project update {project} --provider anthropic",
        "--provider: the project has no credential for anthropic; send --api-key, --credential with one,"
        " or another --provider",
    ),
    manage("a token for nobody", f"token generate --project-id {UNKNOWN}", no_project(UNKNOWN)),
    manage(
        "a token of a project that is stopped",
        "token generate --project-id {stopped}",
        "the project is inactive; activate it with 'llm-proxy manage project activate'",
    ),
    manage(
        "no duration",
        "token generate --project-id {project} --duration soon",
        f"Invalid value for '--duration': 'soon' {RANGE}{HELP}",
        2,
    ),
    manage(
        "a duration too short",
        "token generate --project-id {project} --duration 30s",
        f"Invalid value for '--duration': '30s' {RANGE}{HELP}",
        2,
    ),
    manage(
        "a duration too long",
        "token generate --project-id {project} --duration 9999d",
        f"Invalid value for '--duration': '9999d' {RANGE}{HELP}",
        2,
    ),
    manage(
        "two ends",
        "token generate --project-id {project} --duration 1d --expires-at 2030-01-01T00:00:00Z",
        "--duration and --expires-at cannot be used together; give one of them",
        2,
    ),
    manage(
        "no moment",
        "token generate --project-id {project} --expires-at tomorrow",
        "--expires-at must be a time with its offset from UTC, such as 2030-01-31T12:00:00Z",
    ),
    manage(
        "a moment in the past",
        "token generate --project-id {project} --expires-at 2020-01-01T00:00:00Z",
        "--expires-at must be in the future, and at most ten years ahead",
    ),
    manage(
        "a negative limit",
        "token generate --project-id {project} --max-requests -1",
        f"Invalid value for '--max-requests': '-1' {LIMIT}{HELP}",
        2,
    ),
    manage(
        "a limit of zero",
        "token generate --project-id {project} --max-requests 0",
        f"Invalid value for '--max-requests': '0' {LIMIT}{HELP}",
        2,
    ),
    manage(
        "no limit",
        "token generate --project-id {project} --max-requests 1e3",
        f"Invalid value for '--max-requests': '1e3' {LIMIT}{HELP}",
        2,
    ),
    manage("a secret in place of an id", "token get {secret}", no_token("[redacted]")),
    manage("a token that there is not", f"token revoke {UNKNOWN}", no_token(UNKNOWN)),
    manage(
        "a revoked token",
        "token rotate {revoked}",
        "the token is revoked; make a new one with 'llm-proxy manage token generate'",
    ),
    manage("nobody's tokens", f"token revoke-all {UNKNOWN} --yes", no_project(UNKNOWN)),
)


@pytest.fixture(scope="module")
def mute() -> Iterator[str]:
    """The URL of a listener that closes every connection at once."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def accept() -> None:
            while True:
                try:
                    connection, _ = listener.accept()
                except OSError:
                    return
                connection.recv(65536)
                connection.close()

        threading.Thread(target=accept, daemon=True).start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        listener.shutdown(socket.SHUT_RDWR)


@pytest.fixture(scope="module")
def world(databases: Databases, session_upstream: Upstream, mute: str) -> Iterator[dict[str, str]]:
    """What the braces in the rows stand for."""
    with (
        databases.migrated(Kind.SQLITE) as scratch,
        running_server(scratch.env, provider_settings(session_upstream)) as server,
    ):
        deployment = Deployment(server, session_upstream)
        project, stopped = deployment.new_project(name="taken"), deployment.new_project()
        token, revoked = deployment.new_token(project["id"]), deployment.new_token(project["id"])
        server.manage("PATCH", f"/projects/{stopped['id']}", {"active": False})
        server.manage("DELETE", f"/tokens/{revoked['id']}")
        yield {
            "url": server.url,
            "https": server.url.replace("http:", "https:"),
            "provider": session_upstream.url,
            "mute": mute,
            "project": project["id"],
            "stopped": stopped["id"],
            "secret": token["token"],
            "revoked": revoked["id"],
        }
        assert server.stop() == 0, server.output
        assert_fit_for_users(server.output, token["token"])


@pytest.mark.parametrize("row", USAGE, ids=str)
def test_wrong_usage_of_a_command_is_explained(row: Command, tmp_path: Path) -> None:
    assert row.check(tmp_path) == set()


@pytest.mark.parametrize("row", [*ACCESS, *REFUSED], ids=str)
def test_a_command_prints_the_error_of_the_server(row: Command, world: dict[str, str], tmp_path: Path) -> None:
    assert row.check(tmp_path, **world) == set()
