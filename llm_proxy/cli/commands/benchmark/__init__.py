"""`llm-proxy benchmark`.

- `requests`: what is sent
- `progress`: what is shown meanwhile
- `summary`: what is shown in the end
"""

from __future__ import annotations

import signal
import ssl
from pathlib import Path
from typing import Any

import click
import trio

from llm_proxy.cli.base_url import BaseUrl
from llm_proxy.cli.commands.benchmark.progress import show_progress
from llm_proxy.cli.commands.benchmark.requests import body_for, headers_with, method_of, url_of
from llm_proxy.cli.commands.benchmark.summary import show_summary
from llm_proxy.cli.failures import ERROR, INTERRUPTED, CannotConnect, NotAuthorised, WrongUsage
from llm_proxy.cli.output import print_json, printable
from llm_proxy.cli.program import Command
from llm_proxy.config.kinds import duration
from llm_proxy.load import CannotStart, Load, Plan, Target, report
from llm_proxy.net.tls import client_context

_REQUESTS = 200
_FILE = click.Path(path_type=Path, exists=True, dir_okay=False)


class _Duration(click.ParamType[float]):
    name = "duration"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        if isinstance(value, float):
            return value
        kind = duration()
        try:
            return kind.parse(value)
        except ValueError:
            self.fail(f"{value!r} is not {kind.allowed}", param, ctx)


@click.command(cls=Command)
@click.option("--base-url", type=BaseUrl(), required=True, help="Where the proxy is, such as http://localhost:8080.")
@click.option(
    "--token",
    envvar="LLM_PROXY_TOKEN",
    metavar="TOKEN",
    help="Pays for the requests; in the environment no other user can see it.  [LLM_PROXY_TOKEN]",
)
@click.option("--path", metavar="PATH", default="/v1/chat/completions", show_default=True, help="What is asked for.")
@click.option("--method", metavar="METHOD", default="POST", show_default=True, help="How it is asked for.")
@click.option("--model", metavar="NAME", help="In the body that is sent by default.  [default: gpt-5.4-mini]")
@click.option("--body", type=_FILE, metavar="FILE", help="Send this instead of a short request for a few words.")
@click.option("--header", "headers", multiple=True, metavar="'NAME: VALUE'", help="Send it too; may be repeated.")
@click.option("--stream", is_flag=True, help="Ask for streamed answers, and measure the gaps within them.")
@click.option(
    "--connections", "-c", type=click.IntRange(1), metavar="N", default=10, show_default="10", help="Open at once."
)
@click.option(
    "--requests", "-n", type=click.IntRange(1), metavar="N", help=f"How many.  [default: {_REQUESTS}, or by --duration]"
)
@click.option("--duration", "-d", type=_Duration(), metavar="TIME", help="Begin none after it, such as 30s or 5m.")
@click.option(
    "--rate",
    type=click.FloatRange(0, min_open=True),
    metavar="N",
    help="So many per second whatever the server does, instead of each after the one before; shows what people wait.",
)
@click.option(
    "--arrivals", type=click.Choice(["even", "poisson"]), default="even", show_default=True, help="How --rate comes."
)
@click.option(
    "--timeout",
    type=_Duration(),
    default="5m",
    show_default=True,
    metavar="TIME",
    help="Give a request up after it.",
)
@click.option("--ca", type=_FILE, metavar="FILE", help="PEM file of the authorities to trust.  [default: the system's]")
@click.option("--insecure", is_flag=True, help="Trust any certificate.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_context
def command(context: click.Context, /, *, base_url: str, token: str | None, as_json: bool, **options: Any) -> None:
    """Put load on a running proxy, and measure it.

    The requests are real: each is charged to the token, and costs what the provider asks for it. Without --duration
    there are 200 of them, each for a few words.

    Shows rate, latency, time to first byte and errors. Exits 1 where any request failed. Ctrl-C ends it early and shows
    what was measured until then.
    """
    if not token:
        raise WrongUsage("there is no token; give one of the proxy's with LLM_PROXY_TOKEN or --token")
    plan = _plan(**{name: options.pop(name) for name in _OF_THE_PLAN})
    target, url = _target(base_url, token, **options)
    _warn_of_the_cost(plan, url)
    load = Load(target, plan, stop_if_refused=True)
    interrupted = trio.run(_run, load)
    measured = load.measured
    if measured.token_refused is not None:
        words = (
            printable(measured.token_refused.message.replace(token, "…")).rstrip(".")
            or f"HTTP status {measured.token_refused.status}"
        )
        raise NotAuthorised(f"{base_url} refused the token: {words}")
    found = report(plan, measured) | {"url": url, "interrupted": interrupted}
    if as_json:
        print_json(found)
    else:
        show_summary(plan, measured)
    if interrupted:
        context.exit(INTERRUPTED)
    if measured.failed:
        context.exit(ERROR)


_OF_THE_PLAN = ("connections", "requests", "duration", "rate", "arrivals", "timeout")


def _plan(requests: int | None, duration: float | None, **more: Any) -> Plan:  # the options have these names
    wanted = _REQUESTS if requests is None and duration is None else requests
    return Plan(requests=wanted, seconds=duration, **more)


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
) -> tuple[Target, str]:
    url = url_of(base_url, path)
    method = method_of(method)
    if body is None:
        content = body_for(method, path, model, stream=stream)
    elif model is not None or stream:
        raise WrongUsage("--body says model and stream itself; leave out --model and --stream")
    else:
        content = body.read_bytes()
    try:
        tls = client_context(ca=ca, insecure=insecure) if url.startswith("https:") else None
    except ssl.SSLError:
        raise WrongUsage(f"{ca} holds no certificate in PEM form") from None
    try:
        return Target.render(method, url, headers_with(headers), content, tokens=[token], tls=tls), url
    except ValueError as error:
        raise WrongUsage(f"this cannot be sent: {error}") from None


def _warn_of_the_cost(plan: Plan, url: str) -> None:
    number = plan.planned
    many = "as many requests as fit" if number is None else f"{number:,} request{'s' * (number != 1)}"
    span = "" if plan.seconds is None else f" within {plan.seconds:g} s"
    click.echo(f"Sending {many}{span} to {url}. They are real, and charged to the token.", err=True)


async def _run(load: Load) -> bool:
    """Run the load; True where it was interrupted."""
    interrupted = False
    with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
        async with trio.open_nursery() as nursery:

            async def end_early() -> None:
                nonlocal interrupted
                await anext(signals)
                interrupted = True
                nursery.cancel_scope.cancel()

            nursery.start_soon(end_early)
            nursery.start_soon(show_progress, load)
            try:
                await load.run()
            except CannotStart as error:
                raise CannotConnect(f"{error}; is the proxy running, and --base-url right?") from None
            nursery.cancel_scope.cancel()
    return interrupted
