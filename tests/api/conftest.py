"""The control plane on its own: an app with nothing but its routes, on a scratch database."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any

import httpx
import msgspec
import pytest
import trio
from attrs import Factory, define, frozen
from quart_trio import QuartTrio

from db.database import open_database
from db.dsn import Target
from db.options import Options
from llm_proxy import __version__
from llm_proxy.api import register
from llm_proxy.config import Settings
from llm_proxy.gateway.providers import provider_file
from llm_proxy.gateway.routing import Routing
from llm_proxy.metrics import Metrics
from llm_proxy.secrets.encryption import KeyRing
from llm_proxy.services import Services
from tests.databases.kinds import Kind
from tests.databases.scratch import Databases

MANAGEMENT_TOKEN = "canary-management-token"
NOON = datetime(2027, 1, 15, 12, 0, 0, 123456, tzinfo=UTC)


@frozen
class Reply:
    """What the control plane answered."""

    status: int
    headers: Mapping[str, str]
    data: bytes

    @property
    def json(self) -> Any:
        """The body as Python has it."""
        return msgspec.json.decode(self.data)


@define(eq=False)
class StubReadiness:
    """Readiness as a test sets it."""

    reasons: list[str] = Factory(list)
    admits_offline: bool = False

    async def failing(self) -> list[str]:
        return self.reasons


@define
class Api:
    """Calls the control plane in this process, with the management token unless told otherwise."""

    app: QuartTrio
    services: Services

    async def __call__(
        self,
        method: str,
        path: str,
        body: object = None,
        *,
        data: bytes | None = None,
        headers: dict[str, str] | None = None,
        token: str | None = MANAGEMENT_TOKEN,
        address: str = "192.0.2.1",
    ) -> Reply:
        """Send one request. `body` is sent as JSON, `data` as it is."""
        sent = dict(headers or {})
        if token is not None:
            sent.setdefault("Authorization", f"Bearer {token}")
        if body is not None:
            data = msgspec.json.encode(body)
        if data is not None:
            sent.setdefault("Content-Type", "application/json")
        asgi: Any = self.app  # Quart spells out the types that httpx leaves open
        transport = httpx.ASGITransport(asgi, client=(address, 4711))
        async with httpx.AsyncClient(transport=transport, base_url="http://proxy.test") as client:
            response = await client.request(method, path, headers=sent, content=data)
        return Reply(response.status_code, response.headers, response.content)

    async def project(self, **fields: Any) -> dict[str, Any]:
        """Make a project."""
        reply = await self("POST", "/manage/projects", {"name": "p", "api_key": "sk-key-1234"} | fields)
        assert reply.status == 201, reply
        return dict(reply.json)

    async def token(self, project: dict[str, Any], **fields: Any) -> dict[str, Any]:
        """Make a token of a project."""
        reply = await self("POST", "/manage/tokens", {"project_id": project["id"]} | fields)
        assert reply.status == 201, reply
        return dict(reply.json)

    def at(self, now: datetime) -> Api:
        """The same server at another time."""
        return make_api(self.services, now)


def make_api(services: Services, now: datetime = NOON) -> Api:
    """Put the routes on an app with the limits that the real one has."""
    app = QuartTrio("llm_proxy")
    app.config.update(RESPONSE_TIMEOUT=None, BODY_TIMEOUT=30, MAX_CONTENT_LENGTH=1024 * 1024)
    register(app, services, lambda: now)
    return Api(app, services)


@asynccontextmanager
async def serve(target: Target, now: datetime = NOON) -> AsyncIterator[Api]:
    """The control plane on a database whose schema is at head."""
    providers = provider_file.load(Settings())
    upstream: Any = SimpleNamespace(close=lambda: None)
    relay: Any = SimpleNamespace(routing=Routing(providers, dict.fromkeys(providers.by_name, upstream)))
    collector: Any = SimpleNamespace(collect=trio.lowlevel.checkpoint)
    readiness: Any = StubReadiness()
    async with open_database(target, Options(pool_size=3)) as database, trio.open_nursery() as nursery:
        services = Services(
            settings=Settings(management_token=MANAGEMENT_TOKEN, label_keys=("team", "env")),
            database=database,
            keyring=KeyRing.generate(),
            relay=relay,
            metrics=Metrics(providers.by_name, __version__),
            collector=collector,
            readiness=readiness,
            nursery=nursery,
        )
        yield make_api(services, now)
        nursery.cancel_scope.cancel()
        assert database.connections.in_use == 0


@pytest.fixture
async def api(databases: Databases) -> AsyncIterator[Api]:
    """The control plane on SQLite, at noon."""
    with databases.migrated(Kind.SQLITE) as scratch:
        async with serve(scratch.target) as api:
            yield api


@pytest.fixture
async def any_api(migrated_target: Target) -> AsyncIterator[Api]:
    """The control plane on each of the databases, at noon."""
    async with serve(migrated_target) as api:
        yield api
