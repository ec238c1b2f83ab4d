"""The rounds: each gateway in turn with many connections, then with one."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from http import HTTPStatus
from pathlib import Path
from typing import Any

import attrs
import msgspec

from benchmarks.databases import Kind
from benchmarks.findings import Chapter
from benchmarks.load import CHAT as QUESTION
from benchmarks.peers import go_llm_proxy, gomodel, litellm, nginx, portkey
from benchmarks.peers.chapter import CONNECTIONS, write
from benchmarks.peers.contender import Contender, contend, contend_directly
from benchmarks.peers.installing import CACHE, Absent
from benchmarks.processes import Upstream
from benchmarks.proxy import call
from benchmarks.rig import Bench, LoadFailed, Rig, Sample, put_load

_SECONDS = 2.5
_SECONDS_OF_ONE = 1.0
#: At any scale: a just-in-time compiler needs time.
_WARM_UP = 3.0
_FEWEST = 0.3
#: Seconds for work after the last answer, before the CPU time is read.
_SETTLE = 0.5

_PEERS: dict[str, Callable[[Rig, Upstream, Path], Contender]] = {
    portkey.NAME: portkey.start,
    go_llm_proxy.NAME: go_llm_proxy.start,
    gomodel.NAME: gomodel.start,
    litellm.NAME: litellm.start,
    nginx.NAME: nginx.start,
}


def run(bench: Bench) -> list[Chapter]:
    """Measure LLM Proxy on SQLite and every peer that can be had. Raises LoadFailed and ProcessFailed."""
    with Rig(bench, "peers") as rig:
        upstream = rig.start_upstream()
        peers, absent = start_peers(rig, upstream, CACHE)
        served = rig.serve(Kind.SQLITE, upstream)
        contenders = [contend_directly(upstream), contend(served), *peers]
        answer = ask(contenders[0])
        problems = []
        for contender in contenders[1:]:
            problems += verify(contender, upstream, answer)
        for contender in contenders:
            _load(contender, upstream, CONNECTIONS, _WARM_UP)
        for number in range(1, bench.rounds + 1):
            for contender in contenders:
                problems += measure(contender, upstream, bench)
                rate, cost = contender.samples[-1].rate, contender.samples[-1].cpu_us
                bench.say(f"peers, round {number}: {contender.name}: {rate:,.0f} requests/s, {cost:,.0f} µs/request")
        problems += served.verify_ledger()
    seconds = {CONNECTIONS: _scale(bench, _SECONDS), 1: _scale(bench, _SECONDS_OF_ONE)}
    return [write(contenders, absent, problems, rounds=bench.rounds, seconds=seconds)]


def start_peers(rig: Rig, upstream: Upstream, cache: Path) -> tuple[list[Contender], dict[str, str]]:
    """Start every peer that can be had; returns them, and why the others cannot."""
    peers, absent = [], {}
    for name, start in _PEERS.items():
        try:
            peers.append(start(rig, upstream, cache))
        except Absent as error:
            absent[name] = str(error)
            rig.bench.say(f"NOT MEASURED: {name}: {error}")
    return peers, absent


def ask(contender: Contender) -> Any:
    """Ask for one completion; returns what must be the same through every gateway: content and usage.

    Raises:
        LoadFailed: the answer is none.
    """
    status, body = call("POST", contender.url, QUESTION, contender.headers)
    if status != HTTPStatus.OK:
        raise LoadFailed(f"{contender.name}: {status} {body.decode(errors='replace')}")
    answer = msgspec.json.decode(body)
    # Some gateways add members to these.
    message, usage = answer["choices"][0]["message"], answer["usage"]
    names = ("prompt_tokens", "completion_tokens", "total_tokens")
    return {"content": message["content"], "role": message["role"], **{name: usage[name] for name in names}}


def verify(contender: Contender, upstream: Upstream, expected: Any) -> list[str]:
    """Return what is wrong with one answer: its content, or that the upstream did not make it."""
    upstream.reset()
    answer, asked = ask(contender), upstream.counts()["requests"]
    problems = [] if answer == expected else [f"{contender.name}: its answer is {answer}, not {expected}"]
    return problems if asked == 1 else [*problems, f"{contender.name}: the upstream was asked {asked} times, not once"]


def measure(contender: Contender, upstream: Upstream, bench: Bench) -> Sequence[str]:
    """Add one round's samples to a contender; returns what went wrong."""
    sample, problems = _load(contender, upstream, CONNECTIONS, _scale(bench, _SECONDS))
    contender.samples.append(sample)
    contender.memory.append(contender.process.resident_bytes())
    single, more = _load(contender, upstream, 1, _scale(bench, _SECONDS_OF_ONE))
    contender.singles.append(single)
    return [*problems, *more]


def _load(contender: Contender, upstream: Upstream, connections: int, seconds: float) -> tuple[Sample, list[str]]:
    upstream.reset()
    before = contender.process.cpu_seconds()
    sample = put_load(contender, upstream, "--connections", str(connections), "--seconds", f"{seconds:g}")
    time.sleep(_SETTLE)
    spent = contender.process.cpu_seconds() - before
    sample = attrs.evolve(sample, cpu_us=spent / sample.requests * 1e6)
    served = upstream.counts()["requests"]
    if served == sample.requests:
        return sample, []
    return sample, [f"{contender.name}: the upstream served {served} requests, and {sample.requests} were answered"]


def _scale(bench: Bench, seconds: float) -> float:
    return max(_FEWEST, seconds * bench.scale)
