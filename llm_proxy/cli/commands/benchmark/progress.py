"""What is shown while the load runs, on stderr: a bar on a terminal, now and then a line elsewhere."""

from __future__ import annotations

import sys
import time

import click
import trio

from llm_proxy.load import Load

#: Seconds between looks at the measured. Drawing takes time from the load, so it is seldom.
_BAR_EVERY = 0.2
_LINE_EVERY = 5.0
#: Steps of a bar that shows time.
_STEPS_PER_SECOND = 10


async def show_progress(load: Load) -> None:
    """Show how far the load is, until cancelled."""
    if sys.stderr.isatty():
        await _draw(load)
    else:
        await _tell(load)


async def _draw(load: Load) -> None:
    began = time.perf_counter()
    number, seconds = load.plan.planned, load.plan.seconds or 0.0
    length = int(seconds * _STEPS_PER_SECOND) if number is None else number
    with click.progressbar(length=length, label="Sending", item_show_func=_failures, file=sys.stderr) as bar:

        def draw() -> None:
            passed = int((time.perf_counter() - began) * _STEPS_PER_SECOND) if number is None else load.measured.done
            bar.update(min(passed, length) - bar.pos, load)
            # Without this it would be drawn only when it has grown.
            bar.render_progress()

        try:
            while True:
                draw()
                await trio.sleep(_BAR_EVERY)
        finally:
            draw()


def _failures(load: Load | None) -> str | None:
    return f"{load.measured.failed:,} failed" if load is not None and load.measured.failed else None


async def _tell(load: Load) -> None:
    whole = "" if load.plan.planned is None else f" of {load.plan.planned:,}"
    while True:
        await trio.sleep(_LINE_EVERY)
        click.echo(f"{load.measured.done:,}{whole} requests done, {load.measured.failed:,} failed", err=True)
