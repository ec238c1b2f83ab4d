"""One exchange with a provider on loopback, from an admitted request to its result."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import trio
from attrs import define, evolve, field

from db.records import Result
from llm_proxy.config import Settings
from llm_proxy.gateway.exchange import Exchange
from llm_proxy.gateway.inbound import Inbound
from llm_proxy.gateway.providers import provider_file
from llm_proxy.gateway.providers.provider import Provider, Route
from llm_proxy.gateway.upstream.pool import UpstreamPool
from llm_proxy.prices import Prices
from tests.gateway.upstream.stage import PATIENT, Handler, Stage, counts, settled, stage

HOSTS = {"openai": "https://api.openai.com", "bedrock": "https://bedrock-runtime.us-east-1.amazonaws.com"}
PRICES = Prices.load(None, HOSTS)


@define
class Ended:
    exchange: Exchange
    result: Result
    counts: str
    received: bytes
    messages: list[dict[str, Any]]
    took: float


@define
class Client:
    """Receives what is sent, and leaves as soon as it has seen `until`."""

    until: bytes | None
    inbound: Inbound | None = None
    received: bytes = b""
    left: bool = False
    messages: list[dict[str, Any]] = field(factory=list)

    async def send(self, message: dict[str, Any]) -> None:
        await trio.lowlevel.checkpoint_if_cancelled()
        if self.left:
            raise BrokenPipeError("the client has left")
        self.messages.append(message)
        self.received += message.get("body", b"")
        if self.until is not None and self.until in self.received and self.inbound is not None:
            self.left = True
            self.inbound.leave()


async def ended(
    handler: Handler,
    until: bytes | None = None,
    method: str = "POST",
    path: bytes = b"/v1/x",
    provider: str = "openai",
    body: bytes = b"",
    prices: Path | None = None,
    *,
    key: str = "key",
) -> Ended:
    """Run one exchange with a provider that does what `handler` says."""
    pieces = [body] if body else []

    async def receive() -> Any:
        if not pieces:
            await trio.sleep_forever()
        await trio.lowlevel.checkpoint()
        return {"type": "http.request", "body": pieces.pop(), "more_body": False}

    async with stage(handler) as upstream:
        pool = UpstreamPool(upstream.origin, PATIENT)
        client = Client(until)
        headers = [(b"content-length", b"%d" % len(body))] if body else []
        scope = {"method": method, "raw_path": path, "query_string": b"", "headers": headers}
        route = Route(None, path, "openai")
        inbound = client.inbound = Inbound("0190", trio.current_time(), route, scope, receive, 100_000)
        if body:
            await inbound.gather()
        exchange = Exchange(inbound, client.send)
        began = trio.current_time()
        with trio.CancelScope() as inbound.scope:
            await exchange.run(provider_of(upstream, provider), pool, key)
        took = trio.current_time() - began
        result = exchange.result(PRICES if prices is None else Prices.load(prices, HOSTS))
        await settled()
        found = Ended(exchange, result, counts(pool), client.received, client.messages, took)
        pool.close()
        return found


def provider_of(upstream: Stage, name: str) -> Provider:
    url = f"http://127.0.0.1:{upstream.origin.port}"
    openai = provider_file.load(Settings.load({"OPENAI_API_URL": url}, {}, None)).default
    if name == "openai":
        return openai
    if name == "query":
        return evolve(openai, auth="query", auth_parameter="key")
    return evolve(openai, name=name, shape="aws", allowed_endpoints=("/model/{model}/invoke",))
