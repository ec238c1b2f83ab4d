"""What is shown in the end: figures in tables, and the latencies as a picture."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import click

from llm_proxy.cli.output import Column, printable, table
from llm_proxy.load import Histogram, Plan, Tally, report

_PERCENTILES = (50, 90, 95, 99, 99.9)
_TIMES = [Column(""), *(Column(f"p{share:g}", number=True) for share in _PERCENTILES), Column("max", number=True)]
_ERRORS = [Column("COUNT", number=True), Column("ERROR")]

#: Of all requests, the share that may wait for a connection before it is worth a word.
_MANY = 0.01

_PARTS = 12
_WIDTH = 40
_EIGHTHS = " ▏▎▍▌▋▊▉"
_FULL = "█"

#: What came instead of an answer, in words.
_FAILURES = {
    "Truncated": "the connection was closed before the answer was complete",
    "BadAnswer": "the answer is not sound HTTP/1.1",
    "Timeout": "no complete answer within --timeout",
    "ConnectionRefusedError": "the connection was refused",
    "ConnectionResetError": "the connection was reset",
    "BrokenPipeError": "the connection was closed while the request was sent",
}


def show_summary(plan: Plan, tally: Tally) -> None:
    """Print what was measured to stdout, and what casts doubt on it to stderr."""
    found = report(plan, tally)
    click.echo(_headline(plan, tally))
    if tally.answered:
        click.echo(f"\n{table(_TIMES, list(_rows(plan, tally)))}")
        click.echo(f"\n{_title(plan)}\n{picture(_shown(plan, tally))}")
    errors = [*_status_errors(tally), *_failures(tally)]
    if errors:
        click.echo(f"\n{table(_ERRORS, errors)}")
    click.echo(f"\n{size(tally.response_bytes)} received; the load generator used {found['cpu_share']:.0%} of a core.")
    for doubt in _doubts(tally, busy=found["is_bottleneck"], behind=found.get("behind", False)):
        click.echo(f"{click.style('warning:', fg='yellow', bold=True)} {doubt}", err=True)


def _headline(plan: Plan, tally: Tally) -> str:
    rate = tally.answered / tally.elapsed if tally.elapsed else 0.0
    how = f"{plan.connections} connection{'s' * (plan.connections != 1)}"
    if plan.rate is not None:
        how += f", {plan.rate:g} requests/s intended"
    text = f"{tally.answered:,} answers in {tally.elapsed:.1f} s over {how}: {rate:,.1f} requests/s"
    if tally.failed:
        text += f", {tally.failed:,} failed"
    return click.style(text, bold=True)


def _rows(plan: Plan, tally: Tally) -> Iterator[list[str]]:
    times = {"latency": tally.latencies, "first byte": tally.first_bytes, "gap in streams": tally.gaps}
    if plan.rate is not None:
        # What people would wait comes first; from sending on, the server's stalls are left out.
        times = {"latency as intended": tally.intended, "latency as sent": tally.latencies} | times
        del times["latency"]
    for name, histogram in times.items():
        if histogram.count:
            shares = (duration(histogram.percentile(share)) for share in _PERCENTILES)
            yield [name, *shares, duration(histogram.most)]


def _shown(plan: Plan, tally: Tally) -> Histogram:
    return tally.latencies if plan.rate is None else tally.intended


def _title(plan: Plan) -> str:
    return click.style("latency" if plan.rate is None else "latency as intended", bold=True)


def picture(histogram: Histogram) -> str:
    """Draw a distribution: a line for each part of its range, parts of equal ratio, bars by count."""
    parts = histogram.parts(_PARTS)
    most = max(count for _, _, count in parts)
    lines = []
    for least, greatest, count in parts:
        span = f"{duration(least):>8} - {duration(greatest):>8}"
        lines.append(f"{span}  {_bar(count / most)} {count:,}" if count else span)
    return "\n".join(lines)


def _bar(share: float) -> str:
    """A bar of at most `_WIDTH` columns; never empty."""
    eighths = max(1, round(share * _WIDTH * 8))
    whole, rest = divmod(eighths, 8)
    bar = _FULL * whole + (_EIGHTHS[rest] if rest else "")
    try:
        bar.encode(sys.stdout.encoding or "ascii")
    except UnicodeEncodeError:
        return "#" * max(1, whole)
    return bar


def _status_errors(tally: Tally) -> Iterator[tuple[str, str]]:
    yield from ((f"{number:,}", printable(code)) for code, number in tally.codes.most_common())


def _failures(tally: Tally) -> Iterator[tuple[str, str]]:
    yield from ((f"{number:,}", _FAILURES.get(name, name)) for name, number in tally.failures.most_common())


def _doubts(tally: Tally, *, busy: bool, behind: bool) -> Iterator[str]:
    if busy:
        yield "the load generator was the bottleneck; the proxy can do more than this"
    if behind:
        yield (
            f"the load generator began requests up to {duration(tally.lag.most)} late by its own fault; "
            "lower --rate, or run it on a machine of its own"
        )
    if tally.unfinished:
        yield f"{tally.unfinished} requests were under way when it ended; they are charged, too"
    if tally.waited > tally.done * _MANY:
        yield (
            f"{tally.waited:,} requests found no free connection and waited, which counts; with more --connections "
            "they would have met the server at once"
        )


def duration(seconds: float) -> str:
    """Show a time with three digits or so."""
    if seconds >= 1:
        return f"{seconds:.2f} s"
    ms = seconds * 1000
    return f"{ms:.0f} ms" if ms >= 100 else f"{ms:.1f} ms" if ms >= 10 else f"{ms:.2f} ms"


def size(number: int) -> str:
    """Show a number of bytes."""
    if number < 1000:
        return f"{number} bytes"
    value, units = number / 1000, iter(("kB", "MB", "GB"))
    unit = next(units)
    while value >= 1000 and unit != "GB":
        value, unit = value / 1000, next(units)
    return f"{value:.1f} {unit}"
