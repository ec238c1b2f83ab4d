"""`llm-proxy demo`.

- `provider`: a provider that answers from a script
- `tour`: the steps of the tour
"""

from __future__ import annotations

import signal
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import click
import trio

from llm_proxy.cli.commands.demo.provider import DemoProvider
from llm_proxy.cli.commands.demo.tour import API_KEY, MANAGEMENT_TOKEN, Stage, invite, tour
from llm_proxy.cli.options import Value
from llm_proxy.cli.program import Command
from llm_proxy.config import ListenAddress, Settings
from llm_proxy.config.kinds import LISTEN_ADDRESS
from llm_proxy.server.asgi import LifespanFailed
from llm_proxy.server.context import ServerConfig
from llm_proxy.server.server import serve
from llm_proxy.web.app import create_app
from llm_proxy.worker import bind_listeners, serve_config, url_of

#: Seconds between two events of a streamed response, so that it can be seen to arrive in pieces.
_GAP = 0.03
#: Seconds for running requests when the demo ends.
_GRACE = 2.0


@click.command(cls=Command)
@click.option("--once", is_flag=True, help="Stop after the tour.")
@click.option(
    "--addr",
    type=Value(LISTEN_ADDRESS),
    metavar="[HOST]:PORT",
    default=ListenAddress("127.0.0.1", 0),
    help="Address of the proxy.  [default: 127.0.0.1, a free port]",
)
def command(*, once: bool, addr: ListenAddress) -> None:
    """Show the proxy at work, offline, in a few seconds.

    Starts a provider that answers from a script, and a proxy before it with a database in a temporary folder. Sends
    requests as a client would, shows their rows in the ledger and their cost, spends a budget, and serves until Ctrl-C.
    """
    with tempfile.TemporaryDirectory(prefix="llm-proxy-demo-") as folder:
        trio.run(_demo, Path(folder), addr, once)


async def _demo(folder: Path, address: ListenAddress, once: bool) -> None:  # noqa: FBT001 (trio passes by position)
    async with _open_stage(folder, address) as stage:
        with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_present, stage, once, nursery.cancel_scope)
                await anext(signals)
                nursery.cancel_scope.cancel()


async def _present(stage: Stage, once: bool, scope: trio.CancelScope) -> None:  # noqa: FBT001 (as above)
    token = await tour(stage)
    if once:
        scope.cancel()
    else:
        invite(stage, token)


@asynccontextmanager
async def _open_stage(folder: Path, address: ListenAddress) -> AsyncIterator[Stage]:
    """Start the provider, then the proxy; stop them in reverse order."""
    async with trio.open_nursery() as nursery:
        stop_proxy, stop_provider, stopped = trio.Event(), trio.Event(), trio.Event()
        provider = DemoProvider(API_KEY, _GAP)
        config = ServerConfig(host="127.0.0.1", port=0, shutdown_grace=_GRACE)
        ((host, port),) = await nursery.start(partial(serve, provider, config, stop=stop_provider))
        settings = Settings(
            database_path=folder / "llm-proxy.db",
            listen_addr=address,
            log_file=folder / "llm-proxy.log",
            log_format="text",
            shutdown_grace=_GRACE,
            management_token=MANAGEMENT_TOKEN,
            openai_api_url=f"http://{host}:{port}",
        )
        app = create_app(settings)
        config = serve_config(settings, bind_listeners(settings))

        async def run(task_status: trio.TaskStatus[object]) -> None:
            try:
                await serve(app, config, stop=stop_proxy, on_drain=app.report_draining, task_status=task_status)
            except LifespanFailed as error:
                raise app.failure or error from None
            finally:
                stopped.set()

        (host, port), *_ = await nursery.start(run)
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104 (compared, not bound)
        try:
            yield Stage(url_of(settings, (host, port)), str(settings.openai_api_url), app.services.database)
        finally:
            stop_proxy.set()
            with trio.CancelScope(shield=True, deadline=trio.current_time() + 2 * _GRACE):
                await stopped.wait()
            stop_provider.set()
