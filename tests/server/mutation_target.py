"""A program that serves one small application, on our server or on Hypercorn's own: `mutation_target ours|stock`.

It prints the port that it listens on, and whatever it has to report on stderr.
"""

from __future__ import annotations

import contextlib
import sys

import hypercorn.config
import hypercorn.trio
import trio

from llm_proxy.server.asgi import Address, Receive, Scope, Send
from llm_proxy.server.context import ServerConfig
from llm_proxy.server.listener import bind
from llm_proxy.server.server import serve
from tests.server.applications import read_all, respond


async def echo(scope: Scope, receive: Receive, send: Send) -> None:
    """Answer with the request's body."""
    assert scope["type"] == "http"
    with contextlib.suppress(EOFError, OSError):
        await respond(send, await read_all(receive))


async def ours() -> None:
    async with trio.open_nursery() as nursery:

        async def run(task_status: trio.TaskStatus[list[Address]]) -> None:
            await serve(echo, ServerConfig(port=0), stop=trio.Event(), task_status=task_status)

        addresses = await nursery.start(run)
        print(addresses[0][1], flush=True)  # noqa: T201 - the test waits for it


async def stock() -> None:
    (listener,) = bind("127.0.0.1", 0)
    config = hypercorn.config.Config()
    config.bind = [f"fd://{listener.fileno()}"]
    print(listener.getsockname()[1], flush=True)  # noqa: T201 - the test waits for it
    await hypercorn.trio.serve(echo, config)  # type: ignore[arg-type]  # its message types are typed dictionaries


if __name__ == "__main__":
    trio.run({"ours": ours, "stock": stock}[sys.argv[1]])
