"""One exchange with a provider on loopback, from an admitted request to its result."""

from __future__ import annotations

from typing import Any

import trio
from attrs import define, field

from db.records import Result
from llm_proxy.config import Settings
from llm_proxy.gateway.exchange import Exchange
from llm_proxy.gateway.inbound import Inbound
from llm_proxy.gateway.providers import provider_file
from llm_proxy.gateway.providers.provider import Route
from llm_proxy.gateway.upstream.pool import UpstreamPool
from tests.gateway.upstream.stage import PATIENT, Handler, Stage, counts, settled, stage


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


async def ended(handler: Handler, until: bytes | None = None, method: str = "POST", path: bytes = b"/v1/x") -> Ended:
    """Run one exchange with a provider that does what `handler` says."""

    async def receive() -> Any:
        await trio.sleep_forever()

    async with stage(handler) as upstream:
        pool = UpstreamPool(upstream.origin, PATIENT)
        client = Client(until)
        scope = {"method": method, "raw_path": path, "query_string": b"", "headers": []}
        route = Route(None, path, "openai")
        inbound = client.inbound = Inbound("0190", trio.current_time(), route, scope, receive, 1000)
        exchange = Exchange(inbound, client.send)
        began = trio.current_time()
        with trio.CancelScope() as inbound.scope:
            await exchange.run(provider_of(upstream), pool, "key")
        took = trio.current_time() - began
        result = exchange.result()
        await settled()
        found = Ended(exchange, result, counts(pool), client.received, client.messages, took)
        pool.close()
        return found


def provider_of(upstream: Stage) -> Any:
    url = f"http://127.0.0.1:{upstream.origin.port}"
    return provider_file.load(Settings.load({"OPENAI_API_URL": url}, {}, None)).default
