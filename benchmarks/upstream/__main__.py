"""`python -m benchmarks.upstream`: serve until SIGTERM or SIGINT; the first line on stdout is the address, as JSON."""

from __future__ import annotations

import math
import os
import re
import signal
from pathlib import Path
from random import Random

import click
import msgspec
import trio

from benchmarks.upstream.connection import Behaviour, Delay, listen, serve
from benchmarks.upstream.faults import FAULTS
from benchmarks.upstream.journal import Journal
from benchmarks.upstream.rendering import Author, PlainAuthor, Renderer
from tests.scripted.provider import ScriptedProvider

_DURATION = re.compile(r"(\d+(?:\.\d+)?)(us|ms|s)?")
_UNITS = {"us": 1e-6, "ms": 1e-3, "s": 1.0, None: 1.0}


def seconds(text: str) -> float:
    """Read `250us`, `5ms`, `1.5s` or plain seconds; raises ValueError."""
    found = _DURATION.fullmatch(text.strip())
    if found is None:
        raise ValueError(f"not a duration: {text!r} (say 250us, 5ms or 1.5s)")
    return float(found.group(1)) * _UNITS[found.group(2)]


def delay(text: str) -> Delay | None:
    """Read `5ms` or `lognormal:20ms,0.5` (median and sigma); None is no delay. Raises ValueError."""
    kind, colon, rest = text.partition(":")
    if not colon:
        fixed = seconds(text)
        return (lambda _: fixed) if fixed else None
    if kind != "lognormal":
        raise ValueError(f"unknown distribution {kind!r} (allowed: lognormal)")
    median, sigma = rest.split(",", 1)
    centre, width = math.log(seconds(median)), float(sigma)
    return lambda source: source.lognormvariate(centre, width)


def _delay(_context: click.Context, _parameter: click.Parameter, text: str) -> Delay | None:
    try:
        return delay(text)
    except ValueError as error:
        raise click.BadParameter(str(error)) from None


def _seconds(_context: click.Context, _parameter: click.Parameter, text: str) -> float:
    try:
        return seconds(text)
    except ValueError as error:
        raise click.BadParameter(str(error)) from None


def _announce(host: str, port: int) -> None:
    line = {"host": host, "port": port, "url": f"http://{host}:{port}", "pid": os.getpid()}
    click.echo(msgspec.json.encode(line))


async def _serve_until_told(host: str, port: int, behaviour: Behaviour) -> None:
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(serve, listen(host, port), behaviour, _announce)
            async for _ in signals:
                nursery.cancel_scope.cancel()


@click.command(help=__doc__)
@click.option("--host", default="127.0.0.1", show_default=True)
@click.option("--port", default=0, show_default="a free one")
@click.option("--key", default="sk-upstream", show_default=True, help="The only API key that is accepted.")
@click.option("--answers", type=click.Choice(["scripted", "plain"]), default="scripted", show_default=True)
@click.option("--chunks", default=20, show_default=True, help="Pieces of a plain stream.")
@click.option("--gap", default="0", callback=_seconds, help="Time between the pieces of a stream, e.g. 20ms.")
@click.option("--latency", default="0", callback=_delay, help="Time before each answer: 5ms, or lognormal:5ms,0.5")
@click.option("--fault", type=click.Choice(sorted(FAULTS)), help="What every request gets.")
@click.option("--seed", default=1, show_default=True)
@click.option("--keep", default=20_000, show_default=True, help="Requests to remember.")
@click.option("--log", type=click.Path(path_type=Path, dir_okay=False), help="Append each request before answering.")
def main(  # noqa: PLR0913 - one for each option
    *,
    host: str,
    port: int,
    key: str,
    answers: str,
    chunks: int,
    gap: float,
    latency: Delay | None,
    fault: str | None,
    seed: int,
    keep: int,
    log: Path | None,
) -> None:
    """Serve until told to stop."""
    scripted = ScriptedProvider(key)
    author: Author = PlainAuthor(scripted, chunks) if answers == "plain" else scripted
    behaviour = Behaviour(
        Renderer(author),
        Journal(keep, log),
        latency,
        gap,
        FAULTS[fault] if fault else None,
        Random(seed),
    )
    trio.run(_serve_until_told, host, port, behaviour)


if __name__ == "__main__":
    main()
