"""`python -m benchmarks.upstream`: serve until SIGTERM or SIGINT; the first line on stdout is the address, as JSON."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from random import Random

import click
import msgspec
import trio

from benchmarks.upstream.connection import Behaviour
from benchmarks.upstream.faults import FAULTS
from benchmarks.upstream.journal import Journal
from benchmarks.upstream.latency import Delay, delay, seconds
from benchmarks.upstream.rendering import Author, PlainAuthor, Renderer
from benchmarks.upstream.server import listen, serve
from tests.scripted.provider import ScriptedProvider


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


def _errors(
    _context: click.Context, _parameter: click.Parameter, texts: tuple[str, ...]
) -> tuple[tuple[int, float], ...]:
    try:
        pairs = [text.split(":", 1) for text in texts]
        return tuple((int(status), float(share)) for status, share in pairs)
    except ValueError:
        raise click.BadParameter("say STATUS:SHARE, such as 429:0.01") from None


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
@click.option(
    "--latency", default="0", callback=_delay, help="5ms, uniform:1ms-9ms, exponential:5ms, lognormal:5ms,0.5"
)
@click.option("--error", "errors", multiple=True, callback=_errors, help="STATUS:SHARE, e.g. 429:0.01; repeatable.")
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
    errors: tuple[tuple[int, float], ...],
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
        errors,
        FAULTS[fault] if fault else None,
        Random(seed),
    )
    trio.run(_serve_until_told, host, port, behaviour)


if __name__ == "__main__":
    main()
