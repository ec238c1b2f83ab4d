from __future__ import annotations

import errno
import gc
import os
import resource
import socket
import ssl
import weakref
from pathlib import Path
from typing import Any

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from llm_proxy.server.asgi import LifespanFailed, Receive, Scope, Send
from llm_proxy.server.context import ServerConfig
from llm_proxy.server.listener import bind
from llm_proxy.server.process import serve_until_signal
from llm_proxy.server.server import serve
from tests.server.applications import Echo, Hold, respond, with_lifespan
from tests.server.conftest import Connect
from tests.server.running import run_server

CONNECTION_CLOSE = b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"


async def test_the_lifespan_starts_before_and_ends_after_the_requests() -> None:
    journal: list[str] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        journal.append(scope["path"])
        scope["state"]["mine"] = True
        await respond(send, scope["state"]["greeting"])

    async with run_server(with_lifespan(app, journal, greeting=b"hello")) as server:
        assert (await server.get("/one")).body == b"hello"
        await server.get("/two")
        server.stop.set()
        await server.ended.wait()
    assert journal == ["lifespan.startup", "/one", "/two", "lifespan.shutdown"]


async def test_a_request_cannot_change_the_state_of_others() -> None:
    seen: list[Any] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        seen.append(dict(scope["state"]))
        scope["state"]["mine"] = True
        await respond(send, b"")

    async with run_server(with_lifespan(app, a=1)) as server, await server.connect() as client:
        await client.ask()
        await client.ask()
    assert seen == [{"a": 1}, {"a": 1}]


async def test_an_application_without_a_lifespan_is_served() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        assert scope["type"] == "http"
        await respond(send, b"")

    async with run_server(app) as server:
        assert (await server.get()).status == 200
        server.stop.set()
        await server.ended.wait()
        assert server.reports == []


async def test_an_application_that_cannot_start_is_not_served() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        await send({"type": "lifespan.startup.failed", "message": "no database"})

    (listener,) = bind("127.0.0.1", 0)
    port = listener.getsockname()[1]
    with pytest.raises(LifespanFailed, match="no database"):
        await serve(app, ServerConfig(sockets=(listener,)), stop=trio.Event())
    with pytest.raises(LifespanFailed, match="no database"):
        await serve_until_signal(app, ServerConfig(port=0))
    with pytest.raises(OSError, match="all attempts to connect"):
        await trio.open_tcp_stream("127.0.0.1", port)


async def test_an_exception_of_the_lifespan_stops_the_server() -> None:
    breaks = trio.Event()
    reports: list[BaseException] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        await send({"type": "lifespan.startup.complete"})
        await breaks.wait()
        raise ValueError("the writer died")

    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.testing.wait_all_tasks_blocked)
        nursery.start_soon(_set_when_blocked, breaks)
        with trio.fail_after(5), pytest.raises(LifespanFailed, match="lifespan raised"):
            await serve(app, ServerConfig(port=0, report=reports.append), stop=trio.Event())
    assert [str(report) for report in reports] == ["the writer died"]


async def _set_when_blocked(event: trio.Event) -> None:
    await wait_all_tasks_blocked()
    event.set()


async def test_the_shutdown_of_an_application_has_a_timeout(autojump_clock: MockClock) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await trio.sleep_forever()

    async with run_server(app, lifespan_timeout=60) as server:
        server.stop.set()
        began = trio.current_time()
        await server.ended.wait()
        assert trio.current_time() - began == pytest.approx(60)


async def test_an_address_in_use_is_an_error() -> None:
    (listener,) = bind("127.0.0.1", 0)
    with listener:
        listener.listen()
        with pytest.raises(OSError, match="in use") as caught:
            await serve(Echo(), ServerConfig(port=listener.getsockname()[1]), stop=trio.Event())
    assert caught.value.errno == errno.EADDRINUSE


def test_all_addresses_of_this_machine_have_one_port() -> None:
    sockets = bind("", 0)
    assert len({sock.getsockname()[1] for sock in sockets}) == 1
    assert len({sock.family for sock in sockets}) == len(sockets)
    for sock in sockets:
        sock.close()


def test_an_address_that_this_machine_lacks_is_skipped(monkeypatch: pytest.MonkeyPatch) -> None:
    """Containers often have IPv6 disabled, but names still resolve to IPv6 addresses."""
    (here,) = socket.getaddrinfo("127.0.0.1", 0, type=socket.SOCK_STREAM)
    (elsewhere,) = socket.getaddrinfo("2001:db8::1", 0, type=socket.SOCK_STREAM)
    for found in ([here, elsewhere], [elsewhere, here]):
        monkeypatch.setattr(socket, "getaddrinfo", lambda *_, found=found, **__: found)
        (sock,) = bind("name", 0)
        assert sock.family == socket.AF_INET
        sock.close()
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: [elsewhere])
    with pytest.raises(OSError, match=r"(?i)address"):
        bind("name", 0)


async def test_a_unix_socket_can_be_served(tmp_path: Path) -> None:
    app = Echo()
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(tmp_path / "s"))
    stop = trio.Event()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(lambda: serve(app, ServerConfig(sockets=(listener,)), stop=stop))
        await wait_all_tasks_blocked()
        async with await trio.open_unix_socket(tmp_path / "s") as stream:
            await stream.send_all(CONNECTION_CLOSE)
            assert b"200 OK" in b"".join([data async for data in stream])
        stop.set()
    assert app.scopes[-1]["client"] is None
    assert app.scopes[-1]["server"] == (str(tmp_path / "s"), None)


async def test_accepted_connections_have_their_socket_options(connect: Connect) -> None:
    sock = connect(Echo(), tcp=True, write_timeout=7).connection.transport.socket
    options = (socket.TCP_NODELAY, socket.TCP_USER_TIMEOUT, socket.TCP_NOTSENT_LOWAT)
    assert [sock.getsockopt(socket.IPPROTO_TCP, option) for option in options] == [1, 7000, 16384]


async def test_a_malformed_request_does_not_affect_other_connections() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["path"] == "/bad":
            async with trio.open_nursery() as nursery:
                nursery.start_soon(trio.sleep_forever)
                raise RuntimeError("bad")
        await respond(send, b"good")

    async with run_server(app) as server, await server.connect() as good:
        await good.ask()
        assert (await server.get("/bad")).status == 500
        assert (await good.ask()).body == b"good"
    (report,) = server.reports
    assert isinstance(report, RuntimeError)


async def test_an_exception_of_the_server_ends_only_its_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("a fault of the parser")

    async with run_server(Echo()) as server, await server.connect() as good, await server.connect() as bad:
        await good.ask()
        await bad.ask()
        with monkeypatch.context() as patch:
            patch.setattr("llm_proxy.server.http1.request.RequestReader.feed", broken)
            with pytest.raises(EOFError):
                await bad.ask()
        assert (await good.ask()).status == 200
        assert [str(report) for report in server.reports] == ["a fault of the parser"]


async def test_the_server_continues_after_running_out_of_files(autojump_clock: MockClock) -> None:
    app = Echo()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    async with run_server(app) as server:
        async with await server.connect() as idle:
            await idle.ask()
            probe = os.dup(0)
            os.close(probe)
            waiting = trio.socket.socket()
            resource.setrlimit(resource.RLIMIT_NOFILE, (waiting.fileno() + 1, hard))
            try:
                await waiting.connect(("127.0.0.1", server.port))
                with trio.fail_after(5):  # the idle connection makes room
                    assert await idle.stream.receive_some() == b""
            finally:
                resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
            await waiting.send(CONNECTION_CLOSE)
            with trio.fail_after(5):
                assert b"200 OK" in await waiting.recv(1000)
            waiting.close()
        assert (await server.get()).status == 200
        assert server.reports == []


async def test_the_connection_that_is_idle_longest_makes_room_for_a_new_one() -> None:
    async with (
        run_server(Echo(), max_connections=2) as server,
        await server.connect() as first,
        await server.connect() as second,
    ):
        for client in (first, second):
            await client.ask()
        with trio.fail_after(5):
            assert (await server.get()).status == 200
            await first.read_to_end()
        assert (await second.ask()).status == 200


@pytest.mark.parametrize("limit", ["connections", "files"])
async def test_silent_connections_make_room_at_full_speed(limit: str) -> None:
    """The server must not wait for its back-off once per connection."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    at_once = 100
    async with run_server(Echo(), max_connections=at_once if limit == "connections" else 10_000) as server:
        waiting = [socket.socket() for _ in range(400)]
        if limit == "files":
            resource.setrlimit(resource.RLIMIT_NOFILE, (waiting[-1].fileno() + at_once, hard))
        try:
            began = trio.current_time()
            for sock in waiting:
                sock.connect(("127.0.0.1", server.port))
                await trio.lowlevel.checkpoint()
            last = waiting[-1]
            last.settimeout(0)
            last.send(CONNECTION_CLOSE)
            with trio.fail_after(10):
                await trio.lowlevel.wait_readable(last)
            assert b"200 OK" in last.recv(1000)
            assert trio.current_time() - began < 5
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
            for sock in waiting:
                sock.close()
        assert server.reports == []


async def test_a_full_server_lets_new_connections_wait(autojump_clock: MockClock) -> None:
    app = Hold()
    async with run_server(app, max_connections=1) as server, trio.open_nursery() as nursery:
        nursery.start_soon(server.get)
        await wait_all_tasks_blocked()
        assert app.running == 1
        nursery.start_soon(server.get)
        await trio.sleep(5)
        assert app.running == 1
        app.release.set()
    assert len(app.scopes) == 2


async def test_tls_is_served(certificate: tuple[Path, Path], trust: ssl.SSLContext) -> None:
    app = Echo()
    async with run_server(app, tls_cert=certificate[0], tls_key=certificate[1]) as server:
        client = await server.connect()
        client.stream = trio.SSLStream(client.stream, trust, server_hostname="localhost")
        async with client:
            assert (await client.ask()).status == 200
            assert (await client.ask()).status == 200
            await client.stream.send_all(CONNECTION_CLOSE)
            await client.read_to_end()  # raises without a proper end of TLS
    assert app.scopes[-1]["scheme"] == "https"
    assert app.scopes[-1]["http_version"] == "1.1"


async def test_a_slow_tls_handshake_times_out(certificate: tuple[Path, Path], autojump_clock: MockClock) -> None:
    async with run_server(Echo(), tls_cert=certificate[0], tls_key=certificate[1], header_timeout=10) as server:
        async with await server.connect() as client:
            began = trio.current_time()
            assert await client.read_to_end() == b""
            assert trio.current_time() - began == pytest.approx(10)
        async with await server.connect() as client:
            await client.stream.send_all(CONNECTION_CLOSE)
            assert b"HTTP" not in await client.read_to_end()
    assert server.reports == []


async def test_a_closed_connection_is_freed_without_garbage_collection(connect: Connect) -> None:
    peer = connect(Echo())
    assert b" 200 " in await peer.send(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
    connection, reader = weakref.ref(peer.connection), weakref.ref(peer.connection.reader)
    gc.disable()
    try:
        peer.socket.close()
        await wait_all_tasks_blocked()
        del peer  # the last reference but for the connection's own
        assert connection() is None
        assert reader() is None
    finally:
        gc.enable()
