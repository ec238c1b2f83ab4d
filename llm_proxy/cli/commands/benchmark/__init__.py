"""`llm-proxy benchmark`.

- `request`: the request that is sent
- `summary`: the results
"""

from __future__ import annotations

import signal
import ssl
import sys
import time
from pathlib import Path
from typing import Any

import click
import trio

from llm_proxy.cli.commands.benchmark.request import body_for, headers_with, method_of, url_of
from llm_proxy.cli.commands.benchmark.summary import show_summary
from llm_proxy.cli.failures import ERROR, INTERRUPTED, CannotConnect, NotAuthorised, WrongUsage
from llm_proxy.cli.options import BASE_URL, Value, json_option
from llm_proxy.cli.output import print_json, printable
from llm_proxy.cli.program import Command
from llm_proxy.config.kinds import duration
from llm_proxy.load import CannotStart, Load, LoadPlan, LoadTarget, report
from llm_proxy.net.tls import client_context

_REQUESTS = 200
_COUNT = click.IntRange(1)
_FILE = click.Path(path_type=Path, exists=True, dir_okay=False)
_DURATION = Value(duration())
#: Seconds between two updates of the progress. Drawing takes CPU time from the load.
_BAR_EVERY = 0.2
_LINE_EVERY = 5.0
#: Steps per second of a bar that shows time.
_STEPS = 10


@click.command(cls=Command)
@click.option("--base-url", type=BASE_URL, required=True, help="Base URL of the proxy, e.g. http://localhost:8080.")
@click.option(
    "--token",
    envvar="LLM_PROXY_TOKEN",
    metavar="TOKEN",
    help="Proxy token to send. Other users can see options, but not the environment.  [LLM_PROXY_TOKEN]",
)
@click.option("--path", metavar="PATH", default="/v1/chat/completions", show_default=True, help="Request path.")
@click.option("--method", metavar="METHOD", default="POST", show_default=True, help="HTTP method.")
@click.option("--model", metavar="NAME", help="Model in the default body.  [default: gpt-5.4-mini]")
@click.option("--body", type=_FILE, metavar="FILE", help="File with the request body.  [default: a short prompt]")
@click.option("--header", "headers", multiple=True, metavar="'NAME: VALUE'", help="Header to add; may be repeated.")
@click.option("--stream", is_flag=True, help="Request streamed responses, and measure the gaps between their pieces.")
@click.option(
    "--connections", "-c", type=_COUNT, metavar="N", default=10, show_default=True, help="Number of connections."
)
@click.option(
    "--requests",
    "-n",
    type=_COUNT,
    metavar="N",
    help=f"Number of requests.  [default: {_REQUESTS}; with --duration: unlimited]",
)
@click.option(
    "--duration", "-d", type=_DURATION, metavar="TIME", help="Stop starting requests after this time, e.g. 30s or 5m."
)
@click.option(
    "--rate",
    type=click.FloatRange(0, min_open=True),
    metavar="N",
    help="Requests to start per second, even if earlier ones are not finished. Latency then includes the delay of late "
    "requests.  [default: start a request when the one before on its connection ends]",
)
@click.option(
    "--arrivals",
    type=click.Choice(["even", "poisson"]),
    default="even",
    show_default=True,
    help="Distribution of the starts with --rate.",
)
@click.option(
    "--timeout", type=_DURATION, default="5m", show_default=True, metavar="TIME", help="Timeout of each request."
)
@click.option("--ca", type=_FILE, metavar="FILE", help="PEM file of the trusted authorities.  [default: the system's]")
@click.option("--insecure", is_flag=True, help="Do not verify the certificate.")
@json_option
def command(*, base_url: str, token: str | None, as_json: bool, **options: Any) -> None:
    """Put load on a running proxy, and measure it.

    The requests are real: each is charged to the token, and the provider charges for it. Without --duration, sends 200
    requests with a short prompt.

    Prints rate, latency, time to first byte and errors. Exits 1 if any request failed. Ctrl-C ends the run early and
    prints the results so far.
    """
    if not token:
        raise WrongUsage("the token is not set; set LLM_PROXY_TOKEN or --token to a token of the proxy")
    number, seconds = options.pop("requests"), options.pop("duration")
    plan = LoadPlan(
        requests=_REQUESTS if number is None and seconds is None else number,
        seconds=seconds,
        **{name: options.pop(name) for name in ("connections", "rate", "arrivals", "timeout")},
    )
    target, url = _target(base_url, token, **options)
    _announce(plan, url)
    load = Load(target, plan, stop_if_refused=True)
    interrupted = trio.run(_run, load)
    measured = load.measured
    if measured.token_refused is not None:
        message = printable(measured.token_refused.message.replace(token, "…")).rstrip(".")
        raise NotAuthorised(
            f"{base_url} refused the token: {message or f'HTTP status {measured.token_refused.status}'}"
        )
    if as_json:
        print_json(report(plan, measured) | {"url": url, "interrupted": interrupted})
    else:
        show_summary(plan, measured)
    if interrupted:
        raise click.exceptions.Exit(INTERRUPTED)
    if measured.failed:
        raise click.exceptions.Exit(ERROR)


def _target(  # noqa: PLR0913 - one for each option
    base_url: str,
    token: str,
    *,
    path: str,
    method: str,
    model: str | None,
    body: Path | None,
    headers: tuple[str, ...],
    stream: bool,
    ca: Path | None,
    insecure: bool,
) -> tuple[LoadTarget, str]:
    url = url_of(base_url, path)
    method = method_of(method)
    if body is None:
        content = body_for(method, path, model, stream=stream)
    elif model is not None or stream:
        raise WrongUsage("--model and --stream change the default body only; put both into the file of --body")
    else:
        content = body.read_bytes()
    try:
        tls = client_context(ca=ca, insecure=insecure) if url.startswith("https:") else None
    except ssl.SSLError:
        raise WrongUsage(f"{ca} does not contain a certificate in PEM form") from None
    try:
        return LoadTarget.render(method, url, headers_with(headers), content, tokens=[token], tls=tls), url
    except ValueError as error:
        raise WrongUsage(f"this cannot be sent: {error}") from None


def _announce(plan: LoadPlan, url: str) -> None:
    number = plan.planned
    many = "as many requests as possible" if number is None else f"{number:,} request{'s' * (number != 1)}"
    span = "" if plan.seconds is None else f" within {plan.seconds:g} s"
    click.echo(f"Sending {many}{span} to {url}. They are real, and charged to the token.", err=True)


async def _run(load: Load) -> bool:
    """Run the load; True if it was interrupted."""
    interrupted = False
    with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
        async with trio.open_nursery() as nursery:

            async def run() -> None:
                try:
                    await load.run()
                except CannotStart as error:
                    raise CannotConnect(f"{error}; is the proxy running, and --base-url right?") from None
                nursery.cancel_scope.cancel()

            nursery.start_soon(run)
            nursery.start_soon(_draw_bar if sys.stderr.isatty() else _print_lines, load)
            await anext(signals)
            interrupted = True
            nursery.cancel_scope.cancel()
    return interrupted


async def _draw_bar(load: Load) -> None:
    started = time.perf_counter()
    number, seconds = load.plan.planned, load.plan.seconds or 0.0
    length = int(seconds * _STEPS) if number is None else number
    with click.progressbar(length=length, label="Sending", item_show_func=_failed, file=sys.stderr) as bar:

        def draw() -> None:
            done = int((time.perf_counter() - started) * _STEPS) if number is None else load.measured.done
            bar.update(min(done, length) - bar.pos, load)
            bar.render_progress()  # `update` draws only if the bar has grown

        try:
            while True:
                draw()
                await trio.sleep(_BAR_EVERY)
        finally:
            draw()


def _failed(load: Load | None) -> str | None:
    return f"{load.measured.failed:,} failed" if load is not None and load.measured.failed else None


async def _print_lines(load: Load) -> None:
    whole = "" if load.plan.planned is None else f" of {load.plan.planned:,}"
    while True:
        await trio.sleep(_LINE_EVERY)
        click.echo(f"{load.measured.done:,}{whole} requests done, {load.measured.failed:,} failed", err=True)
