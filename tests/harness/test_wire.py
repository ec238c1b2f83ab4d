from __future__ import annotations

from collections.abc import AsyncGenerator

import pytest
import trio

from tests.harness.wire import Wire, wire_to


async def echo(stream: trio.SocketStream) -> None:
    try:
        async for data in stream:
            await stream.send_all(data)
    except trio.BrokenResourceError:
        pass


@pytest.fixture
async def wire(nursery: trio.Nursery) -> AsyncGenerator[Wire]:
    listeners = await nursery.start(
        trio.serve_tcp,
        echo,
        0,
    )
    host, port = "127.0.0.1", listeners[0].socket.getsockname()[1]
    async with wire_to(host, port) as wire:
        yield wire


async def open_to(wire: Wire) -> trio.SocketStream:
    return await trio.open_tcp_stream(wire.host, wire.port)


async def says(stream: trio.SocketStream, word: bytes) -> bytes:
    await stream.send_all(word)
    with trio.fail_after(5):
        return bytes(await stream.receive_some())


async def test_bytes_go_both_ways(wire: Wire) -> None:
    async with await open_to(wire) as stream:
        assert await says(stream, b"hello") == b"hello"
        assert wire.connections == wire.accepted == 1


async def test_the_end_of_a_connection_goes_through(wire: Wire) -> None:
    async with await open_to(wire) as stream:
        await says(stream, b"hello")
        await stream.send_eof()
        assert await stream.receive_some() == b""


async def test_a_frozen_wire_is_silent_and_loses_nothing(wire: Wire) -> None:
    async with await open_to(wire) as stream:
        await says(stream, b"hello")
        wire.freeze()
        await stream.send_all(b"held back")
        with trio.move_on_after(0.05) as silence:
            await stream.receive_some()
        assert silence.cancelled_caught
        wire.thaw()
        with trio.fail_after(5):
            assert await stream.receive_some() == b"held back"


async def test_cut_connections_are_reset(wire: Wire) -> None:
    async with await open_to(wire) as stream:
        await says(stream, b"hello")
        assert wire.cut() == 1
        with pytest.raises(trio.BrokenResourceError):
            await stream.receive_some()
    async with await open_to(wire) as stream:
        assert await says(stream, b"again") == b"again"


async def test_refusing_spares_open_connections_and_ends(wire: Wire) -> None:
    async with await open_to(wire) as stream:
        await says(stream, b"hello")
        port = wire.port
        wire.refuse()
        await trio.testing.wait_all_tasks_blocked()
        with pytest.raises(OSError, match="all attempts to connect"):
            await open_to(wire)
        assert await says(stream, b"still here") == b"still here"
        await wire.accept()
        assert wire.port == port
    async with await open_to(wire) as stream:
        assert await says(stream, b"again") == b"again"


async def test_a_wire_to_nowhere_resets(wire: Wire) -> None:
    async with wire_to("127.0.0.1", 1) as nowhere, await open_to(nowhere) as stream:
        with pytest.raises(trio.BrokenResourceError):
            await stream.receive_some()
