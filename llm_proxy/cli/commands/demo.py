"""`llm-proxy demo`."""

from __future__ import annotations

import signal
import tempfile
from pathlib import Path

import click
import trio

from llm_proxy.cli.demo.screen import Screen
from llm_proxy.cli.demo.stage import MANAGEMENT_TOKEN, Stage, open_stage
from llm_proxy.cli.demo.tour import MODEL, Keys, TourFailed, tour
from llm_proxy.cli.failures import Failure
from llm_proxy.cli.program import Command
from llm_proxy.config import ListenAddress
from llm_proxy.config.kinds import LISTEN_ADDRESS

_ANY_FREE_PORT = ListenAddress("127.0.0.1", 0)


class _Address(click.ParamType[ListenAddress]):
    name = "address"

    def convert(
        self, value: str | ListenAddress, param: click.Parameter | None, ctx: click.Context | None
    ) -> ListenAddress:
        if isinstance(value, ListenAddress):
            return value
        try:
            return LISTEN_ADDRESS.parse(value)
        except ValueError:
            self.fail(f"{value!r} is not {LISTEN_ADDRESS.allowed}", param, ctx)


@click.command(cls=Command)
@click.option("--once", is_flag=True, help="End after the tour instead of serving on.")
@click.option(
    "--addr",
    type=_Address(),
    metavar="[HOST]:PORT",
    default=_ANY_FREE_PORT,
    help="Where the proxy listens.  [default: 127.0.0.1, a free port]",
)
def command(*, once: bool, addr: ListenAddress) -> None:
    """Show the proxy at work, offline, in a few seconds.

    Starts a provider that answers from a script and a proxy in front of it, with a database in a temporary folder;
    sends requests through it as a client would, shows what the ledger has of them, and serves on until Ctrl-C.
    """
    with tempfile.TemporaryDirectory(prefix="llm-proxy-demo-") as folder:
        trio.run(_demo, Path(folder), addr, once)


async def _demo(folder: Path, address: ListenAddress, once: bool) -> None:  # noqa: FBT001 (trio passes by position)
    screen = Screen()
    async with open_stage(folder, address) as stage:
        with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
            async with trio.open_nursery() as nursery:

                async def end_early() -> None:
                    await anext(signals)
                    nursery.cancel_scope.cancel()

                nursery.start_soon(end_early)
                try:
                    keys = await tour(stage, screen)
                except TourFailed as error:
                    raise Failure(f"the tour failed: {error}") from error
                if not once:
                    _invite(stage, keys, screen)
                    await trio.sleep_forever()
                nursery.cancel_scope.cancel()


def _invite(stage: Stage, keys: Keys, screen: Screen) -> None:
    screen.step("Now you")
    screen.say(f"The proxy serves on at {stage.proxy_url}, with a token of your own:")
    screen.command(
        f"curl -N {stage.proxy_url}/v1/chat/completions \\\n"
        f"  -H 'Authorization: Bearer {keys.visitor}' \\\n"
        "  -H 'Content-Type: application/json' \\\n"
        f'  -d \'{{"model": "{MODEL}", "stream": true,\n'
        '       "messages": [{"role": "user", "content": "Hello"}]}\''
    )
    screen.say("And this is how its projects and tokens are managed:")
    screen.command(
        f"llm-proxy manage token list \\\n"
        f"  --manage-api-base-url {stage.proxy_url} --management-token {MANAGEMENT_TOKEN}"
    )
    screen.note("Ctrl-C ends the demo and removes its database.")
