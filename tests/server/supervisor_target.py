"""A program under a supervisor: `supervisor_target COUNT GRACE`, or without one where COUNT is 0.

It prints its port. Each answer is the number of the process that gives it; `/hold` never comes, `/die` ends the worker
with status 3. With MODE=broken in the environment, and while the file is there that BROKEN names, no worker can start;
with MODE=sour none ends well.
"""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import trio

from llm_proxy.server.asgi import Receive, Scope, Send
from llm_proxy.server.context import ServerConfig
from llm_proxy.server.listener import bind
from llm_proxy.server.process import serve_until_signal
from llm_proxy.server.supervisor import Supervisor
from tests.server.applications import respond, with_lifespan

MODE = os.environ.get("MODE")
BROKEN = Path(os.environ["BROKEN"]) if "BROKEN" in os.environ else None
GRACE = float(sys.argv[2])


async def app(scope: Scope, _receive: Receive, send: Send) -> None:
    if scope["path"] == "/hold":
        await trio.sleep_forever()
    if scope["path"] == "/die":
        os._exit(3)
    await respond(send, str(os.getpid()).encode())


def serve_here(
    sockets: Sequence[socket.socket], _number: int = 0, on_serving: Callable[[], None] = lambda: None
) -> None:
    if MODE == "broken" or (BROKEN is not None and BROKEN.exists()):
        raise RuntimeError("no worker can start")
    config = ServerConfig(sockets=tuple(sockets), shutdown_grace=GRACE)

    async def serve() -> None:
        async with trio.open_nursery() as nursery:
            await nursery.start(serve_until_signal, with_lifespan(app), config)
            on_serving()

    trio.run(serve)
    if MODE == "sour":
        sys.exit(4)


def main(workers: int) -> int:
    sockets = bind("127.0.0.1", 0)
    print(sockets[0].getsockname()[1], flush=True)  # noqa: T201 - the test waits for it
    if workers:
        return Supervisor(serve_here, sockets, workers=workers, shutdown_grace=GRACE).run()
    serve_here(sockets)
    return 0


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1])))
