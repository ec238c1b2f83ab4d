"""Results as a Markdown table and as JSON."""

from __future__ import annotations

import time
from pathlib import Path

import attrs
import msgspec

from benchmarks import machine
from benchmarks.cpu import Outcome
from benchmarks.processes import ROOT

RESULTS = ROOT / "benchmarks" / "results"


def table(outcome: Outcome) -> str:
    """Return the medians as a Markdown table, the ratio last."""
    lines = [
        "| subject | µs CPU/request | lowest to highest | requests/s | p50 ms | p99 ms |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for subject in outcome.subjects:
        costs = [sample.cpu_us for sample in subject.samples]
        figures = (
            f"{subject.median(lambda sample: sample.cpu_us):.0f}",
            f"{min(costs):.0f} to {max(costs):.0f}",
            f"{subject.median(lambda sample: sample.rate):,.0f}",
            f"{subject.median(lambda sample: sample.p50_ms):.1f}",
            f"{subject.median(lambda sample: sample.p99_ms):.1f}",
        )
        lines.append(f"| {subject.name} | {' | '.join(figures)} |")
    ratios = ", ".join(f"{ratio:.2f}" for ratio in outcome.ratios)
    lines += ["", f"Ratio of the proxy to bare Hypercorn: **{outcome.ratio:.2f}** (rounds: {ratios})"]
    return "\n".join(lines)


def document(outcome: Outcome) -> str:
    """Return the table with what it was measured on, as a Markdown page."""
    plan = outcome.plan
    conditions = f"{plan.rounds} rounds of {plan.requests:,} requests on {plan.connections} connections"
    about = "\n".join(f"- {name}: {value}" for name, value in machine.describe().items())
    problems = "".join(f"\n- problem: {problem}" for problem in outcome.problems)
    return f"# CPU time per request\n\n{conditions}.\n\n{table(outcome)}\n\n{about}{problems}\n"


def save(outcome: Outcome, directory: Path = RESULTS) -> Path:
    """Write the page and the JSON side by side, named by the time; returns the page's path."""
    directory.mkdir(parents=True, exist_ok=True)
    page = directory / time.strftime("cpu-%Y%m%d-%H%M%S.md")
    page.write_text(document(outcome), encoding="utf-8")
    subjects = {subject.name: [attrs.asdict(sample) for sample in subject.samples] for subject in outcome.subjects}
    # The environment may hold a database's password.
    plan = attrs.asdict(outcome.plan, filter=attrs.filters.exclude("env"))
    data = {
        "plan": plan,
        "machine": machine.describe(),
        "subjects": subjects,
        "ratio": outcome.ratio,
        "ratios": outcome.ratios,
        "problems": outcome.problems,
    }
    page.with_suffix(".json").write_bytes(msgspec.json.format(msgspec.json.encode(data)))
    return page
