"""The results as tables, plots and checks."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from statistics import median

import attrs
from attrs import frozen

from benchmarks.findings import Chapter, Check, Plot, Series, Table, at_least, at_most, ratio
from benchmarks.load import BUSY
from benchmarks.peers import go_llm_proxy, gomodel, litellm, portkey
from benchmarks.peers.contender import OURS, TRAITS, Contender
from benchmarks.rig import Sample, bottlenecks
from benchmarks.targets import (
    CPU_OVER_GOMODEL,
    LONE_CPU_OVER_GOMODEL,
    LONE_OVER_GO_LLM_PROXY,
    OVER_GO_LLM_PROXY,
    OVER_LITELLM,
    OVER_PORTKEY,
)

CONNECTIONS = 32


@frozen
class _Target:
    """A bound of the ratio of our value to a peer's.

    Attributes:
        peer: its name.
        name: of the target, with its conditions.
        judge: `at_least` or `at_most`.
        values: of a contender, one for each round.
    """

    peer: str
    name: str
    judge: Callable[[str, float, float, str], Check]
    bound: float
    values: Callable[[Contender], Sequence[float]]


def _rates(contender: Contender) -> list[float]:
    return contender.values("rate")


def _lone_rates(contender: Contender) -> list[float]:
    return [sample.rate for sample in contender.singles]


def _costs(contender: Contender) -> list[float]:
    return contender.values("cpu_us")


def _lone_costs(contender: Contender) -> list[float]:
    return [sample.cpu_us for sample in contender.singles]


_MANY, _ONE = f"SQLite, {CONNECTIONS} connections", "SQLite, 1 connection"
_LITELLM, _PORTKEY = f"{litellm.NAME} without its database", f"{portkey.NAME} without keys"
_GO, _GOMODEL = f"{go_llm_proxy.NAME} without a ledger", f"{gomodel.NAME} without tokens"
_TARGETS = (
    _Target(litellm.NAME, f"Capacity over {_LITELLM}, {_MANY}", at_least, OVER_LITELLM, _rates),
    _Target(portkey.NAME, f"Capacity over {_PORTKEY}, {_MANY}", at_least, OVER_PORTKEY, _rates),
    _Target(go_llm_proxy.NAME, f"Capacity over {_GO}, {_MANY}", at_least, OVER_GO_LLM_PROXY, _rates),
    _Target(go_llm_proxy.NAME, f"Requests/s over {_GO}, {_ONE}", at_least, LONE_OVER_GO_LLM_PROXY, _lone_rates),
    _Target(gomodel.NAME, f"CPU per request over {_GOMODEL}, {_MANY}", at_most, CPU_OVER_GOMODEL, _costs),
    _Target(gomodel.NAME, f"CPU per request over {_GOMODEL}, {_ONE}", at_most, LONE_CPU_OVER_GOMODEL, _lone_costs),
)
_JUDGED = frozenset(target.peer for target in _TARGETS)


def write(
    contenders: Sequence[Contender],
    absent: Mapping[str, str],
    problems: Sequence[str],
    *,
    rounds: int,
    seconds: Mapping[int, float],
) -> Chapter:
    """Return the chapter.

    Args:
        contenders: the upstream first, then LLM Proxy, then its peers.
        absent: why other peers were not measured.
        problems: what went wrong.
        rounds: how many there were.
        seconds: of load, for each number of connections.
    """
    notes, flaws = _judge_bench(contenders)
    return Chapter(
        title="Other gateways side by side",
        method=" ".join([_describe(rounds, seconds), *notes]),
        tables=[tabulate_results(contenders), tabulate_traits(contenders)],
        plots=plot(contenders),
        checks=check(contenders),
        problems=[*problems, *flaws],
        raw={"seconds": dict(seconds), "samples": {contender.name: _raw(contender) for contender in contenders}},
        unchecked=[line for name, reason in absent.items() for line in _excuses(name, reason)],
    )


def _describe(rounds: int, seconds: Mapping[int, float]) -> str:
    return (
        "The same chat completion, of some 300 bytes and with an SDK's headers, through each gateway to the same "
        f"scripted upstream: closed loop on {CONNECTIONS} connections for {seconds[CONNECTIONS]:g} s, then on one for "
        f"{seconds[1]:g} s, in each of {rounds} rounds. Gateways are interleaved; a value is the median of its rounds, "
        "and a ratio that of the rounds' ratios. One worker process each, on loopback; logs, telemetry and retries of "
        "the peers are off, while LLM Proxy has everything on, with its ledger on SQLite. Each answer's content "
        "was compared with the upstream's before, and the upstream's count of requests with the load's after each "
        "load. Added latency is over the upstream called directly in the same round. CPU time and memory are those of "
        "all of a gateway's processes, which share cores with the load generator and the upstream."
    )


def _judge_bench(contenders: Sequence[Contender]) -> tuple[list[str], list[str]]:
    """Report bottlenecks of the bench: a problem only for peers with a target."""
    notes, flaws = [], []
    for contender in contenders[1:]:
        if contender.name in _JUDGED:
            flaws += bottlenecks(contender)
        else:
            notes += [f"{line}, so that its capacity is higher than shown." for line in bottlenecks(contender)]
    share = contenders[1].median("generator_share")
    if share <= BUSY:
        notes.append(f"On {contenders[1].name} the load generator used {share:.0%} of a core.")
    return notes, flaws


def _median_ms(samples: Sequence[Sample], percentile: str) -> float:
    return median(sample.ms(percentile) for sample in samples)


def added_ms(contender: Contender, upstream: Contender) -> float:
    """Return what a gateway adds to the median latency at one connection, the median of the rounds'."""
    pairs = zip(contender.singles, upstream.singles, strict=True)
    return median(through.ms("p50") - direct.ms("p50") for through, direct in pairs)


def tabulate_results(contenders: Sequence[Contender]) -> Table:
    """Return a row of medians for each contender."""
    upstream, proxy = contenders[:2]
    columns = (
        "gateway",
        "requests/s",
        "lowest to highest",
        f"{OURS} over it",
        "µs CPU/request",
        "p50 ms",
        "p99 ms",
        "added p50 ms, 1 connection",
        "memory MB",
        "load's share of a core",
        "upstream's",
    )
    rows = [
        (
            contender.name,
            contender.median("rate"),
            f"{min(_rates(contender)):,.0f} to {max(_rates(contender)):,.0f}",
            f"{ratio(_rates(proxy), _rates(contender)):.3g} x",
            contender.median("cpu_us"),
            _median_ms(contender.samples, "p50"),
            _median_ms(contender.samples, "p99"),
            "" if contender is upstream else added_ms(contender, upstream),
            median(contender.memory) / 1e6,
            f"{contender.median('generator_share'):.0%}",
            f"{contender.median('upstream_share'):.0%}",
        )
        for contender in contenders
    ]
    return Table(columns, rows)


def tabulate_traits(contenders: Sequence[Contender]) -> Table:
    """Return what each gateway does, one column for each."""
    shown = [(contender.name, contender.traits) for contender in contenders if contender.traits is not None]
    rows = [(words, *(str(getattr(traits, name)) for _, traits in shown)) for name, words in TRAITS.items()]
    return Table(("", *(name for name, _ in shown)), rows)


def check(contenders: Sequence[Contender]) -> list[Check]:
    """Return the targets for those peers that have one and were measured."""
    found = {contender.name: contender for contender in contenders}
    return [
        target.judge(
            target.name, ratio(target.values(found[OURS]), target.values(found[target.peer])), target.bound, "x"
        )
        for target in _TARGETS
        if target.peer in found
    ]


def _excuses(name: str, reason: str) -> list[str]:
    lines = [
        f"{target.name} ({'at least' if target.judge is at_least else 'at most'} {target.bound:g} x): {reason}"
        for target in _TARGETS
        if target.peer == name
    ]
    return lines or [f"{name} was not measured: {reason}"]


def plot(contenders: Sequence[Contender]) -> list[Plot]:
    """Return bars of capacity, and of CPU time."""
    name = f"{CONNECTIONS} connections, one worker each"
    rates = Series(name, [(contender.name, contender.median("rate")) for contender in contenders])
    costs = Series(name, [(contender.name, contender.median("cpu_us")) for contender in contenders])
    return [
        Plot("peers-capacity", "Capacity, the same load on each gateway", "", "requests/s", [rates], "bars"),
        Plot("peers-cpu", "CPU time per request", "", "µs CPU/request, logarithmic", [costs], kind="bars", log_y=True),
    ]


def _raw(contender: Contender) -> dict[str, object]:
    return {
        "many": [attrs.asdict(sample) for sample in contender.samples],
        "one": [attrs.asdict(sample) for sample in contender.singles],
        "resident_bytes": list(contender.memory),
    }
