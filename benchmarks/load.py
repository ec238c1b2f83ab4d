"""`python -m benchmarks.load`: closed-loop load from a process of its own; prints one line of JSON.

Each connection sends its next request when the previous answer is complete. Requests are rendered once; answers with
a Content-Length are framed by hand, chunked ones by llhttp. Latencies are milliseconds, from sending a request to the
last byte (`latency_ms`) or the first byte (`first_byte_ms`) of its answer.
"""

from __future__ import annotations

import socket
import sys
import time
from array import array
from collections import Counter
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import click
import httptools
import msgspec
import trio
from attrs import define, field, frozen

#: Above this share of one core, the generator itself is what limits the rate.
BUSY = 0.85
_READ = 262_144
_PERCENTILES = (50, 90, 95, 99, 99.9)

#: What OpenAI's Python SDK sends, beside the credential and the length.
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


@frozen
class Target:
    """Where the load goes, and the bytes of one request."""

    host: str
    port: int
    request: bytes

    @classmethod
    def render(cls, method: str, url: str, headers: tuple[tuple[str, str], ...], body: bytes) -> Target:
        """Render one request; raises ValueError unless the URL is plain http."""
        parts = urlsplit(url)
        if parts.scheme != "http" or parts.hostname is None:
            raise ValueError("the URL must begin with http://")
        target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        lines = [
            f"{method} {target} HTTP/1.1",
            f"Host: {parts.netloc}",
            *(f"{name}: {value}" for name, value in headers),
        ]
        if body or method in {"POST", "PUT", "PATCH"}:
            lines.append(f"Content-Length: {len(body)}")
        head = "\r\n".join(lines).encode("latin-1") + b"\r\n\r\n"
        return cls(parts.hostname, parts.port or 80, head + body)


@define
class Tally:
    """What was measured; times are seconds."""

    limit: int | None
    deadline: float | None = None
    started: int = 0
    statuses: Counter[int] = field(factory=Counter)
    failures: Counter[str] = field(factory=Counter)
    latencies: array[float] = field(factory=lambda: array("d"))
    first_bytes: array[float] = field(factory=lambda: array("d"))
    response_bytes: int = 0

    def take(self) -> bool:
        """Claim one more request; False when there are none left to send."""
        if self.limit is not None and self.started >= self.limit:
            return False
        if self.deadline is not None and time.perf_counter() >= self.deadline:
            return False
        self.started += 1
        return True


def percentile(ordered: list[float], share: float) -> float:
    """Return the value below which `share` per cent of the ordered values lie (nearest rank)."""
    return ordered[min(len(ordered) - 1, int(len(ordered) * share / 100))]


def spread(values: array[float]) -> dict[str, float]:
    """Return mean, percentiles and maximum of seconds, in milliseconds; empty when there are none."""
    ordered = sorted(values)
    if not ordered:
        return {}
    found = {f"p{share:g}": percentile(ordered, share) for share in _PERCENTILES}
    found |= {"mean": sum(ordered) / len(ordered), "max": ordered[-1]}
    return {name: round(value * 1000, 3) for name, value in found.items()}


class _ChunkedAnswer:
    """Waits for the end of an answer whose framing is not a Content-Length."""

    def __init__(self) -> None:
        self._parser = httptools.HttpResponseParser(self)
        self.complete = False

    def on_message_complete(self) -> None:
        self.complete = True

    def feed(self, data: bytes) -> None:
        self._parser.feed_data(data)


class _Worker:
    """One connection, one request at a time."""

    def __init__(self, target: Target, tally: Tally) -> None:
        self._target = target
        self._tally = tally
        self._sock: socket.socket | None = None

    async def run(self) -> None:
        """Send requests until the tally has no more; a failure costs the connection and is counted."""
        try:
            while self._tally.take():
                try:
                    sock = self._sock or await self._connect()
                    await self._exchange(sock)
                except (OSError, httptools.HttpParserError) as error:
                    self._tally.failures[type(error).__name__] += 1
                    self._drop()
                    # A refusing server must not be hammered without pause.
                    await trio.sleep(0.01)
        finally:
            self._drop()

    def _drop(self) -> None:
        if self._sock is not None:
            self._sock.close()
            self._sock = None

    async def _connect(self) -> socket.socket:
        sock = socket.socket()
        sock.settimeout(0)
        self._sock = sock
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        try:
            sock.connect((self._target.host, self._target.port))
        except BlockingIOError:
            await trio.lowlevel.wait_writable(sock)
            if code := sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
                raise OSError(code, "connect") from None
        return sock

    async def _send(self, sock: socket.socket) -> None:
        view = memoryview(self._target.request)
        while view:
            try:
                view = view[sock.send(view) :]
            except BlockingIOError:
                await trio.lowlevel.wait_writable(sock)

    async def _receive(self, sock: socket.socket) -> bytes:
        while True:
            await trio.lowlevel.wait_readable(sock)
            try:
                data = sock.recv(_READ)
            except BlockingIOError:
                continue
            if not data:
                raise ConnectionAbortedError("closed before the answer was complete")
            return data

    async def _exchange(self, sock: socket.socket) -> None:
        tally = self._tally
        began = time.perf_counter()
        await self._send(sock)
        data = await self._receive(sock)
        first = time.perf_counter()
        while (end := data.find(b"\r\n\r\n")) < 0:
            data += await self._receive(sock)
        head = data[:end].lower()
        mark = head.find(b"\r\ncontent-length:")
        size = len(data)
        if mark >= 0:
            length = int(head[mark + 17 :].split(b"\r", 1)[0])
            missing = end + 4 + length - size
            while missing > 0:
                received = len(await self._receive(sock))
                size += received
                missing -= received
        else:
            answer = _ChunkedAnswer()
            answer.feed(data)
            while not answer.complete:
                data = await self._receive(sock)
                size += len(data)
                answer.feed(data)
        tally.latencies.append(time.perf_counter() - began)
        tally.first_bytes.append(first - began)
        tally.statuses[int(head[9:12])] += 1
        tally.response_bytes += size
        if b"\r\nconnection: close" in head:
            self._drop()


async def run(target: Target, connections: int, tally: Tally) -> dict[str, Any]:
    """Put load on a target until the tally has no more requests; returns the report."""
    cpu = time.process_time()
    began = time.perf_counter()
    async with trio.open_nursery() as nursery:
        for _ in range(connections):
            nursery.start_soon(_Worker(target, tally).run)
    elapsed = time.perf_counter() - began
    cpu = time.process_time() - cpu
    answered = sum(tally.statuses.values())
    refused = {str(status): number for status, number in sorted(tally.statuses.items()) if status >= 400}
    return {
        "requests": answered,
        "connections": connections,
        "seconds": round(elapsed, 4),
        "rate": round(answered / elapsed, 1),
        "errors": refused | dict(tally.failures),
        "statuses": {str(status): number for status, number in sorted(tally.statuses.items())},
        "response_bytes": tally.response_bytes,
        "latency_ms": spread(tally.latencies),
        "first_byte_ms": spread(tally.first_bytes),
        "cpu_seconds": round(cpu, 4),
        "cpu_share": round(cpu / elapsed, 3),
        "is_bottleneck": cpu / elapsed > BUSY,
    }


@click.command(help=__doc__)
@click.option("--url", required=True, help="http://host:port/path")
@click.option("--method", default="POST", show_default=True)
@click.option("--connections", default=32, show_default=True)
@click.option("--requests", type=int, help="Stop after that many requests.")
@click.option("--seconds", type=float, help="Stop after that time.")
@click.option("--token", help="Sent as Authorization: Bearer.")
@click.option("--header", "headers", multiple=True, help="NAME: VALUE; repeatable.")
@click.option("--sdk-headers/--few-headers", default=True, show_default=True, help="Send what an SDK sends, or little.")
@click.option(
    "--body",
    type=click.Path(path_type=Path, exists=True),
    help="A file with the body; a short chat completion otherwise.",
)
@click.option("--stream", is_flag=True, help="Ask for a streamed chat completion.")
def main(  # noqa: PLR0913 - one for each option
    *,
    url: str,
    method: str,
    connections: int,
    requests: int | None,
    seconds: float | None,
    token: str | None,
    headers: tuple[str, ...],
    sdk_headers: bool,
    body: Path | None,
    stream: bool,
) -> None:
    """Run the load and print the report."""
    if requests is None and seconds is None:
        raise click.UsageError("say how much: --requests or --seconds")
    given = tuple((name.strip(), value.strip()) for name, _, value in (text.partition(":") for text in headers))
    sent = (SDK_HEADERS if sdk_headers else (("Content-Type", "application/json"),)) + given
    if token is not None:
        sent += (("Authorization", f"Bearer {token}"),)
    content = b""
    if body is not None:
        content = body.read_bytes()
    elif method == "POST":
        content = msgspec.json.encode(CHAT | {"stream": True} if stream else CHAT)
    tally = Tally(requests, None if seconds is None else time.perf_counter() + seconds)
    report = trio.run(run, Target.render(method, url, sent, content), connections, tally)
    click.echo(msgspec.json.encode(report))
    if report["is_bottleneck"]:
        share = f"{report['cpu_share']:.0%}"
        click.echo(f"warning: the load generator used {share} of a core and is the bottleneck", err=True)
    if report["errors"]:
        click.echo(f"warning: errors: {report['errors']}", err=True)
        sys.exit(1)


if __name__ == "__main__":
    main()
