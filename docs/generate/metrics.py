"""The reference of all metrics, from their declaration."""

from __future__ import annotations

from llm_proxy.metrics.families import SECTIONS, Family

_INTRODUCTION = """\
# Metrics

`/metrics` (`METRICS_PATH`) has all metrics in Prometheus' text format, without a token; `ENABLE_METRICS=false` turns it
off.

<!-- run: scrape -->
```bash
curl http://localhost:8080/metrics
```

- **Labels have bounded cardinality.** Each row lists the values of its labels; no label contains a token, a key, a path
  or a model, which clients could choose.
- **Counters and histograms** start at zero when the server starts. A counter's name ends in `_total`; a histogram has
  `_bucket` by upper bound (`le`), `_sum` and `_count`.
- **Several workers.** A scrape of one worker returns the metrics of all workers of its server. Counters and histograms
  are summed, also over workers that have ended, so that they never decrease while the server runs. Gauges are those of
  live workers; the last column says how they are combined. Values that are sampled, such as the length of a queue, are
  at most a second old for other workers. Scrape each server separately.

What to watch in the database, and when to act: [Monitoring the database](database/monitoring.md).
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
