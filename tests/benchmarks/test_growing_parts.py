"""Streams, growth and memory: the measurements in small, and the past that growth begins with."""

from __future__ import annotations

import http.client
import itertools
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest

from benchmarks import bodies, cpu, growth, memory, rig, streamed, streaming
from benchmarks.databases import Databases, Kind, Scratch
from benchmarks.fill import Past, fill
from benchmarks.findings import Chapter
from benchmarks.load import CHAT
from benchmarks.memory import Reading, slope
from benchmarks.rig import Bench
from benchmarks.targets import (
    ADDED_FIRST_BYTE_MS,
    BYTES_PER_REQUEST,
    CHUNK_CPU_RATIO,
    HOT_TOKEN,
    MANY_CONNECTIONS,
    MANY_ROWS,
    STREAM_KB,
)
from db.database import opened
from db.options import Options
from db.queries import ledger
from db.schema import requests, tokens, usage_hourly
from llm_proxy.secrets.encryption import KeyRing
from llm_proxy.tokens import digest


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bench]:
    for part in (cpu, streamed):
        monkeypatch.setattr(part, "SETTLE", 0.05)
    databases = Databases()
    yield Bench(tmp_path, databases, [Kind.SQLITE], 1, 0.01, lambda _: None)
    databases.close()


def problems_of(chapter: Chapter) -> list[str]:
    """A busy machine is no failure: it may let chunks pile up, or the generator have nothing to do but to start."""
    words = ("bottleneck", "together with others")
    return [problem for problem in chapter.problems if not any(word in problem for word in words)]


def bounds_of(chapter: Chapter) -> list[float]:
    return [check.bound for check in chapter.checks]


def test_streams_are_measured_and_held(bench: Bench) -> None:
    plan = streamed.Plan(
        rounds=1,
        first_bytes=5,
        streams=2,
        chunks=4,
        busy_streams=2,
        busy_chunks=30,
        held=20,
        held_chunks=6,
        held_gap=0.1,
        opening=0.1,
        warm_up=50,
    )
    paced, held = streaming.run(bench, plan)
    assert problems_of(paced) == problems_of(held) == []
    assert bounds_of(paced) == [ADDED_FIRST_BYTE_MS, CHUNK_CPU_RATIO]
    times, costs = paced.tables
    # The gaps are those of the upstream, through the proxy as without it.
    assert [float(row[2]) >= 19 for row in times.rows] == [True, True]
    assert [row[0] for row in costs.rows] == ["LLM Proxy, SQLite", "bare app, stock Hypercorn"]
    streams, size = held.checks
    assert (streams.measured, streams.bound, size.bound) == (20, 20, STREAM_KB)
    # Memory comes in pages, and more than those of twenty streams may have been there before.
    assert math.isfinite(size.measured)


def test_streams_that_are_never_all_open_miss_both_targets() -> None:
    report = {"statuses": {"200": 8}, "gap_ms": {"p50": 1, "p99": 2}}
    held = streaming.Held(report, idle=1_000_000, at_once=7)
    chapter = streaming.tell_held(streamed.Plan(rounds=1, held=8), "a server", held)
    assert chapter.checks[0].measured == 7
    assert math.isnan(chapter.checks[1].measured)
    assert [check.met for check in chapter.checks] == [False, False]


def test_memory_of_a_stream_is_the_growth_over_an_idle_server() -> None:
    held = streaming.Held({"statuses": {"200": 10}}, idle=1_000_000, at_once=10, resident=[1_900_000, 2_000_000])
    assert (held.each(), held.whole) == (100, 10)


def load_from_here(options: Sequence[str]) -> dict[str, Any]:
    """Replace the load generator's process, whose start takes longer than so few requests."""
    given = dict(zip(options[::2], options[1::2], strict=True))
    secrets = Path(given["--tokens"]).read_text().split() if "--tokens" in given else [given["--token"]]
    body = Path(given["--body"]).read_bytes() if "--body" in given else msgspec.json.encode(CHAT)
    extra = dict([given["--header"].split(": ")]) if "--header" in given else {}
    connection = http.client.HTTPConnection(given["--url"].split("/")[2])
    number = int(given["--requests"])
    for secret in itertools.islice(itertools.cycle(secrets), number):
        headers = {"Authorization": f"Bearer {secret}", "Content-Type": "application/json", **extra}
        connection.request("POST", "/v1/chat/completions", body, headers)
        response = connection.getresponse()
        assert (response.status, len(response.read()) == len(body)) == (200, bool(extra))
    connection.close()
    return {"requests": number, "rate": 1.0, "seconds": 1.0, "cpu_share": 0.0}


def test_growth_is_measured_and_the_ledger_verifies(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rig, "generate_load", load_from_here)
    plan = growth.Plan(
        rounds=1,
        requests=12,
        rows=(50,),
        owners=5,
        few_tokens=2,
        many_tokens=20,
        spread=10,
        connections=(1, 2, 4),
        each=2,
        usual=2,
    )
    sizes = bodies.Plan(1, sizes=(1000, 50_000), volume=100_000, most=4, connections=2)
    rows, owners, connections, moved = growth.run(bench, plan, sizes)
    assert [problems_of(chapter) for chapter in (rows, owners, connections, moved)] == [[]] * 4
    bounds = [bounds_of(chapter) for chapter in (rows, owners, connections)]
    assert bounds == [[MANY_ROWS], [HOT_TOKEN], [MANY_CONNECTIONS]]
    assert [row[1] for row in rows.tables[0].rows] == ["50 rows"]
    assert [row[1] for row in owners.tables[0].rows] == [
        "2 exist, load on one",
        "20 exist, load on 10",
        "20 exist, load on one",
    ]
    assert [row[1] for row in connections.tables[0].rows] == ["1 connections", "2 connections", "4 connections"]
    assert [row[:2] for row in moved.tables[0].rows][::2] == [
        ["request", "1 KB"],
        ["request and answer", "1 KB"],
        ["request", "50 KB"],
        ["request and answer", "50 KB"],
    ]


def test_a_body_has_the_requested_size() -> None:
    assert [abs(len(bodies.body(size)) - size) < 100 for size in (1000, 100_000)] == [True, True]


def test_memory_is_read_while_requests_are_served(bench: Bench) -> None:
    plan = memory.Plan(first=100, step=100, steps=2, streamed_connections=1, plain_connections=3)
    (chapter,) = memory.run(bench, plan)
    assert problems_of(chapter) == []
    assert [check.bound for check in chapter.checks] == [BYTES_PER_REQUEST]
    counts = [reading["requests"] for reading in chapter.raw["readings"]]
    assert counts == sorted(counts)
    assert (counts[0] >= 100, counts[-1]) == (True, 300)


def test_growth_of_memory_is_the_slope_of_its_readings() -> None:
    level = [Reading(number * 1000, 5_000_000) for number in range(1, 9)]
    assert slope(level) == 0
    leak = [Reading(number * 1000, 5_000_000 + number * 32_000 + number % 2) for number in range(1, 9)]
    assert slope(leak) == pytest.approx(32, abs=0.01)
    assert slope(leak) > BYTES_PER_REQUEST
    assert math.isnan(slope(leak[:1]))


def test_a_filled_database_verifies(migrated_database: Scratch, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.fill._BLOCK", 20)
    filled = fill(migrated_database, Past(tokens=3, requests=100), "sk-real")
    with opened(migrated_database.target, Options()) as database:
        assert database.read_now(ledger.verify) == []
        settled = database.read_now(lambda connection: connection.execute(requests.select()).all())
        owners = database.read_now(lambda connection: connection.execute(tokens.select()).all())
        sums = database.read_now(lambda connection: connection.execute(usage_hourly.select()).all())
    assert len({row.id for row in settled}) == 100
    assert sum(row.request_count for row in owners) == sum(row.requests for row in sums) == 100
    assert sum(row.input_tokens for row in sums) == sum(row.input_tokens for row in settled)
    assert {row.digest for row in owners} == {digest(secret) for secret in filled.secrets}
    KeyRing.from_setting(filled.encryption_key)


def test_a_database_can_be_filled_without_requests(bench: Bench) -> None:
    with bench.databases.migrated(Kind.SQLITE) as scratch:
        assert len(fill(scratch, Past(tokens=2, requests=0), "sk-real").secrets) == 2
