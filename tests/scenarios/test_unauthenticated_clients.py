"""What a client without a good token can hold: connections, memory, slots, CPU time and time of the database.

Real requests are served meanwhile, through a proxy that has few slots and judges every body.
"""
# ruff: noqa: ASYNC110 (what is waited for happens in another process)

from __future__ import annotations

import json
import ssl
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path

import pytest
import trio

from benchmarks.processes import Upstream
from llm_proxy.tokens import new_secret
from tests.databases.kinds import Kind
from tests.databases.scratch import Databases
from tests.harness import client
from tests.harness.certificates import Authority
from tests.harness.deployment import UPSTREAM_KEY, Deployment, chat_body, chat_headers, provider_settings
from tests.harness.server import MANAGEMENT_TOKEN, READY_SECONDS, running_server
from tests.scenarios import aftermath
from tests.server.http2.client import Http2Client, Reply, connect_http2

CHAT = "/v1/chat/completions"
#: Requests that the proxy serves at once.
SLOTS = 5
MIB = 1024 * 1024
#: Seconds that a real request may take while strangers are at work, on a machine that is busy with them too.
PROMPT = 3.0
#: Seconds after which a client that sends next to nothing is disconnected, with some for a busy machine.
PATIENCE = 10.0
SLACK = 3.0


def write_providers(folder: Path, upstream: Upstream) -> str:
    path = folder / "providers.yaml"
    rules = {"param_whitelist": {"model": ["gpt-scripted*"]}}
    path.write_text(json.dumps({"apis": {"openai": {"base_url": upstream.url, **rules}}}))
    return str(path)


@pytest.fixture(scope="module")
def module_guarded(
    databases: Databases, session_upstream: Upstream, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Deployment]:
    settings = {
        "API_CONFIG_PATH": write_providers(tmp_path_factory.mktemp("providers"), session_upstream),
        "MAX_CONCURRENT_REQUESTS": str(SLOTS),
        "LOG_LEVEL": "error",
    }
    with databases.migrated(Kind.SQLITE) as scratch, running_server(scratch.env, settings) as server:
        yield Deployment(server, session_upstream)
        assert server.stop() == 0, server.output


@pytest.fixture
def guarded(module_guarded: Deployment, upstream: Upstream) -> Deployment:
    return module_guarded


def head(secret: str, length: int, *more: str, method: str = "POST", path: str = CHAT) -> bytes:
    """The head of a request whose body does not come with it."""
    fields = "".join(f"{line}\r\n" for line in more)
    return (
        f"{method} {path} HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {secret}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {length}\r\n{fields}\r\n"
    ).encode()


async def serve_real_requests(deployment: Deployment, secret: str, count: int = 20) -> None:
    """Real requests, one after the other: every one succeeds, and soon."""
    for _ in range(count):
        began = time.monotonic()
        assert (await deployment.chat(secret)).status == 200
        assert time.monotonic() - began < PROMPT


@asynccontextmanager
async def many(url: str, count: int) -> AsyncIterator[list[client.Connection]]:
    async with AsyncExitStack() as stack:
        yield [await stack.enter_async_context(client.connect(url)) for _ in range(count)]


async def answer(connection: client.Connection) -> int:
    return (await connection.response("POST")).status


def grown(deployment: Deployment, before: int) -> float:
    """MiB that the server has taken since."""
    return (deployment.server.process.resident_bytes() - before) / MIB


async def test_a_thousand_heads_without_bodies_hold_no_slot_and_little_memory(guarded: Deployment) -> None:
    secret = guarded.new_secret()
    await serve_real_requests(guarded, secret, 5)
    before = guarded.server.process.resident_bytes()
    reads = transactions(guarded, "read")
    async with many(guarded.server.url, 1000) as connections:
        async with trio.open_nursery() as nursery:
            for connection in connections:
                nursery.start_soon(connection.send, head(new_secret(), 100_000))
            nursery.start_soon(serve_real_requests, guarded, secret)
        assert grown(guarded, before) < 60
        with trio.fail_after(PATIENCE):
            assert {await answer(connection) for connection in connections} == {401}
        # They share their look-ups.
        assert transactions(guarded, "read") - reads < 100
        with trio.fail_after(PATIENCE + SLACK):
            for connection in connections:
                assert await connection.receive() == b"", "the connection is closed behind the answer"
    await serve_real_requests(guarded, secret, 5)


def transactions(deployment: Deployment, kind: str) -> int:
    return aftermath.metric(deployment.server, "llm_proxy_database_transactions_total", f'kind="{kind}"')


async def test_bodies_of_unknown_tokens_are_not_kept(guarded: Deployment) -> None:
    secret = guarded.new_secret()
    await serve_real_requests(guarded, secret, 5)
    before = guarded.server.process.resident_bytes()
    largest = 0.0
    statuses: list[int] = []

    async def push() -> None:
        async with client.connect(guarded.server.url) as connection:
            await connection.send(head(new_secret(), 60 * MIB))
            with suppress(trio.BrokenResourceError):
                for _ in range(60):
                    await connection.send(bytes(MIB))
            statuses.append(await answer(connection))

    async with trio.open_nursery() as nursery:
        for _ in range(8):
            nursery.start_soon(push)
        for _ in range(20):
            await serve_real_requests(guarded, secret, 1)
            largest = max(largest, grown(guarded, before))
        nursery.cancel_scope.deadline = trio.current_time() + PATIENCE
    assert largest < 30
    assert set(statuses) <= {401}


async def test_a_dripping_body_is_ended_after_ten_seconds(guarded: Deployment) -> None:
    secret = guarded.new_secret()
    ended: dict[str, tuple[float, int]] = {}

    async def drip(name: str, token: str, *more: str) -> None:
        began = time.monotonic()
        async with client.connect(guarded.server.url) as connection, trio.open_nursery() as nursery:

            async def send() -> None:
                with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
                    await connection.send(head(token, 100_000, *more))
                    while True:
                        await trio.sleep(1)
                        await connection.send(b" ")

            nursery.start_soon(send)
            status = await answer(connection)
            with suppress(trio.BrokenResourceError):
                await connection.receive()
            ended[name] = time.monotonic() - began, status
            nursery.cancel_scope.cancel()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(drip, "unknown", new_secret())
        nursery.start_soon(drip, "malformed", "nothing")
        nursery.start_soon(drip, "unknown, expecting", new_secret(), "Expect: 100-continue")
        nursery.start_soon(drip, "known", secret)
        nursery.start_soon(serve_real_requests, guarded, secret)
    assert {name: status for name, (_, status) in ended.items()} == {
        "unknown": 401,
        "malformed": 401,
        "unknown, expecting": 401,
        "known": 408,
    }
    assert max(seconds for name, (seconds, _) in ended.items() if name != "known") < PATIENCE + SLACK
    assert PATIENCE - 1 < ended["known"][0] < 2 * PATIENCE + SLACK


async def test_dripping_bodies_of_valid_tokens_take_no_slot(guarded: Deployment) -> None:
    """As many slow bodies as there are slots turn others away for ten seconds, and no longer."""
    secret = guarded.new_secret()
    async with many(guarded.server.url, 2 * SLOTS) as connections:
        for connection in connections:
            await connection.send(head(secret, 100_000))
        with trio.fail_after(5):
            # The proxy may not have seen all heads yet.
            while (await guarded.chat(secret)).status != 503:
                await trio.sleep(0.05)
        with trio.fail_after(PATIENCE + SLACK):
            statuses = [await answer(connection) for connection in connections]
    assert sorted(statuses) == [408] * SLOTS + [503] * SLOTS
    assert (await guarded.chat(secret)).status == 200


async def test_a_bogus_request_costs_no_more_than_a_good_one(guarded: Deployment) -> None:
    secret = guarded.new_secret()
    spent: dict[str, float] = {}
    for name, token, count in (("warm", secret, 50), ("good", secret, 300), ("bogus", new_secret(), 300)):
        before = guarded.server.process.cpu_seconds()
        async with client.connect(guarded.server.url) as connection:
            for _ in range(count):
                await connection.request("POST", CHAT, chat_headers(token), chat_body())
                assert await answer(connection) == (401 if name == "bogus" else 200)
        spent[name] = (guarded.server.process.cpu_seconds() - before) / count
    assert spent["bogus"] < spent["good"]


async def test_the_control_plane_does_not_buffer_unauthenticated_bodies(guarded: Deployment) -> None:
    secret = guarded.new_secret()
    before = guarded.server.process.resident_bytes()
    async with many(guarded.server.url, 100) as connections:
        for connection in connections:
            await connection.send(head(new_secret(), MIB, path="/manage/projects"))
            with suppress(trio.BrokenResourceError):
                await connection.send(bytes(MIB // 2))
        await serve_real_requests(guarded, secret)
        assert grown(guarded, before) < 30
        with trio.fail_after(PATIENCE):
            assert {await answer(connection) for connection in connections} <= {401, 429}


async def test_ten_http2_connections_of_a_hundred_heads_hold_nothing(
    databases: Databases, upstream: Upstream, tmp_path: Path
) -> None:
    authority = Authority.make(tmp_path)
    certificate = str(authority.issue("localhost", "localhost"))
    trusting = ssl.create_default_context(cafile=authority.file)
    settings = {
        **provider_settings(upstream),
        "ENABLE_TLS": "true",
        "TLS_CERT_FILE": certificate,
        "TLS_KEY_FILE": certificate,
        "MAX_CONCURRENT_REQUESTS": str(SLOTS),
    }
    with databases.migrated(Kind.SQLITE) as scratch, running_server(scratch.env, settings, ready=False) as server:
        await accepting(server.port)
        async with AsyncExitStack() as stack:
            good = await stack.enter_async_context(connect_http2(server.port, trusting))
            wanted = {"name": "p", "api_key": UPSTREAM_KEY}
            project = await post(good, "/manage/projects", MANAGEMENT_TOKEN, json.dumps(wanted).encode())
            wanted = {"project_id": json.loads(project.body)["id"]}
            token = await post(good, "/manage/tokens", MANAGEMENT_TOKEN, json.dumps(wanted).encode())
            secret = json.loads(token.body)["token"]
            assert (await post(good, CHAT, secret, chat_body())).status == 200

            connections = [await stack.enter_async_context(connect_http2(server.port, trusting)) for _ in range(10)]
            before = server.process.resident_bytes()
            asked: list[tuple[Http2Client, int]] = []
            extra = [("authorization", f"Bearer {new_secret()}")]
            for connection in connections:
                numbers = [await connection.ask(CHAT, method="POST", extra=extra, end=False) for _ in range(100)]
                asked += [(connection, number) for number in numbers]
                assert (await post(good, CHAT, secret, chat_body())).status == 200
            with trio.fail_after(PATIENCE):
                assert {(await connection.reply(number)).status for connection, number in asked} == {401}
            assert (server.process.resident_bytes() - before) / MIB < 60
            assert (await post(good, CHAT, secret, chat_body())).status == 200
        assert await server.stopped() == 0, server.output


async def accepting(port: int) -> None:
    """Wait until somebody listens on this port."""
    with trio.fail_after(READY_SECONDS):
        while True:
            with suppress(OSError):
                return await trio.aclose_forcefully(await trio.open_tcp_stream("127.0.0.1", port))
            await trio.sleep(0.05)


async def post(connection: Http2Client, path: str, token: str, body: bytes) -> Reply:
    extra = [("authorization", f"Bearer {token}"), ("content-type", "application/json")]
    number = await connection.ask(path, method="POST", extra=extra, end=False)
    await connection.send(number, body, end=True)
    with trio.fail_after(PROMPT):
        return await connection.reply(number)
