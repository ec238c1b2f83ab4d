"""A complete server in this process, and TCP clients for it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import Any, Self

import trio
from attrs import Factory, define

from llm_proxy.server.asgi import ASGIApp
from llm_proxy.server.context import ServerConfig
from llm_proxy.server.server import serve
from tests.server.answers import Answer, Truncated, read_answers


@define
class Listening:
    """A server in this process.

    Attributes:
        port: where it listens.
        ended: set when it has ended.
    """

    port: int = 0
    ended: trio.Event = Factory(trio.Event)

    async def connect(self) -> Client:
        return Client(await trio.open_tcp_stream("127.0.0.1", self.port))

    @asynccontextmanager
    async def run(self, serve: Callable[..., Awaitable[object]]) -> AsyncIterator[None]:
        """Serve while the block runs, with a function that passes its addresses to `task_status`."""

        async def to_the_end(task_status: trio.TaskStatus[Any]) -> None:
            await serve(task_status=task_status)
            self.ended.set()

        async with trio.open_nursery() as nursery:
            addresses = await nursery.start(to_the_end)
            self.port = addresses[0][1]
            yield
            nursery.cancel_scope.cancel()


@define
class Running(Listening):
    """A server that `run_server` has started.

    Attributes:
        stop: starts its shutdown.
        drains: number of calls of `on_drain`.
        reports: the exceptions that it has reported.
        at_drain: called by `on_drain`.
    """

    stop: trio.Event = Factory(trio.Event)
    drains: int = 0
    reports: list[BaseException] = Factory(list)
    at_drain: Callable[[], object] = lambda: None

    async def get(self, path: str = "/") -> Answer:
        """Send one request on a new connection."""
        async with await self.connect() as client:
            return await client.ask(path)

    def on_drain(self) -> None:
        self.drains += 1
        self.at_drain()


@define
class Client:
    """A client with a strict parser."""

    stream: Any
    got: bytes = b""

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await trio.aclose_forcefully(self.stream)

    async def ask(self, path: str = "/") -> Answer:
        """Send a GET and read its response.

        Raises:
            EOFError: the server closed the connection without one.
        """
        before = len(self.got)
        await self.stream.send_all(f"GET {path} HTTP/1.1\r\nHost: a\r\n\r\n".encode())
        while True:
            try:
                answers = read_answers(self.got[before:])
            except Truncated:
                answers = []
            if answers:
                return answers[0]
            data = await self.stream.receive_some()
            if not data:
                raise EOFError(self.got[before:])
            self.got += data

    async def read_to_end(self) -> bytes:
        """Read until the server closes the connection."""
        async for data in self.stream:
            self.got += data
        return self.got


@asynccontextmanager
async def run_server(app: ASGIApp, **fields: Any) -> AsyncIterator[Running]:
    """Serve `app` while the block runs; keywords are fields of `ServerConfig`."""
    running = Running()
    config = ServerConfig(**{"port": 0, "report": running.reports.append, **fields})
    async with running.run(partial(serve, app, config, stop=running.stop, on_drain=running.on_drain)):
        yield running
