from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random

import pytest
import trio

from tests.serving.answers import read_answers
from tests.serving.mutations import attack, spoilt

ROOT = Path(__file__).parents[2]
REQUESTS = 3000
AT_ONCE = 16


@contextmanager
def target(kind: str) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """A server in a process of its own, and its port."""
    command = [sys.executable, "-m", "tests.serving.mutation_target", kind]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        try:
            assert process.stdout is not None
            yield process, int(process.stdout.readline())
        finally:
            process.kill()


def open_files(process: subprocess.Popen[str]) -> int:
    return len(list(Path(f"/proc/{process.pid}/fd").iterdir()))


async def attack_all(process: subprocess.Popen[str], port: int) -> int:
    """Send all mutations, several at a time; return how many were sent until the server was gone or all had been."""
    random = Random(42)
    wires = spoilt(random, REQUESTS)
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
    """How long a good request takes."""
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


async def test_no_request_hurts_the_server() -> None:
    with target("ours") as (process, port):
        await seconds_of_a_request(port)
        before = open_files(process)
        assert await attack_all(process, port) == REQUESTS
        assert process.poll() is None
        assert min([await seconds_of_a_request(port) for _ in range(3)]) < 0.1
        with trio.fail_after(10):
            while open_files(process) > before:  # noqa: ASYNC110 - another process's files tell nobody
                await trio.sleep(0.1)


async def test_they_kill_the_server_that_this_one_replaces() -> None:
    """Else the test above proves nothing."""
    with target("stock") as (process, port):
        sent = await attack_all(process, port)
        assert process.wait(5) != 0
        assert sent < REQUESTS


@pytest.mark.parametrize("seed", [1, 2])
def test_the_same_seed_makes_the_same_requests(seed: int) -> None:
    assert list(spoilt(Random(seed), 50)) == list(spoilt(Random(seed), 50)) != list(spoilt(Random(3), 50))
