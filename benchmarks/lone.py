"""One request at a time: CPU time per request and added latency, over those of a bare app on stock Hypercorn.

Most installations see requests one by one. Then nothing is shared: each request pays for its own transaction, its own
passes of the scheduler, and its own system calls.
"""

from __future__ import annotations

import statistics

import attrs

from benchmarks.cpu import GET, REFERENCE, Costed, measure_in_turn, start_hypercorn, start_proxies
from benchmarks.databases import NAMES
from benchmarks.findings import Chapter, Table, at_most, ratio
from benchmarks.rig import CHAT, KEY, Bench, Rig, bottlenecks, check_upstream
from benchmarks.targets import LONE_CPU_RATIO, LONE_P50_RATIO

_REQUESTS = 2000


def run(bench: Bench) -> list[Chapter]:
    """Measure all subjects in turn, on one connection each. Raises LoadFailed and ProcessFailed."""
    requests = bench.scaled(_REQUESTS, 1)
    with Rig(bench, "lone") as rig:
        upstream = rig.start_upstream()
        url, process = start_hypercorn(rig, "benchmarks.hello:app")
        bare = Costed(REFERENCE, [(*GET, "--url", f"{url}/")], process=process)
        direct = Costed(
            "the upstream itself", [("--url", upstream.url + CHAT, "--token", KEY)], process=upstream.process
        )
        proxies = start_proxies(rig, upstream)
        subjects = [bare, direct, *(subject for _, subject in proxies)]
        measure_in_turn(bench, "lone", upstream, subjects, 1, requests)
        problems = check_upstream(upstream, (sample for subject in subjects[1:] for sample in subject.samples))
        for served, subject in proxies:
            problems += [*bottlenecks(subject), *served.verify_ledger()]
    bare_ms, direct_ms = _p50(bare), _p50(direct)
    rows: list[tuple[str | float, ...]] = [
        (bare.name, bare.median("cpu_us"), "1.00", statistics.median(bare_ms), "", "", bare.median("rate"))
    ]
    checks = []
    for served, subject in proxies:
        name, own = NAMES[served.kind], _p50(subject)
        added = [mine - theirs for mine, theirs in zip(own, direct_ms, strict=True)]
        cpu, latency = ratio(subject.values("cpu_us"), bare.values("cpu_us")), ratio(added, bare_ms)
        medians = (subject.median("cpu_us"), f"{cpu:.2f}", statistics.median(own), statistics.median(added))
        rows.append((subject.name, *medians, f"{latency:.2f}", subject.median("rate")))
        checks += [
            at_most(f"CPU per lone request over bare Hypercorn, {name}", cpu, LONE_CPU_RATIO[served.kind], "x"),
            at_most(f"Added p50 over bare Hypercorn's own, {name}", latency, LONE_P50_RATIO[served.kind], "x"),
        ]
    return [
        Chapter(
            title="One request at a time",
            method=(
                f"Each subject gets {requests:,} requests in each round ({bench.rounds} of them), one after the other "
                "on one connection. The proxy serves chat completions from the scripted upstream; the bare application "
                "gets a GET with few headers and answers with a few bytes. Added latency is the median through the "
                "proxy less the median of the upstream called directly. CPU time is that of all threads, until the "
                "last request is settled; a database server's own is not in it. Each value is the median of the "
                "rounds, each ratio the median of the rounds' ratios."
            ),
            tables=[
                Table(
                    ("subject", "µs CPU per request", "ratio", "p50 ms", "added p50 ms", "over bare p50", "requests/s"),
                    rows,
                )
            ],
            checks=checks,
            problems=problems,
            raw={"samples": {subject.name: list(map(attrs.asdict, subject.samples)) for subject in subjects}},
        )
    ]


def _p50(subject: Costed) -> list[float]:
    return [sample.ms("p50") for sample in subject.samples]
