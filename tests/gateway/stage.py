"""A relay at work between a client that a test plays, a ledger on SQLite, and a provider on loopback."""
# ruff: noqa: ASYNC110 (the test looks at the ledger and the provider from outside, where there is no event)

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import trio
from attrs import define, field
from sqlalchemy import func, select

from db import dsn
from db.database import Database, open_database
from db.options import Options
from db.queries import ledger as queries
from db.queries import projects, tokens
from db.records import Worker
from db.schema import in_flight, metadata, requests
from llm_proxy.config import Settings
from llm_proxy.gateway.labels import Labels
from llm_proxy.gateway.providers import provider_file
from llm_proxy.gateway.relay import Relay
from llm_proxy.gateway.routing import Routing
from llm_proxy.gateway.upstream.connector import Timeouts
from llm_proxy.gateway.upstream.pool import UpstreamPool
from llm_proxy.identifiers import new_id
from llm_proxy.ledger import Ledger
from llm_proxy.logging import log
from llm_proxy.metrics import Metrics
from llm_proxy.net.disconnect import EXTENSION
from llm_proxy.prices import Prices
from llm_proxy.secrets.encryption import KeyRing
from llm_proxy.tokens import digest, new_secret
from tests.db.queries.factories import a_project, a_token


@define
class Client:
    """The client's end of an ASGI connection: sends its body in pieces, and leaves when it is told to.

    `at_once` says whether the first piece has come with the head.
    """

    pieces: list[bytes]
    at_once: bool = True
    left: trio.Event = field(factory=trio.Event)
    on_leaving: Callable[[], None] = lambda: None
    received: list[dict[str, Any]] = field(factory=list)

    def leave(self) -> None:
        self.left.set()
        self.on_leaving()

    def notify(self, listener: Callable[[], None]) -> None:
        """The server's offer to tell when the client leaves."""
        self.on_leaving = listener

    async def receive(self) -> dict[str, Any]:
        if self.pieces and not self.left.is_set():
            if not self.at_once:
                await trio.lowlevel.checkpoint()
            self.at_once = False
            piece = self.pieces.pop(0)
            return {"type": "http.request", "body": piece, "more_body": bool(self.pieces)}
        await self.left.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: dict[str, Any]) -> None:
        await trio.lowlevel.checkpoint()
        if self.left.is_set():
            raise BrokenPipeError("the client has left")
        self.received.append(message)

    @property
    def complete(self) -> bool:
        return bool(self.received) and not self.received[-1].get("more_body", True)


@define
class Provider:
    """A provider on loopback that answers in small pieces, and knows which connections are open."""

    port: int = 0
    open: int = 0
    answered: int = 0
    #: What is sent before the headers of an answer.
    status: bytes = b"200 OK"
    seen: list[bytes] = field(factory=list)
    #: Makes a whole answer of the head and the body of a request, instead of the usual stream.
    script: Callable[[bytes, bytes], bytes] | None = None

    async def serve(self, task_status: trio.TaskStatus[None]) -> None:
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        self.port = listeners[0].socket.getsockname()[1]
        task_status.started()
        await trio.serve_listeners(self._handle, listeners)

    async def _handle(self, stream: trio.SocketStream) -> None:
        self.open += 1
        try:
            data = b""
            while chunk := await stream.receive_some():
                data += chunk
                head, blank, body = data.partition(b"\r\n\r\n")
                if not blank or not (body.endswith(b"0\r\n\r\n") or len(body) == _declared(head)):
                    continue
                self.seen.append(data)
                data = b""
                self.answered += 1
                if self.script is not None:
                    await stream.send_all(self.script(head, body))
                    continue
                await stream.send_all(b"HTTP/1.1 %b\r\nContent-Type: text/event-stream\r\n" % self.status)
                await stream.send_all(b"Transfer-Encoding: chunked\r\n\r\n")
                for piece in (b"data: 1\n\n", b"data: [DONE]\n\n"):
                    await trio.lowlevel.checkpoint()
                    await stream.send_all(b"%x\r\n%b\r\n" % (len(piece), piece))
                await stream.send_all(b"0\r\n\r\n")
        except trio.BrokenResourceError:
            pass
        finally:
            self.open -= 1
            await trio.aclose_forcefully(stream)


def _declared(head: bytes) -> int:
    for line in head.lower().split(b"\r\n"):
        if line.startswith(b"content-length:"):
            return int(line.partition(b":")[2])
    return -1 if b"transfer-encoding" in head.lower() else 0


@define
class Scene:
    database: Database
    ledger: Ledger
    relay: Relay
    pool: Any
    provider: Provider
    secret: bytes
    settled: int = 0

    async def request(self, client: Client, *, chunked: bool, told: bool) -> None:
        size = sum(map(len, client.pieces))
        framing = (b"transfer-encoding", b"chunked") if chunked else (b"content-length", b"%d" % size)
        scope = {
            "type": "http",
            "method": "POST",
            "raw_path": b"/v1/chat/completions",
            "query_string": b"",
            "headers": [(b"authorization", b"Bearer " + self.secret), (b"content-type", b"application/json"), framing],
            "extensions": {EXTENSION: {"on_disconnect": client.notify}} if told else {},
        }
        route = self.relay.route(b"/v1/chat/completions")
        assert route is not None
        await self.relay(route, scope, client.receive, client.send)

    async def counts(self) -> tuple[int, int]:
        def read(connection: Any) -> tuple[int, int]:
            return tuple(connection.scalar(select(func.count()).select_from(table)) for table in (requests, in_flight))

        return await self.database.read(read)

    async def assert_nothing_is_left(self) -> None:
        assert self.pool.in_use == 0, self.pool
        assert self.relay.running == 0
        assert self.relay.held.size == 0
        assert self.ledger._lookups.waiting == 0
        with trio.fail_after(2):
            while self.ledger.busy:
                await trio.sleep(0.001)
            while self.provider.open > self.pool.idle:
                await trio.sleep(0.001)
        settled, flying = await self.counts()
        assert flying == 0
        assert settled - self.settled in (0, 1)
        self.settled = settled
        assert await self.database.read(queries.verify) == []
        with trio.fail_after(2):
            # The writer may be sending its heartbeat now.
            while self.database.connections.in_use:
                await trio.sleep(0.001)


async def add_project(
    database: Database, keyring: KeyRing, secret: str, api_key: str = "the-real-key", **fields: Any
) -> str:
    """Create a project with one token, and return its id."""
    identity = new_id()
    project = a_project(id=identity, api_key=keyring.seal(api_key, identity), **fields)
    await database.write(projects.create, project)
    await database.write(tokens.create, a_token(project.id, digest=digest(secret)))
    return identity


@asynccontextmanager
async def scene(
    folder: Path, *, judged: bool = False, auth: str = "bearer", api_key: str = "the-real-key"
) -> AsyncIterator[Scene]:
    provider = Provider()
    async with trio.open_nursery() as nursery:
        await nursery.start(provider.serve)
        url = f"http://127.0.0.1:{provider.port}"
        settings = {"OPENAI_API_URL": url, "PUBLIC_URL": "https://llm.example.com"}
        if judged or auth != "bearer":
            rules = "param_whitelist: {model: [m]}" if judged else f"auth: {auth}"
            plain = f"plain: {{base_url: '{url}', allowed_endpoints: [/v1/chat/completions]}}"
            (folder / "apis.yaml").write_text(f"apis: {{openai: {{{rules}}}, {plain}}}")
            settings["API_CONFIG_PATH"] = str(folder / "apis.yaml")
        providers = provider_file.load(Settings.load(settings, {}, None))
        target = dsn.parse("sqlite", None, str(folder / "ledger.db"))
        async with open_database(target, Options(sqlite_synchronous="NORMAL")) as database:
            await database.write(metadata.create_all)
            keyring, secret = KeyRing.generate(), new_secret()
            await add_project(database, keyring, secret, api_key)
            now = datetime.now(UTC)
            metrics = Metrics()
            ledger = Ledger(database, Worker(new_id(), "here", 1, "0", now, now), metrics, exclusive=True)
            pool = UpstreamPool(providers.default.origin, Timeouts(5, 5, 5))
            relay = Relay(
                routing=Routing(providers, {"openai": pool, "plain": pool}),
                prices=Prices.load(None, {}),
                labels=Labels({}, ()),
                ledger=ledger,
                keyring=keyring,
                metrics=metrics,
                request_log=log.configure(path=folder / "log"),
                max_request_size=1 << 20,
                max_concurrent=100,
            )
            # Its last transaction has to end before the database is closed.
            async with trio.open_nursery() as writing:
                await writing.start(ledger.run)
                yield Scene(database, ledger, relay, pool, provider, secret.encode())
                pool.close()
                await ledger.drain()
                writing.cancel_scope.cancel()
            nursery.cancel_scope.cancel()
