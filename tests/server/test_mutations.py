from __future__ import annotations

import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random
from typing import Any, cast

import trio
import trio.testing

from llm_proxy.server.context import ServerConfig, ServerContext
from llm_proxy.server.http2.connection import Http2Connection
from llm_proxy.server.transport import SocketTransport
from tests.server.answers import read_answers
from tests.server.applications import Echo
from tests.server.mutations import attack, mutated, mutated_http2

ROOT = Path(__file__).parents[2]
REQUESTS = 3000
AT_ONCE = 16


@contextmanager
def target(kind: str, reports: Path) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """Start a server process and return it and its port; its reports go into a file."""
    command = [sys.executable, "-m", "tests.server.mutation_target", kind]
    with (
        reports.open("w") as stderr,
        subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=stderr, text=True) as process,
    ):
        try:
            assert process.stdout is not None
            yield process, int(process.stdout.readline())
        finally:
            process.kill()


def open_files(process: subprocess.Popen[str]) -> int:
    return len(list(Path(f"/proc/{process.pid}/fd").iterdir()))


async def attack_all(process: subprocess.Popen[str], port: int) -> int:
    """Send all mutations, several at a time; return how many were sent before the server ended."""
    random = Random(42)
    wires = mutated(random, REQUESTS)
    sent = 0

    async def attacker() -> None:
        nonlocal sent
        for data in wires:
            if process.poll() is not None:
                return
            await attack(port, data, random)
            sent += 1
            if sent % 500 == 0 and process.poll() is None:
                await seconds_of_a_request(port)

    async with trio.open_nursery() as nursery:
        for _ in range(AT_ONCE):
            nursery.start_soon(attacker)
    return sent


async def seconds_of_a_request(port: int) -> float:
    """Return the duration of a valid request."""
    began = trio.current_time()
    try:
        with trio.fail_after(5):
            async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
                await stream.send_all(b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
                (answer,) = read_answers(b"".join([data async for data in stream]))
                assert answer.status == 200
    except OSError:
        return float("inf")
    return trio.current_time() - began


async def test_malformed_requests_neither_end_the_server_nor_write_to_its_log(tmp_path: Path) -> None:
    reports = tmp_path / "reports"
    with target("ours", reports) as (process, port):
        await seconds_of_a_request(port)
        before = open_files(process)
        assert await attack_all(process, port) == REQUESTS
        assert process.poll() is None
        assert min([await seconds_of_a_request(port) for _ in range(3)]) < 0.1
        with trio.fail_after(10):
            while open_files(process) > before:  # noqa: ASYNC110 - trio has no event for the files of another process
                await trio.sleep(0.1)
    assert reports.read_text() == ""


async def test_malformed_http2_does_not_write_to_the_log() -> None:
    """Any client that reaches the port can send them, without a token."""
    app = Echo()
    reports: list[BaseException] = []
    context = ServerContext(app, ServerConfig(report=reports.append), {})
    for data in mutated_http2(Random(42), REQUESTS // 2):
        client, server = socket.socketpair()
        with client, trio.fail_after(10):
            transport = SocketTransport(server, context.config.write_timeout)
            async with trio.open_nursery() as nursery:
                # Real connections have TLS; this test needs only the bytes inside it.
                nursery.start_soon(Http2Connection(context, transport, cast("Any", transport)).run)
                client.sendall(data)
                await trio.testing.wait_all_tasks_blocked()
                client.close()
    assert len(app.scopes) > REQUESTS // 20, "too little of it was HTTP to prove anything"
    assert reports == []


async def test_the_same_requests_end_hypercorn(tmp_path: Path) -> None:
    """Otherwise the first test would prove nothing."""
    with target("stock", tmp_path / "reports") as (process, port):
        sent = await attack_all(process, port)
        assert process.wait(5) != 0
        assert sent < REQUESTS
