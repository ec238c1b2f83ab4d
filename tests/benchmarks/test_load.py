"""The load generator, against the scripted upstream."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest

from benchmarks.processes import ROOT, Upstream


def generate(upstream: Upstream, *options: str) -> tuple[int, Any, str]:
    url = f"{upstream.url}/v1/chat/completions"
    command = [sys.executable, "-m", "benchmarks.load", "--url", url, "--connections", "4", *options]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    return done.returncode, msgspec.json.decode(done.stdout), done.stderr


@pytest.mark.parametrize("stream", [(), ("--stream",)])
def test_load_sends_exactly_the_requested_requests(upstream: Upstream, stream: tuple[str, ...]) -> None:
    status, report, _ = generate(upstream, "--requests", "30", "--token", "sk-real", *stream)
    counts = upstream.wait(connections_open=0)
    assert status == 0
    assert (report["requests"], report["statuses"], report["errors"]) == (30, {"200": 30}, {})
    assert (counts["requests"], counts["connections_accepted"]) == (30, 4)
    assert report["latency_ms"]["p50"] <= report["latency_ms"]["p99"] <= report["latency_ms"]["max"]
    assert report["first_byte_ms"]["mean"] <= report["latency_ms"]["mean"]
    assert report["rate"] > 0
    assert report["cpu_seconds"] > 0


def test_errors_are_counted_by_status(upstream: Upstream) -> None:
    status, report, stderr = generate(upstream, "--requests", "5", "--token", "wrong")
    assert status == 1
    assert report["errors"] == {"401": 5}
    assert "401" in stderr


def test_open_loop_has_a_rate_and_intended_latencies(upstream: Upstream) -> None:
    options = ("--requests", "20", "--rate", "200", "--token", "sk-real")
    status, report, _ = generate(upstream, *options)
    assert (status, report["requests"], report["intended_rate"]) == (0, 20, 200.0)
    assert report["intended_latency_ms"]["mean"] >= report["latency_ms"]["mean"]
    assert report["lag_ms"]["max"] >= 0


def test_tokens_of_a_file_take_turns(upstream: Upstream, tmp_path: Path) -> None:
    tokens = tmp_path / "tokens"
    tokens.write_text("sk-real\nwrong\nwrong-too\n")
    _, report, _ = generate(upstream, "--requests", "9", "--tokens", str(tokens))
    assert report["statuses"] == {"200": 3, "401": 6}


def test_load_without_a_server_fails_with_one_line(upstream: Upstream) -> None:
    command = [sys.executable, "-m", "benchmarks.load", "--url", "http://127.0.0.1:9/", "--requests", "1"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "error: cannot connect to 127.0.0.1:9: connection refused\n"
