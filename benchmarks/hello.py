"""The bare ASGI application that the proxy is compared with.

`hypercorn -k trio benchmarks.hello:app` is the reference; `python -m benchmarks.hello` serves it on the proxy's own
server, and prints its address as one line of JSON.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Awaitable, Callable
from typing import Any

import click
import msgspec
import trio

from llm_proxy.server.context import ServerConfig
from llm_proxy.server.server import serve

Message = dict[str, Any]

_BODY = b"Hello, world!"
_START = {
    "type": "http.response.start",
    "status": 200,
    "headers": [(b"content-type", b"text/plain"), (b"content-length", b"%d" % len(_BODY))],
}
_END = {"type": "http.response.body", "body": _BODY}


async def follow_lifespan(
    receive: Callable[[], Awaitable[Message]], send: Callable[[Message], Awaitable[None]]
) -> None:
    """Complete the server's startup and shutdown."""
    while True:
        message = await receive()
        await send({"type": f"{message['type']}.complete"})
        if message["type"] == "lifespan.shutdown":
            return


async def app(
    scope: Message, receive: Callable[[], Awaitable[Message]], send: Callable[[Message], Awaitable[None]]
) -> None:
    """Read the body and answer every request with the same text."""
    if scope["type"] == "lifespan":
        await follow_lifespan(receive, send)
        return
    while (await receive()).get("more_body"):
        pass
    await send(_START)
    await send(_END)


async def _main() -> None:
    stop = trio.Event()
    config = ServerConfig(host="127.0.0.1", port=0)
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        async with trio.open_nursery() as nursery:

            async def start() -> None:
                host, port = (await nursery.start(lambda **more: serve(app, config, stop=stop, **more)))[0]
                line = {"host": host, "port": port, "url": f"http://{host}:{port}", "pid": os.getpid()}
                click.echo(msgspec.json.encode(line))

            nursery.start_soon(start)
            async for _ in signals:
                stop.set()
                break


if __name__ == "__main__":
    trio.run(_main)
