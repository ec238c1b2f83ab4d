"""The application is plain ASGI: `hypercorn -k trio 'llm_proxy.web.app:create_app()'` serves it as well."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest
import trio

from benchmarks.ports import free_port
from benchmarks.processes import Upstream
from db.dsn.target import Target
from tests.databases.kinds import on
from tests.harness import client
from tests.harness.deployment import Deployment, chat_body, chat_headers, provider_settings
from tests.harness.server import running_server
from tests.scenarios import aftermath, ledger_checks

#: Seconds that Hypercorn lets running requests go on after SIGTERM.
GRACE = 1
STREAMS = 6

pytestmark = on("sqlite")


@pytest.fixture
def hypercorn(migrated_env: dict[str, str], upstream: Upstream) -> Iterator[Deployment]:
    """A stock Hypercorn that serves the application; all settings come from the environment."""
    port = free_port()
    arguments = ("-b", f"127.0.0.1:{port}", "--graceful-timeout", str(GRACE), "llm_proxy.web.app:create_app()")
    program = ("hypercorn", "-k", "trio")
    with running_server(migrated_env, provider_settings(upstream), *arguments, port=port, program=program) as server:
        yield Deployment(server, upstream)


def stop(deployment: Deployment, env: dict[str, str], target: Target) -> dict[str, int]:
    """End the server and return how its requests ended."""
    assert deployment.server.stop() == 0, deployment.server.output
    assert "Traceback" not in deployment.server.output
    ledger_checks.verify(env)
    return dict(ledger_checks.outcomes(target))


def test_application_on_hypercorn_serves_and_settles(
    hypercorn: Deployment, migrated_env: dict[str, str], migrated_target: Target
) -> None:
    token = hypercorn.new_token(max_requests=2)

    async def ask() -> list[client.Response]:
        secret = token["token"]
        return [await hypercorn.chat(secret), await hypercorn.chat(secret, stream=True), await hypercorn.chat(secret)]

    assert hypercorn.server.call("GET", "/ready").content == {"status": "ready", "failing": []}
    plain, streamed, refused = trio.run(ask)

    assert (plain.status, plain.complete, plain.json()["object"]) == (200, True, "chat.completion")
    assert (streamed.status, streamed.complete) == (200, True)
    assert streamed.header("Content-Type") == "text/event-stream; charset=utf-8"
    assert streamed.body.endswith(b"data: [DONE]\n\n")
    assert (refused.status, refused.json()["error"]["code"]) == (429, "request_limit_exceeded")
    rows = aftermath.settled(hypercorn.server, token["id"], 2)
    assert aftermath.outcomes(rows) == {("ok", 200): 2}
    assert [row["output_tokens"] for row in rows] == [18, 18]
    assert aftermath.counter(hypercorn.server, token["id"]) == 2
    assert stop(hypercorn, migrated_env, migrated_target) == {"ok": 2}


def test_client_disconnect_on_hypercorn_ends_the_request(
    hypercorn: Deployment, migrated_env: dict[str, str], migrated_target: Target
) -> None:
    token = hypercorn.new_token()

    async def leave() -> None:
        async with client.connect(hypercorn.server.url) as connection:
            paced = chat_headers(token["token"], ("x-scripted-chunks", "1000"), ("x-scripted-gap", "0.05"))
            await connection.request("POST", "/v1/chat/completions", paced, chat_body(stream=True))
            await connection.head("POST")

    trio.run(leave)

    (row,) = aftermath.settled(hypercorn.server, token["id"], 1)
    assert (row["outcome"], row["status"]) == ("client_closed", 200)
    assert stop(hypercorn, migrated_env, migrated_target) == {"client_closed": 1}


def test_sigterm_on_hypercorn_cuts_long_requests_and_the_ledger_verifies(
    hypercorn: Deployment, migrated_env: dict[str, str], migrated_target: Target
) -> None:
    secret = hypercorn.new_secret()
    answers: list[client.Response] = []

    async def stream() -> None:
        paced = (("x-scripted-chunks", "1000"), ("x-scripted-gap", "0.05"))
        answers.append(await hypercorn.chat(secret, *paced, stream=True))

    async def terminate() -> None:
        async with trio.open_nursery() as nursery:
            for _ in range(STREAMS):
                nursery.start_soon(stream)
            await trio.to_thread.run_sync(lambda: hypercorn.upstream.wait(in_flight=STREAMS))
            hypercorn.server.terminate()

    trio.run(terminate)
    began = time.monotonic()
    found = stop(hypercorn, migrated_env, migrated_target)

    assert time.monotonic() - began < GRACE + 4
    assert [(answer.status, answer.complete) for answer in answers] == [(200, False)] * STREAMS
    assert sum(found.values()) == STREAMS
    assert found.keys() <= {"client_closed", "proxy_error"}
