"""Waiting for data on sockets that are registered once, and noticing that peers close their side."""

from __future__ import annotations

import socket
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from random import Random

import pytest
import trio
import trio.testing

from llm_proxy.net import poller
from llm_proxy.net.client_socket import READ_SIZE, ClientSocket
from llm_proxy.server.transport import SocketTransport

on_linux = pytest.mark.skipif(not poller.AVAILABLE, reason="this system has no EPOLLRDHUP")

End = ClientSocket | SocketTransport
Make = Callable[[socket.socket], End]


@contextmanager
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    one, other = socket.socketpair()
    with one, other:
        one.settimeout(0)
        other.settimeout(0)
        yield one, other


def fin(peer: socket.socket) -> None:
    peer.shutdown(socket.SHUT_WR)


def reset(peer: socket.socket) -> None:
    peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    peer.close()


@pytest.fixture(params=["client", "server", "client-without-epoll", "server-without-epoll"])
def connect(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Make:
    """Make the client's or the server's end of a connection of a socket."""
    if request.param.endswith("without-epoll"):
        monkeypatch.setattr(poller, "AVAILABLE", False)
    if request.param.startswith("client"):
        return ClientSocket
    return lambda sock: SocketTransport(sock, 30.0)


async def read(end: End) -> bytes:
    return await (end.receive() if isinstance(end, ClientSocket) else end.receive_some())


async def test_pieces_that_come_while_others_are_read_and_the_end(
    connect: Make,
) -> None:
    random = Random(1)
    sent = [random.randbytes(random.choice([1, 700, READ_SIZE, READ_SIZE + 1, 3 * READ_SIZE])) for _ in range(40)]
    with pair() as (ours, theirs):
        end, peer = connect(ours), trio.socket.from_stdlib_socket(theirs)
        received = bytearray()

        async def send() -> None:
            for piece in sent:
                view = memoryview(piece)
                while view:
                    view = view[await peer.send(view) :]
                if random.random() < 0.5:
                    await trio.testing.wait_all_tasks_blocked()
            theirs.shutdown(socket.SHUT_WR)

        with trio.fail_after(10):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(send)
                while data := await read(end):
                    received += data
            assert await read(end) == b"", "the end stays"
        assert bytes(received) == b"".join(sent)
        end.close()


async def test_data_and_the_end_in_one_event(connect: Make) -> None:
    with pair() as (ours, theirs), trio.fail_after(5):
        end = connect(ours)
        theirs.send(b"last")
        fin(theirs)
        await trio.testing.wait_all_tasks_blocked()
        assert await read(end) == b"last"
        assert await read(end) == b""
        end.close()


async def test_an_event_of_data_that_was_read_already(connect: Make) -> None:
    with pair() as (ours, theirs), trio.fail_after(5):
        end = connect(ours)
        for text in (b"one", b"two"):
            theirs.send(text)
            assert await read(end) == text
            theirs.send(text)
            theirs.send(text)
            assert await read(end) == 2 * text
        with trio.move_on_after(0.05) as waiting:
            await read(end)
        assert waiting.cancelled_caught
        theirs.send(b"three")
        assert await read(end) == b"three", "a cancelled wait leaves nothing behind"
        end.close()


async def test_closing_wakes_a_task_that_reads(connect: Make) -> None:
    with pair() as (ours, _), trio.fail_after(5):
        end = connect(ours)
        async with trio.open_nursery() as nursery:

            async def closed() -> None:
                with pytest.raises(trio.ClosedResourceError):
                    await read(end)

            nursery.start_soon(closed)
            await trio.testing.wait_all_tasks_blocked()
            end.close()
        end.close()
        with pytest.raises((trio.ClosedResourceError, OSError)):
            await read(end)


async def test_two_tasks_cannot_read(connect: Make) -> None:
    with pair() as (ours, theirs), trio.fail_after(5):
        end = connect(ours)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(read, end)
            await trio.testing.wait_all_tasks_blocked()
            with pytest.raises(trio.BusyResourceError):
                await read(end)
            theirs.send(b"x")
        end.close()


async def test_each_read_is_a_checkpoint(connect: Make) -> None:
    with pair() as (ours, theirs):
        end = connect(ours)
        theirs.send(b"x" * 8)
        fin(theirs)
        assert await read(end)
        for _ in range(2):
            with trio.testing.assert_checkpoints():
                assert await read(end) == b""
        end.close()


def has_closed(watched: poller.Watch) -> bool:
    return watched.peer_closed


@on_linux
@pytest.mark.parametrize(("leave", "lost"), [(fin, False), (reset, True)])
@pytest.mark.parametrize("late", [False, True], ids=["before", "after"])
async def test_the_callback(leave: Callable[[socket.socket], None], *, lost: bool, late: bool) -> None:
    calls: list[bool] = []
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        with socket.create_connection(listener.getsockname()) as theirs, listener.accept()[0] as ours:
            watched = poller.watch(ours.fileno())
            if not late:
                watched.on_closed(calls.append)
            theirs.send(b"x")
            await trio.testing.wait_all_tasks_blocked()
            assert not calls
            assert not has_closed(watched)
            leave(theirs)
            with trio.fail_after(5):
                while not has_closed(watched):  # noqa: ASYNC110 - trio has no event for the kernel's news
                    await trio.sleep(0.001)
            if late:
                watched.on_closed(calls.append)
            assert calls[0] is lost
            watched.close()
            watched.close()


@on_linux
async def test_a_closed_socket_keeps_a_new_one_with_its_number() -> None:
    with pair() as (ours, theirs), trio.fail_after(5):
        number = ours.fileno()
        first = poller.watch(number)
        ours.close()
        with pair() as (again, peer):
            assert again.fileno() == number
            second = poller.watch(number)
            first.close()
            peer.send(b"x")
            await second.readable()
            second.close()
        theirs.close()


@on_linux
async def test_a_socket_that_cannot_be_watched_is_an_error() -> None:
    with pair() as (ours, _):
        watched = poller.watch(ours.fileno())
        with pytest.raises(OSError, match="exists"):
            poller.watch(ours.fileno())
        watched.close()
