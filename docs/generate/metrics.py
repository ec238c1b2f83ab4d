"""The reference of all metrics, from their declaration."""

from __future__ import annotations

from llm_proxy.metrics.families import SECTIONS, Family

_INTRODUCTION = """\
# Metrics

`/metrics` (`METRICS_PATH`) answers in Prometheus' text format, without a token; `ENABLE_METRICS=false` takes it away.

<!-- run: figures -->
```bash
curl http://localhost:8080/metrics
```

- **Labels are bounded.** Each has one of the values that its row names; none holds a token, a key, a path or a model,
  which clients could choose at will.
- **Counters and histograms** begin at zero when the server starts. A counter is shown with `_total` at the end of its
  name, a histogram as `_bucket` by upper bound (`le`), `_sum` and `_count`.
- **Several workers answer with one voice.** Whichever is asked shows the figures of all: counts and histograms are
  summed, also those of workers that have ended, so that they never go down while the server runs; gauges are those of
  the living, and the last column says how they come together. What is not counted as it happens, such as the length of
  a queue, is at most a second old for the other workers. Servers on several hosts are scraped one by one.

What to watch of the database, and when to worry, is told in [Monitoring](database/monitoring.md).
"""

_OVER_WORKERS = {
    "sum": "the sum",
    "lowest": "the lowest",
    "highest": "the highest",
    "any": "the same for all",
}


def page() -> str:
    """The whole page, in Markdown."""
    return "\n".join([_INTRODUCTION, *(_section(title, members) for title, members in SECTIONS.items())])


def _section(title: str, members: tuple[Family, ...]) -> str:
    rows = ["| metric | kind | labels | what it shows | over workers |", "|---|---|---|---|---|"]
    for family in members:
        labels = "; ".join(f"`{label.name}`: {label.values}" for label in family.labels) or "none"
        name = f"{family.name}_total" if family.kind == "counter" else family.name
        by_worker = any(label.name == "worker" for label in family.labels)
        over_workers = "one series each" if by_worker else _OVER_WORKERS[family.over_workers]
        rows.append(f"| `{name}` | {family.kind} | {labels} | {family.text} | {over_workers} |")
    return "\n".join([f"## {title}", "", *rows, ""])
