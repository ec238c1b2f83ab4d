"""The server tells an application at once when the client of a request has left."""

from __future__ import annotations

import socket
import struct
from collections.abc import Callable
from functools import partial

import pytest
import trio

from llm_proxy.serving.asgi import Receive, Scope, Send
from llm_proxy.serving.hang_up import EXTENSION, HangUps
from llm_proxy.serving.server import ServeConfig, serve

pytestmark = pytest.mark.skipif(not HangUps.available(), reason="this system does not tell; receive() does")

REQUEST = b"GET / HTTP/1.1\r\nHost: here\r\n\r\n"


class Application:
    """Waits until it is told that the client has left, without ever calling `receive`."""

    def __init__(self, *, late: bool = False) -> None:
        self.late = late
        self.started = trio.Event()
        self.told = trio.Event()
        self.told_after = 0.0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        assert scope["type"] == "http"
        self.started.set()
        if self.late:
            await trio.sleep(0.05)
        begun = trio.current_time()
        scope["extensions"][EXTENSION]["notify"](self.told.set)
        with trio.fail_after(5):
            await self.told.wait()
        self.told_after = trio.current_time() - begun
        with pytest.raises(OSError, match="client"):
            await send({"type": "http.response.start", "status": 200, "headers": []})


def fin(client: socket.socket) -> None:
    client.close()


def reset(client: socket.socket) -> None:
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    client.close()


@pytest.mark.parametrize("leave", [fin, reset])
@pytest.mark.parametrize("late", [False, True], ids=["while-it-runs", "before-it-asks"])
@pytest.mark.parametrize("pipelined", [b"", REQUEST, REQUEST * 200], ids=["alone", "another-behind", "many-behind"])
async def test_it_is_told(leave: Callable[[socket.socket], None], *, late: bool, pipelined: bytes) -> None:
    application = Application(late=late)
    stop = trio.Event()
    async with trio.open_nursery() as nursery:

        async def plain(scope: Scope, receive: Receive, send: Send) -> None:
            if scope["type"] == "lifespan":
                raise NotImplementedError("without a lifespan")
            if not application.started.is_set():
                await application(scope, receive, send)

        addresses = await nursery.start(partial(serve, plain, ServeConfig(port=0), stop=stop))
        client = socket.create_connection(addresses[0])
        client.sendall(REQUEST + pipelined)
        await application.started.wait()
        leave(client)
        with trio.fail_after(5):
            await application.told.wait()
        stop.set()


def test_a_number_that_another_socket_has_by_now_is_not_forgotten() -> None:
    hang_ups = HangUps()
    heard: list[str] = []
    one, other = socket.socketpair()
    with one, other:

        def first() -> None:
            heard.append("first")

        def second() -> None:
            heard.append("second")

        hang_ups.watch(one.fileno(), first)
        hang_ups._poll.unregister(one.fileno())
        hang_ups.watch(one.fileno(), second)
        hang_ups.forget(one.fileno(), first)
        assert hang_ups._listeners == {one.fileno(): second}
        hang_ups.forget(one.fileno(), second)
        assert not hang_ups._listeners
    hang_ups.close()
    assert not heard
