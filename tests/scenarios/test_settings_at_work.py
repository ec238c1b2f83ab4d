"""What settings say happens in a real server: one with as many of them changed as go together."""
# ruff: noqa: ASYNC110 (the test looks at the server from outside, where there is no event to wait for)

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import partial

import pytest
import trio

from benchmarks.processes import Upstream
from tests.databases.kinds import Kind
from tests.databases.scratch import Databases
from tests.harness import client
from tests.harness.deployment import UPSTREAM_KEY, Deployment, chat_body, chat_headers, provider_settings
from tests.harness.server import running_server
from tests.scenarios.aftermath import wait_for

PAGE = "https://app.example.com"
STRANGER = "https://evil.example"
LIMIT = 64 * 1024
AT_ONCE = 3
CHAT = "/v1/chat/completions"


@pytest.fixture(scope="module")
def changed(
    databases: Databases, session_upstream: Upstream, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Deployment]:
    """A server that is set up like no other."""
    settings = {
        "CORS_ALLOWED_ORIGINS": PAGE,
        "TRUSTED_PROXIES": "127.0.0.0/8, 10.0.0.0/8",
        "MAX_REQUEST_SIZE": "64KiB",
        "MAX_CONCURRENT_REQUESTS": str(AT_ONCE),
        "REQUEST_TIMEOUT": "2s",
        "METRICS_PATH": "/metrics/of/mine",
        "LOG_FILE": str(tmp_path_factory.mktemp("log") / "proxy.log"),
        "DEFAULT_API_PROVIDER": "anthropic",
        **provider_settings(session_upstream),
    }
    with databases.migrated(Kind.SQLITE) as scratch, running_server(scratch.env, settings) as server:
        yield Deployment(server, session_upstream)
        assert server.stop() == 0, server.output
        assert server.events == []  # they are in the file


@pytest.fixture
def deployment(changed: Deployment, upstream: Upstream) -> Deployment:
    """The server, the upstream's counts at zero."""
    return changed


@pytest.fixture
def secret(deployment: Deployment) -> str:
    """A token for OpenAI."""
    return deployment.new_secret(deployment.project("openai")["id"])


def cors(response: client.Response) -> dict[str, str]:
    """What a response says to a browser; every name once."""
    told = [(name, value) for name, value in response.headers if name.startswith("access-control-") or name == "vary"]
    assert len(dict(told)) == len(told)
    return dict(told)


MARKED = {
    "vary": "Origin",
    "access-control-allow-origin": PAGE,
    "access-control-expose-headers": (
        "X-Request-ID, Request-ID, X-LLM-Proxy-Request-ID, X-LLM-Proxy-Overhead-Ms, Retry-After, X-Should-Retry"
    ),
}


def metrics(deployment: Deployment) -> dict[str, float]:
    """All metrics by name and labels, once nothing is left to be settled."""

    def look() -> dict[str, float] | None:
        text = deployment.server.call("GET", "/metrics/of/mine").content
        lines = [line.rpartition(" ") for line in text.splitlines() if not line.startswith("#")]
        shown = {name: float(value) for name, _, value in lines}
        return None if shown["llm_proxy_database_unsettled_requests"] else shown

    return wait_for(look, 5.0, lambda: "there is something left to be settled")


@pytest.mark.parametrize("target", [CHAT, "/anthropic/v1/messages", "/manage/tokens", "/health", "/nowhere"])
async def test_a_preflight_needs_no_token_and_leaves_no_trace(deployment: Deployment, target: str) -> None:
    before = metrics(deployment)
    asked = [("Origin", PAGE), ("Access-Control-Request-Method", "POST")]
    asked.append(("Access-Control-Request-Headers", "authorization,content-type"))
    response = await deployment.server.request("OPTIONS", target, asked)
    assert (response.status, response.body) == (204, b"")
    assert cors(response) == {
        "access-control-allow-origin": PAGE,
        "access-control-allow-methods": "GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS",
        "access-control-allow-headers": "authorization,content-type",
        "access-control-max-age": "7200",
        "vary": "Origin, Access-Control-Request-Method, Access-Control-Request-Headers",
    }
    after = metrics(deployment)
    ours = [name for name in after if name.startswith(("llm_proxy_database_batch", "llm_proxy_refusals"))]
    assert [after[name] for name in ours] == [before[name] for name in ours]
    assert deployment.upstream.counts()["requests"] == 0


@pytest.mark.parametrize("target", [CHAT, "/manage/tokens"])
async def test_a_preflight_of_another_origin_is_rejected(deployment: Deployment, target: str) -> None:
    asked = [("Origin", STRANGER), ("Access-Control-Request-Method", "POST")]
    response = await deployment.server.request("OPTIONS", target, asked)
    assert response.status == 401
    assert cors(response) == {"vary": "Origin"}


@pytest.mark.parametrize("stream", [False, True])
async def test_cors_headers_allow_pages_to_read_responses(deployment: Deployment, secret: str, *, stream: bool) -> None:
    answer = await deployment.chat(secret, ("Origin", PAGE), stream=stream)
    assert (answer.status, answer.complete) == (200, True)
    assert cors(answer) == MARKED
    other = await deployment.chat(secret, ("Origin", STRANGER))
    assert (other.status, cors(other)) == (200, {"vary": "Origin"})


@pytest.mark.parametrize(
    ("method", "target", "status"),
    [("POST", CHAT, 401), ("GET", "/manage/tokens", 401), ("GET", "/health", 200), ("GET", "/nowhere", 404)],
)
async def test_cors_headers_allow_pages_to_read_errors_and_management(
    deployment: Deployment, method: str, target: str, status: int
) -> None:
    response = await deployment.server.request(method, target, [("Origin", PAGE)])
    assert (response.status, cors(response)) == (status, MARKED)


async def test_cors_headers_of_the_provider_are_replaced(deployment: Deployment, secret: str) -> None:
    direct = await client.exchange(deployment.upstream.url, "POST", CHAT, chat_headers(UPSTREAM_KEY), chat_body())
    assert direct.header("access-control-expose-headers") == "X-Request-ID"
    response = await deployment.chat(secret, ("Origin", PAGE), ("x-scripted-status", "429"))
    assert (response.status, cors(response)) == (429, MARKED)


async def test_a_wrong_management_token_is_logged_with_the_address_that_a_trusted_proxy_names(
    deployment: Deployment,
) -> None:
    # The part to the left of the address that the proxy has written may be anything.
    headers = [("X-Forwarded-For", "198.51.100.1, 203.0.113.9, 10.0.0.2"), ("Authorization", "Bearer wrong")]
    assert (await deployment.server.request("GET", "/manage/projects", headers)).status == 401
    lines = (await trio.Path(deployment.server.settings["LOG_FILE"]).read_text()).splitlines()
    addresses = [line["address"] for line in map(json.loads, lines) if "wrong management token" in line["event"]]
    assert addresses == ["203.0.113.9"]


@pytest.mark.parametrize("length", [LIMIT, LIMIT + 1])
@pytest.mark.parametrize("framing", ["length", "chunks", "one chunk"])
async def test_max_request_size_is_exact_for_every_framing(
    deployment: Deployment, secret: str, length: int, framing: str
) -> None:
    body = chat_body().ljust(length)
    headers = chat_headers(secret)
    if framing == "length":
        response = await deployment.server.request("POST", CHAT, headers, body)
    else:
        step = 1000 if framing == "chunks" else length
        pieces = [body[start : start + step] for start in range(0, length, step)]
        framed = b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces) + b"0\r\n\r\n"
        headers.append(("Transfer-Encoding", "chunked"))
        response = await deployment.server.request("POST", CHAT, headers, framed)
    if length == LIMIT:
        assert response.status == 200
    else:
        assert (response.status, response.json()["error"]["code"]) == (413, "request_too_large")


async def test_a_chunked_body_above_max_request_size_gets_413(deployment: Deployment, secret: str) -> None:
    headers = [*chat_headers(secret), ("Transfer-Encoding", "chunked")]
    piece = b"4000\r\n" + b" " * 0x4000 + b"\r\n"
    async with client.connect(deployment.server.url) as connection:
        await connection.request("POST", CHAT, headers)
        await connection.send(piece)
        with trio.fail_after(5):
            while not metrics(deployment)['llm_proxy_upstream_in_flight_requests{provider="openai"}']:
                await trio.sleep(0.01)
        await connection.send(3 * piece + b"1\r\n \r\n")
        response = await connection.response("POST")
    assert (response.status, response.json()["error"]["code"]) == (413, "request_too_large")
    await trio.to_thread.run_sync(partial(deployment.upstream.wait, broken=1))


async def test_requests_above_max_concurrent_requests_get_overloaded(deployment: Deployment, secret: str) -> None:
    statuses: list[int] = []

    async def ask() -> None:
        statuses.append((await deployment.chat(secret)).status)

    deployment.upstream.hold()
    async with trio.open_nursery() as nursery:
        for _ in range(AT_ONCE):
            nursery.start_soon(ask)
        await trio.to_thread.run_sync(partial(deployment.upstream.wait, in_flight=AT_ONCE))
        refused = await deployment.chat(secret)
        deployment.upstream.release()
    assert statuses == [200] * AT_ONCE
    assert (refused.status, refused.json()["error"]["code"]) == (503, "overloaded")
    assert refused.header("retry-after") == "1"


async def test_request_timeout_ends_the_wait_for_the_provider(deployment: Deployment, secret: str) -> None:
    head = await deployment.chat(secret, ("x-scripted-delay", "5"))
    assert (head.status, head.json()["error"]["code"]) == (504, "upstream_timeout")
    body = await deployment.chat(secret, ("x-scripted-gap", "5"), stream=True)
    assert (body.status, body.complete) == (200, False)


def test_projects_without_a_provider_get_the_default_provider(deployment: Deployment) -> None:
    assert deployment.new_project()["provider"] == "anthropic"


async def test_log_file_gets_the_log(deployment: Deployment, secret: str) -> None:
    response = await deployment.chat(secret)
    log = trio.Path(deployment.server.settings["LOG_FILE"])
    with trio.fail_after(5):
        # The line comes after the answer.
        while f'"{response.header("x-llm-proxy-request-id")}"' not in await log.read_text():
            await trio.sleep(0.01)


def test_metrics_are_at_metrics_path(deployment: Deployment) -> None:
    assert deployment.server.call("GET", "/metrics").status == 404
    shown = metrics(deployment)
    assert shown["llm_proxy_database_settle_lag_seconds"] == 0
    assert shown["llm_proxy_log_lines_lost_total"] == 0


def test_metrics_are_off_with_enable_metrics_false(databases: Databases, upstream: Upstream) -> None:
    with databases.migrated(Kind.SQLITE) as scratch:
        settings = {**provider_settings(upstream), "ENABLE_METRICS": "false"}
        with running_server(scratch.env, settings) as server:
            assert server.call("GET", "/metrics").status == 404
            assert "/metrics" not in server.call("GET", "/openapi.json").content["paths"]
            assert server.stop() == 0, server.output
