"""Every fault of a provider is visible to the client, recorded in the ledger, and leaves no resources.

Before a response has begun, the client gets 502 or 504 in the provider's own error shape; afterwards it gets an end
that no reader takes for a whole response.
"""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import trio

from benchmarks.ports import free_port
from benchmarks.processes import Upstream
from benchmarks.upstream.faults import FAULTS
from tests.databases.kinds import Kind
from tests.databases.scratch import Databases
from tests.harness import client
from tests.harness.deployment import UPSTREAM_KEY, Deployment, chat_body, chat_headers
from tests.harness.server import running_server
from tests.scenarios import aftermath, ledger_checks

if TYPE_CHECKING:
    from tests.scenarios.aftermath import Holdings

#: Requests per fault, all at once.
AT_ONCE = 6
#: How long the provider may be silent, in seconds.
PATIENCE = 0.75
#: Bytes by which the server may grow over six bombs of 16 MB each.
ROOM = 32 * 1024 * 1024

UNREACHABLE, SILENT = "upstream_unreachable", "upstream_timeout"
BROKE_OFF = "The provider closed the connection before it responded."
NOT_HTTP = "The provider's answer is not valid HTTP and was not relayed."
TOO_LATE = "The provider did not answer in time."

#: Faults that show before a response has begun: status, code, and what the client is told.
EARLY = {
    **dict.fromkeys(("reset-early", "reset-in-head", "close-early", "close-in-head"), (502, UNREACHABLE, BROKE_OFF)),
    **dict.fromkeys(
        (
            "bad-chunk",
            "bad-chunk-end",
            "bad-status",
            "bare-cr-header",
            "endless-interim",
            "folded-header",
            "garbage",
            "huge-header",
            "length-and-chunked",
            "long-body",
            "many-headers",
            "nul-header",
            "switching",
            "two-lengths",
        ),
        (502, UNREACHABLE, NOT_HTTP),
    ),
    **dict.fromkeys(("hang", "hang-in-head", "drip-head"), (504, SILENT, TOO_LATE)),
}
#: Faults in the middle of a response: the outcome, and what the client has got of the body.
EVENT = b'data: {"choices":[]}\n\n'
MIDWAY = {
    "reset-in-body": ("upstream_error", b'{"id":'),
    "reset-in-stream": ("upstream_error", EVENT * 3),
    "close-in-stream": ("upstream_error", EVENT * 3),
    "close-in-chunk": ("upstream_error", EVENT + b"data: "),
    "short-body": ("upstream_error", b"{}"),
    "hang-in-stream": ("upstream_timeout", EVENT),
    "drip-body": ("upstream_timeout", b" "),
}
#: What is odd and no fault: the body as it must arrive.
HARMLESS = {
    "interim": b"{}",
    "until-close": b"{}",
    "gzip-bomb": bytes(FAULTS["gzip-bomb"].steps[0]).partition(b"\r\n\r\n")[2],  # type: ignore[arg-type]  # no pause
}

CONFIGURATION = """
default_api: openai
apis:
  openai: {{base_url: "{upstream}"}}
  anthropic: {{base_url: "{upstream}"}}
  refused: {{base_url: "http://127.0.0.1:{closed}", {common}}}
  nameless: {{base_url: "http://{impossible}.invalid", {common}}}
  plain: {{base_url: "https://{plain}", {common}}}
  silent: {{base_url: "https://127.0.0.1:{silent}", {common}}}
"""
COMMON = f"allowed_endpoints: [/v1/chat/completions], timeouts: {{connect: {PATIENCE}s}}"


@pytest.fixture(scope="module")
def silent() -> Iterator[int]:
    """The port of a listener that never says a word."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener.getsockname()[1]


@pytest.fixture(scope="module")
def faulty(databases: Databases, tmp_path_factory: pytest.TempPathFactory, silent: int) -> Iterator[Deployment]:
    """A server of this module on SQLite, with several providers to fail."""
    path: Path = tmp_path_factory.mktemp("providers") / "providers.yaml"
    with databases.migrated(Kind.SQLITE) as scratch, Upstream.start("--key", UPSTREAM_KEY) as upstream:
        path.write_text(
            CONFIGURATION.format(
                upstream=upstream.url,
                plain=f"{upstream.host}:{upstream.port}",
                closed=free_port(),
                silent=silent,
                impossible="a" * 64,
                common=COMMON,
            )
        )
        settings = {"API_CONFIG_PATH": str(path), "REQUEST_TIMEOUT": f"{PATIENCE}s"}
        with running_server(scratch.env, settings) as server:
            yield Deployment(server, upstream)
            ledger_checks.verify(scratch.env)
            assert server.stop() == 0, server.output
            assert "Traceback" not in server.output
            assert UPSTREAM_KEY not in server.output
        ledger_checks.verify(scratch.env)


@pytest.fixture
def before(faulty: Deployment) -> Holdings:
    """What the server holds before the test."""
    trio.run(faulty.chat, faulty.new_secret(faulty.project()["id"]))
    return aftermath.at_rest(faulty.server, faulty.upstream)


async def ask(url: str, secret: str, *headers: tuple[str, str], version: str = "1.1", path: str = "") -> bytes:
    """Everything that the server sends for a chat completion, until it closes the connection."""
    head = [*chat_headers(secret, *headers), ("Connection", "close")]
    async with client.connect(url) as connection:
        request = client.encode("POST", path or "/v1/chat/completions", head, chat_body())
        await connection.send(request.replace(b"HTTP/1.1", f"HTTP/{version}".encode(), 1))
        return await connection.receive_all()


async def ask_at_once(deployment: Deployment, secret: str, fault: str) -> list[client.Response]:
    """Several requests with the same fault, and a good one afterwards."""
    answers: list[client.Response] = []

    async def one() -> None:
        answers.append(await deployment.chat(secret, ("x-upstream-fault", fault)))

    async with trio.open_nursery() as nursery:
        for _ in range(AT_ONCE):
            nursery.start_soon(one)
    # Whatever a bad answer has left on its connection must not become the next one's.
    good = await deployment.chat(secret)
    assert (good.status, good.complete) == (200, True)
    assert good.json()["object"] == "chat.completion"
    return answers


def failed(
    deployment: Deployment, token: dict[str, Any], before: Holdings, number: int = AT_ONCE, good: int = 1
) -> list[dict[str, Any]]:
    """The rows of the failed requests, after a look at what is left of them and at the token's counter."""
    rows = aftermath.settled(deployment.server, token["id"], number + good)
    assert len(rows) == number + good
    counted = [row for row in rows if row["outcome"] != "void"]
    assert aftermath.counter(deployment.server, token["id"]) == len(counted)
    aftermath.assert_nothing_left(deployment.server, deployment.upstream, before, within=2)
    assert [row["outcome"] for row in rows[number:]] == ["ok"] * good
    return rows[:number]


def reasons(deployment: Deployment, rows: list[dict[str, Any]]) -> set[str]:
    """What the log says about these requests, for the operator."""
    ids = {row["id"] for row in rows}
    return {event.get("reason", "") for event in deployment.server.events if event.get("request_id") in ids}


def test_every_upstream_fault_has_an_expected_result() -> None:
    assert EARLY.keys() | MIDWAY.keys() | HARMLESS.keys() == FAULTS.keys()


@pytest.mark.parametrize("fault", EARLY)
def test_a_fault_before_the_response_is_an_error_of_the_providers_shape(
    faulty: Deployment, before: Holdings, fault: str
) -> None:
    status, code, message = EARLY[fault]
    token = faulty.new_token(faulty.project()["id"])

    answers = trio.run(ask_at_once, faulty, token["token"], fault)

    error = {"message": message, "type": "server_error", "param": None, "code": code}
    assert [(answer.status, answer.complete, answer.json()) for answer in answers] == [
        (status, True, {"error": error})
    ] * AT_ONCE
    rows = failed(faulty, token, before)
    outcome = "upstream_timeout" if status == 504 else "upstream_error"
    assert aftermath.outcomes(rows) == {(outcome, status): AT_ONCE}
    assert {row["response_bytes"] for row in rows} == {0}
    # A provider that only took too long may bill the request.
    assert {bool(row["estimated"]) for row in rows} == {status == 504}
    assert "" not in reasons(faulty, rows)


@pytest.mark.parametrize("fault", MIDWAY)
def test_a_fault_in_the_response_is_a_visible_cut(faulty: Deployment, before: Holdings, fault: str) -> None:
    outcome, got = MIDWAY[fault]
    token = faulty.new_token(faulty.project()["id"])

    answers = trio.run(ask_at_once, faulty, token["token"], fault)

    assert [(answer.status, answer.complete, answer.body) for answer in answers] == [(200, False, got)] * AT_ONCE
    rows = failed(faulty, token, before)
    assert aftermath.outcomes(rows) == {(outcome, 200): AT_ONCE}
    assert {row["response_bytes"] for row in rows} == {len(got)}
    assert "" not in reasons(faulty, rows)


@pytest.mark.parametrize("fault", HARMLESS)
def test_unusual_but_valid_responses_pass_byte_for_byte(faulty: Deployment, before: Holdings, fault: str) -> None:
    token = faulty.new_token(faulty.project()["id"])
    resident = faulty.server.process.resident_bytes()

    answers = trio.run(ask_at_once, faulty, token["token"], fault)

    assert [(answer.status, answer.complete) for answer in answers] == [(200, True)] * AT_ONCE
    assert all(answer.body == HARMLESS[fault] for answer in answers)
    assert aftermath.outcomes(failed(faulty, token, before)) == {("ok", 200): AT_ONCE}
    assert faulty.server.process.resident_bytes() - resident < ROOM


@pytest.mark.parametrize("fault", ["close-in-stream", "hang-in-stream"])
def test_the_last_chunk_is_never_sent_after_a_fault(faulty: Deployment, before: Holdings, fault: str) -> None:
    token = faulty.new_token(faulty.project()["id"])

    wire = trio.run(ask, faulty.server.url, token["token"], ("x-upstream-fault", fault))

    assert b"transfer-encoding: chunked" in wire
    assert not wire.endswith(b"0\r\n\r\n")
    failed(faulty, token, before, number=1, good=0)


@pytest.mark.parametrize("fault", ["close-in-stream", "short-body"])
def test_a_client_without_chunks_is_cut_off_too(faulty: Deployment, before: Holdings, fault: str) -> None:
    """In HTTP/1.0 the end of the connection may be the end of the body; only a reset shows that it is not."""
    token = faulty.new_token(faulty.project()["id"])

    async def was_reset() -> bool:
        async with client.connect(faulty.server.url) as connection:
            head = chat_headers(token["token"], ("x-upstream-fault", fault))
            request = client.encode("POST", "/v1/chat/completions", head, chat_body())
            await connection.send(request.replace(b"HTTP/1.1", b"HTTP/1.0", 1))
            received = bytearray()
            try:
                while data := await connection.receive():
                    received += data
            except trio.BrokenResourceError:
                return True
        # A length that was not reached says as much.
        return b"content-length: 100" in received

    assert trio.run(was_reset)
    failed(faulty, token, before, number=1, good=0)


@pytest.mark.parametrize(("fault", "kind"), [("close-early", "api_error"), ("hang", "timeout_error")])
def test_errors_on_anthropic_paths_have_anthropics_shape(
    faulty: Deployment, before: Holdings, fault: str, kind: str
) -> None:
    status, code, message = EARLY[fault]
    token = faulty.new_token(faulty.project("anthropic")["id"])

    answer = trio.run(
        faulty.server.request,
        "POST",
        "/v1/messages",
        [("x-api-key", token["token"]), ("x-upstream-fault", fault)],
        chat_body(),
    )

    identity = answer.header("X-LLM-Proxy-Request-ID")
    said = answer.json()
    assert (answer.status, said["type"], said["request_id"]) == (status, "error", identity)
    assert said["error"].items() >= {"type": kind, "message": message, "code": code}.items()
    assert [row["id"] for row in failed(faulty, token, before, number=1, good=0)] == [identity]


def test_a_silent_client_is_not_counted_as_an_upstream_error(faulty: Deployment, before: Holdings) -> None:
    token = faulty.new_token(faulty.project()["id"])

    async def stall() -> client.Response:
        async with client.connect(faulty.server.url) as connection:
            head = chat_headers(token["token"], ("Content-Length", "100"))
            await connection.send(client.encode("POST", "/v1/chat/completions", head) + b'{"model":')
            return await connection.response("POST")

    answer = trio.run(stall)

    assert (answer.status, answer.json()["error"]["code"]) == (408, "request_timeout")
    assert answer.json()["error"]["message"] == "The body of the request did not arrive in time."
    rows = failed(faulty, token, before, number=1, good=0)
    assert aftermath.outcomes(rows) == {("client_closed", 408): 1}
    assert reasons(faulty, rows) == {f"the client sent nothing of its request body for {PATIENCE} s"}


@pytest.mark.parametrize(
    ("provider", "status", "code", "message", "reason"),
    [
        ("refused", 502, UNREACHABLE, "The provider could not be reached. Nothing was sent to it.", "refused"),
        ("nameless", 502, UNREACHABLE, "The provider could not be reached. Nothing was sent to it.", "name"),
        ("plain", 502, UNREACHABLE, "The provider could not be reached. Nothing was sent to it.", "TLS"),
        ("silent", 504, SILENT, "The provider could not be reached in time. Nothing was sent to it.", "within 0.75 s"),
    ],
)
def test_an_unreachable_provider_is_void_and_not_counted(
    faulty: Deployment, before: Holdings, *, provider: str, status: int, code: str, message: str, reason: str
) -> None:
    token = faulty.new_token(faulty.new_project(provider=provider)["id"], max_requests=1)

    answers = [trio.run(faulty.chat, token["token"]) for _ in range(2)]

    for answer in answers:
        assert (answer.status, answer.json()["error"]["code"]) == (status, code)
        assert answer.json()["error"]["message"] == message
    # Nothing was sent, so the one request that the token has is not used up.
    rows = failed(faulty, token, before, number=2, good=0)
    assert aftermath.outcomes(rows) == {("void", status): 2}
    assert aftermath.counter(faulty.server, token["id"]) == 0
    (said,) = reasons(faulty, rows)
    assert said.startswith(("cannot connect to ", "no connection to "))
    assert reason in said
