"""The whole measurement, small: the real server between the upstream and the load."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import cpu
from benchmarks.cpu import LoadFailed, Plan, generate_load
from benchmarks.processes import ProcessFailed, Upstream
from benchmarks.proxy import Proxy


def test_all_subjects_are_measured_and_the_books_balance(tmp_path: Path) -> None:
    said: list[str] = []
    found = cpu.run(Plan(rounds=1, connections=4, requests=40, streamed=True), tmp_path, said.append)
    # So little load may well end before the generator has had anything else to do than to start.
    assert [problem for problem in found.problems if "generator" not in problem] == []
    assert len(found.subjects) == len(said) == 3
    # The proxy's share cannot be less than a tick; that of a bare answer can.
    assert found.subjects[-1].samples[0].cpu_us > 0
    assert (tmp_path / "proxy.log").read_text().count('"event":"request"') >= 40


def test_errors_end_the_measurement(tmp_path: Path) -> None:
    with Upstream.start("--error", "500:1") as upstream, pytest.raises(LoadFailed, match="500"):
        generate_load(["--url", f"{upstream.url}/v1/models", "--token", "sk-upstream", "--requests", "3"])


def test_proxy_that_cannot_start_says_why(tmp_path: Path) -> None:
    with pytest.raises(ProcessFailed, match="DB_DRIVER"):
        Proxy.start("http://127.0.0.1:9", tmp_path, {"DB_DRIVER": "paper"})
