"""The stage of the tour: a scripted provider and a proxy in front of it, both in this process, both on loopback."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import trio
from attrs import frozen

from llm_proxy.cli.demo.provider import DemoProvider
from llm_proxy.config import ListenAddress, Settings
from llm_proxy.server.asgi import Address, LifespanFailed
from llm_proxy.server.context import ServerConfig
from llm_proxy.server.server import serve
from llm_proxy.services import Services
from llm_proxy.web.app import create_app
from llm_proxy.worker import bind_listeners, serve_config, url_of

#: The provider's key, which the proxy keeps to itself. It opens nothing but the script.
API_KEY = "sk-scripted-provider-7f3a"
#: Opens the management API of the demo, which is reachable from this machine only and holds no secrets.
MANAGEMENT_TOKEN = "management-token-of-the-demo"  # noqa: S105 (no secret)
#: Seconds between the pieces of a streamed answer, so that one can see it come.
_GAP = 0.03
#: Seconds that running requests have when the demo ends.
_GRACE = 2.0


@frozen
class Stage:
    """What the tour plays on: the base URLs of proxy and provider, and the proxy's insides."""

    proxy_url: str
    provider_url: str
    services: Services


@asynccontextmanager
async def open_stage(folder: Path, address: ListenAddress) -> AsyncIterator[Stage]:
    """Start the provider, then the proxy with its database and its log in `folder`; stop them in reverse.

    Raises:
        llm_proxy.cli.failures.Failure: the address cannot be had.
        Exception: whatever kept the proxy from starting.
    """
    async with trio.open_nursery() as nursery:
        ending, provider_ending = trio.Event(), trio.Event()
        provider_url = await _start_provider(nursery, provider_ending)
        settings = Settings(
            database_path=folder / "llm-proxy.db",
            listen_addr=address,
            log_file=folder / "llm-proxy.log",
            log_format="text",
            shutdown_grace=_GRACE,
            management_token=MANAGEMENT_TOKEN,
            openai_api_url=provider_url,
        )
        app = create_app(settings)
        config = serve_config(settings, bind_listeners(settings))
        serving = partial(serve, app, config, stop=ending, on_drain=app.report_draining)
        stopped = trio.Event()

        async def run(task_status: trio.TaskStatus[object]) -> None:
            try:
                await serving(task_status=task_status)
            except LifespanFailed as error:
                raise app.failure or error from None
            finally:
                stopped.set()

        addresses = await nursery.start(run)
        try:
            yield Stage(url_of(settings, _reachable(addresses[0])), provider_url, app.services)
        finally:
            ending.set()
            with trio.CancelScope(shield=True, deadline=trio.current_time() + 2 * _GRACE):
                await stopped.wait()
            provider_ending.set()


async def _start_provider(nursery: trio.Nursery, ending: trio.Event) -> str:
    provider = DemoProvider(API_KEY, _GAP)
    config = ServerConfig(host="127.0.0.1", port=0, shutdown_grace=_GRACE)
    ((host, port),) = await nursery.start(partial(serve, provider, config, stop=ending))
    return f"http://{host}:{port}"


def _reachable(address: Address) -> Address:
    """An address for clients on this machine: one that stands for every interface is none."""
    host, port = address
    return {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host), port  # noqa: S104 (nothing is bound here)
