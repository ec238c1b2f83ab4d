"""`python -m benchmarks.load`: a load generator as a separate process; prints one line of JSON.

Without `--rate` the loop is closed: each connection sends its next request when the previous answer is complete. With
it the loop is open: requests are sent on schedule, independent of the server, and `intended_latency_ms` counts from
the scheduled time. Otherwise latencies count from sending a request, to the last byte (`latency_ms`) or the first byte
(`first_byte_ms`) of its answer; `gap_ms` is between two arrivals of the same streamed answer. All are milliseconds.
"""

from __future__ import annotations

import sys
from pathlib import Path

import click
import msgspec
import trio

from llm_proxy.load import BUSY, CannotStart, Load, LoadPlan, LoadTarget, report

__all__ = ["BUSY", "CHAT", "SDK_HEADERS"]

#: Headers of OpenAI's Python SDK, without credential and length.
SDK_HEADERS = (
    ("Accept", "application/json"),
    ("Accept-Encoding", "gzip, deflate"),
    ("Content-Type", "application/json"),
    ("User-Agent", "AsyncOpenAI/Python 3.54.0"),
    ("X-Stainless-Lang", "python"),
    ("X-Stainless-Package-Version", "3.54.0"),
    ("X-Stainless-OS", "Linux"),
    ("X-Stainless-Arch", "x64"),
    ("X-Stainless-Runtime", "CPython"),
    ("X-Stainless-Runtime-Version", "3.11.7"),
    ("X-Stainless-Async", "async:trio"),
    ("x-stainless-retry-count", "0"),
    ("x-stainless-read-timeout", "600"),
)
CHAT = {
    "model": "gpt-scripted",
    "messages": [
        {"role": "system", "content": "You are a helpful assistant. Answer in one short sentence."},
        {"role": "user", "content": "What is the capital of France, and how many people live there today?"},
    ],
    "temperature": 0.2,
    "max_tokens": 64,
}

#: Seconds after which a request is given up.
_TIMEOUT = 300.0
_FILE = click.Path(path_type=Path, exists=True, dir_okay=False)


@click.command(help=__doc__)
@click.option("--url", required=True, help="http://host:port/path")
@click.option("--method", default="POST", show_default=True)
@click.option("--connections", default=32, show_default=True, type=click.IntRange(1))
@click.option("--requests", type=click.IntRange(1), help="Stop after that many requests.")
@click.option("--seconds", type=click.FloatRange(0, min_open=True), help="Stop after that time.")
@click.option("--rate", type=click.FloatRange(0, min_open=True), help="Requests per second of an open loop.")
@click.option("--token", help="Sent as Authorization: Bearer.")
@click.option("--tokens", type=_FILE, help="A file of tokens, one on each line, sent in turn.")
@click.option("--header", "headers", multiple=True, help="NAME: VALUE; repeatable.")
@click.option("--sdk-headers/--few-headers", default=True, show_default=True, help="Send an SDK's headers, or few.")
@click.option("--body", type=_FILE, help="A file with the body; a short chat completion otherwise.")
@click.option("--stream", is_flag=True, help="Ask for a streamed chat completion.")
def main(  # noqa: PLR0913 - one for each option
    *,
    url: str,
    method: str,
    connections: int,
    requests: int | None,
    seconds: float | None,
    rate: float | None,
    token: str | None,
    tokens: Path | None,
    headers: tuple[str, ...],
    sdk_headers: bool,
    body: Path | None,
    stream: bool,
) -> None:
    """Run the load and print the report."""
    if requests is None and seconds is None:
        raise click.UsageError("set --requests or --seconds")
    given = tuple((name.strip(), value.strip()) for name, _, value in (text.partition(":") for text in headers))
    sent = (SDK_HEADERS if sdk_headers else (("Content-Type", "application/json"),)) + given
    content = b""
    if body is not None:
        content = body.read_bytes()
    elif method == "POST":
        content = msgspec.json.encode(CHAT | {"stream": True} if stream else CHAT)
    known = [token] if token is not None else []
    if tokens is not None:
        known += tokens.read_text().split()
    target = LoadTarget.render(method, url, sent, content, tokens=known)
    plan = LoadPlan(connections, requests, seconds, rate, timeout=_TIMEOUT)
    load = Load(target, plan)
    try:
        trio.run(load.run)
    except CannotStart as error:
        click.echo(f"error: {error}", err=True)
        sys.exit(2)
    found = report(plan, load.measured)
    click.echo(msgspec.json.encode(found))
    _warn(found)
    if found["errors"]:
        sys.exit(1)


def _warn(found: dict[str, object]) -> None:
    if found["is_bottleneck"]:
        click.echo(
            f"warning: the load generator used {found['cpu_share']:.0%} of a core and is the bottleneck", err=True
        )
    if found.get("behind"):
        click.echo(f"warning: the load generator was behind its schedule: {found['lag_ms']}", err=True)
    if found["errors"]:
        click.echo(f"warning: errors: {found['errors']}", err=True)


if __name__ == "__main__":
    main()
