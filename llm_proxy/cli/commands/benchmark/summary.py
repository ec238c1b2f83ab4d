"""The results: tables of times and errors."""

from __future__ import annotations

from collections.abc import Iterator

import click

from llm_proxy.cli.output import printable, table, warn
from llm_proxy.load import LoadPlan, Measurements, report
from llm_proxy.load.measurements import PERCENTILES

_TIMES = (*(f"p{share:g}" for share in PERCENTILES), "max")

#: Share of requests that may wait for a connection without a warning.
_MAX_WAITING = 0.01

#: Messages for requests without a complete response.
_FAILURES = {
    "Truncated": "the connection was closed before the answer was complete",
    "BadAnswer": "the answer is not valid HTTP/1.1",
    "Timeout": "no complete answer within --timeout",
    "ConnectionRefusedError": "the connection was refused",
    "ConnectionResetError": "the connection was reset",
    "BrokenPipeError": "the connection was closed while the request was sent",
}


def show_summary(plan: LoadPlan, measured: Measurements) -> None:
    """Print the measurements to stdout, and warnings about them to stderr."""
    found = report(plan, measured)
    click.echo(_headline(plan, measured))
    if measured.answered:
        click.echo(f"\n{table(('', *_TIMES), _rows(plan, measured), numbers=_TIMES)}")
    errors = [(printable(code), number) for code, number in measured.codes.most_common()]
    errors += [(_FAILURES.get(name, name), number) for name, number in measured.failures.most_common()]
    if errors:
        rows = [(f"{number:,}", error) for error, number in errors]
        click.echo(f"\n{table(('COUNT', 'ERROR'), rows, numbers=('COUNT',))}")
    click.echo(
        f"\n{size(measured.response_bytes)} received; the load generator used {found['cpu_share']:.0%} of a core."
    )
    for warning in _warnings(measured, busy=found["is_bottleneck"], behind=found.get("behind", False)):
        warn(warning)


def _headline(plan: LoadPlan, measured: Measurements) -> str:
    rate = measured.answered / measured.elapsed if measured.elapsed else 0.0
    how = f"{plan.connections} connection{'s' * (plan.connections != 1)}"
    if plan.rate is not None:
        how += f", {plan.rate:g} requests/s intended"
    text = f"{measured.answered:,} answers in {measured.elapsed:.1f} s over {how}: {rate:,.1f} requests/s"
    if measured.failed:
        text += f", {measured.failed:,} failed"
    return click.style(text, bold=True)


def _rows(plan: LoadPlan, measured: Measurements) -> Iterator[list[str]]:
    times = {"latency": measured.latencies, "first byte": measured.first_bytes, "gap in streams": measured.gaps}
    if plan.rate is not None:
        # From the intended time on, as users would wait; from sending on leaves out the stalls of the server.
        times = {"latency as intended": measured.intended, "latency as sent": measured.latencies} | times
        del times["latency"]
    for name, histogram in times.items():
        if histogram.count:
            shares = (duration(histogram.percentile(share)) for share in PERCENTILES)
            yield [name, *shares, duration(histogram.max)]


def _warnings(measured: Measurements, *, busy: bool, behind: bool) -> Iterator[str]:
    if busy:
        yield "the load generator was the bottleneck; the proxy can do more than this"
    if behind:
        yield (
            f"the load generator sent requests up to {duration(measured.lag.max)} late; "
            "lower --rate, or run it on a machine of its own"
        )
    if measured.unfinished:
        yield f"{measured.unfinished} requests were in flight at the end; they are charged too"
    if measured.waited > measured.done * _MAX_WAITING:
        yield (
            f"{measured.waited:,} requests waited for a free connection, and the wait is part of their latency; "
            "use more --connections"
        )


def duration(seconds: float) -> str:
    """Show a time with about three digits."""
    if seconds >= 1:
        return f"{seconds:.2f} s"
    ms = seconds * 1000
    return f"{ms:.0f} ms" if ms >= 100 else f"{ms:.1f} ms" if ms >= 10 else f"{ms:.2f} ms"


def size(number: int) -> str:
    """Show a number of bytes."""
    if number < 1000:
        return f"{number} bytes"
    power = min(3, (len(str(number)) - 1) // 3)
    return f"{number / 1000**power:.1f} {('kB', 'MB', 'GB')[power - 1]}"
