from __future__ import annotations

import select
import ssl
from collections.abc import Callable
from pathlib import Path

import pytest
import trio

from llm_proxy.gateway.upstream.connector import Origin
from llm_proxy.gateway.upstream.failures import ConnectFailed, Disconnected
from llm_proxy.gateway.upstream.pool import UpstreamPool
from llm_proxy.net.client_socket import connect
from tests.gateway.upstream.conftest import Authority
from tests.gateway.upstream.stage import (
    OK,
    PATIENT,
    Body,
    Peer,
    answering,
    ask,
    client_sockets,
    counts,
    settled,
    stage,
    whole,
)

VERSIONS = [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3]


@pytest.fixture(params=VERSIONS, ids=lambda version: version.name)
def server(request: pytest.FixtureRequest, authority: Authority, tmp_path: Path) -> ssl.SSLContext:
    context = authority.server(tmp_path)
    context.minimum_version = context.maximum_version = request.param
    context.set_alpn_protocols(["h2", "http/1.1"])
    return context


async def test_an_upstream_with_a_trusted_certificate_is_used(server: ssl.SSLContext, authority: Authority) -> None:
    names = []
    server.sni_callback = lambda _socket, name, _context: names.append(name)
    async with stage(answering(OK), server, "localhost") as upstream:
        pool = UpstreamPool(upstream.origin, PATIENT, ssl_context=authority.client())
        for body in (None, b"x" * 1000, b"x" * 1_000_000, Body([b"x" * 100_000] * 10)):
            assert await ask(pool, body) == b"ok"
            assert counts(pool) == "1 idle, 0 in use"
        # Session tickets do not make a connection unusable.
        assert len(upstream.peers) == 1
        assert [len(asked.body) for asked in upstream.asked] == [0, 1000, 1_000_000, 1_000_000]
        stream = upstream.peers[0].stream
        assert isinstance(stream, trio.SSLStream)
        assert stream.selected_alpn_protocol() == "http/1.1"
        assert names == ["localhost"]
        pool.close()
        assert client_sockets(upstream.origin) == 0


async def refuse(pool: UpstreamPool, words: str) -> None:
    with pytest.raises(ConnectFailed, match=words) as caught:
        await ask(pool)
    assert not caught.value.sent
    assert counts(pool) == "0 idle, 0 in use"


async def test_an_unknown_authority_is_a_failure_to_connect(
    authority: Authority, make_authority: Callable[[], Authority], tmp_path: Path
) -> None:
    async with stage(answering(OK), authority.server(tmp_path), "localhost") as upstream:
        await refuse(UpstreamPool(upstream.origin, PATIENT, ssl_context=make_authority().client()), "TLS: .*cert")
        assert client_sockets(upstream.origin) == 0
        assert upstream.asked == []


async def test_the_system_roots_do_not_include_the_authority_of_the_tests(authority: Authority, tmp_path: Path) -> None:
    async with stage(answering(OK), authority.server(tmp_path), "localhost") as upstream:
        await refuse(UpstreamPool(upstream.origin, PATIENT), "TLS: .*cert")


async def test_a_certificate_for_another_host_is_a_failure_to_connect(authority: Authority, tmp_path: Path) -> None:
    async with stage(answering(OK), authority.server(tmp_path, "other.example"), "localhost") as upstream:
        pool = UpstreamPool(upstream.origin, PATIENT, ssl_context=authority.client())
        await refuse(pool, "TLS: Hostname mismatch")


async def test_a_certificate_without_the_address_is_a_failure_to_connect(authority: Authority, tmp_path: Path) -> None:
    async with stage(answering(OK), authority.server(tmp_path), "127.0.0.1") as upstream:
        pool = UpstreamPool(upstream.origin, PATIENT, ssl_context=authority.client())
        await refuse(pool, "TLS: IP address mismatch")


async def test_an_expired_certificate_is_a_failure_to_connect(authority: Authority, tmp_path: Path) -> None:
    async with stage(answering(OK), authority.server(tmp_path, days=-1), "localhost") as upstream:
        pool = UpstreamPool(upstream.origin, PATIENT, ssl_context=authority.client())
        await refuse(pool, "TLS: certificate has expired")


async def test_an_upstream_without_tls_is_a_failure_to_connect(authority: Authority) -> None:
    async def handler(peer: Peer) -> None:
        await peer.send(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        await trio.sleep_forever()

    async with stage(handler) as upstream:
        origin = Origin("https", "localhost", upstream.origin.port)
        await refuse(UpstreamPool(origin, PATIENT, ssl_context=authority.client()), "TLS: ")
        assert client_sockets(origin) == 0


async def test_an_upstream_that_closes_in_the_handshake_is_a_failure_to_connect(authority: Authority) -> None:
    async def handler(peer: Peer) -> None:
        peer.close()

    async with stage(handler) as upstream:
        origin = Origin("https", "localhost", upstream.origin.port)
        pool = UpstreamPool(origin, PATIENT, ssl_context=authority.client())
        with pytest.raises(ConnectFailed):
            await ask(pool)
        assert counts(pool) == "0 idle, 0 in use"


async def test_a_body_ends_with_close_notify(server: ssl.SSLContext, authority: Authority) -> None:
    async def handler(peer: Peer) -> None:
        await peer.request()
        await peer.send(b"HTTP/1.1 200 OK\r\n\r\nall of ")
        await settled()
        await peer.send(b"it")
        await peer.stream.aclose()

    async with stage(handler, server, "localhost") as upstream:
        pool = UpstreamPool(upstream.origin, PATIENT, ssl_context=authority.client())
        assert await ask(pool) == b"all of it"
        assert counts(pool) == "0 idle, 0 in use"


async def test_a_body_without_close_notify_is_cut_off(server: ssl.SSLContext, authority: Authority) -> None:
    async def handler(peer: Peer) -> None:
        await peer.request()
        await peer.send(b"HTTP/1.1 200 OK\r\n\r\nhalf")
        peer.close()

    async with stage(handler, server, "localhost") as upstream:
        pool = UpstreamPool(upstream.origin, PATIENT, ssl_context=authority.client())
        response = await pool.send(b"GET", b"/", [], None)
        assert await response.receive() == b"half"
        with pytest.raises(Disconnected) as caught:
            await response.receive()
        assert caught.value.sent
        assert counts(pool) == "0 idle, 0 in use"
        assert client_sockets(upstream.origin) == 0


@pytest.mark.parametrize("politely", [True, False])
async def test_a_connection_closed_while_idle_is_not_used(
    server: ssl.SSLContext, authority: Authority, politely: bool
) -> None:
    async def handler(peer: Peer) -> None:
        await peer.request()
        await peer.send(OK)
        await settled()
        if politely:
            await peer.stream.aclose()
        else:
            peer.close()

    async with stage(handler, server, "localhost") as upstream:
        pool = UpstreamPool(upstream.origin, PATIENT, ssl_context=authority.client())
        await ask(pool)
        await settled()
        await settled()
        assert await ask(pool) == b"ok"
        assert len(upstream.peers) == 2
        await settled()
        await settled()
        pool.close()


async def test_unrequested_bytes_make_an_idle_connection_unusable(server: ssl.SSLContext, authority: Authority) -> None:
    async def handler(peer: Peer) -> None:
        await peer.request()
        await peer.send(OK)
        await settled()
        await peer.send(OK.replace(b"ok", b"no"))
        await trio.sleep_forever()

    async with stage(handler, server, "localhost") as upstream:
        pool = UpstreamPool(upstream.origin, PATIENT, ssl_context=authority.client())
        await ask(pool)
        await settled()
        await settled()
        assert await ask(pool) == b"ok"
        assert len(upstream.peers) == 2
        pool.close()


async def test_bytes_after_a_response_in_the_same_packet_make_the_connection_unusable(
    server: ssl.SSLContext, authority: Authority
) -> None:
    # They are decrypted in the TLS object, so the socket is not readable.
    async def handler(peer: Peer) -> None:
        await peer.request()
        stream = peer.stream
        assert isinstance(stream, trio.SSLStream)
        big = b"HTTP/1.1 200 OK\r\nContent-Length: 40000\r\n\r\n" + b"x" * 40000
        await peer.send(big + b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nforged")
        await trio.sleep_forever()

    async with stage(handler, server, "localhost") as upstream:
        pool = UpstreamPool(upstream.origin, PATIENT, ssl_context=authority.client())
        response = await pool.send(b"GET", b"/", [], None)
        seen = b""
        try:
            seen = await whole(response)
        except Exception:  # noqa: BLE001 - the end of the body and what follows may be one record
            response.close()
        assert b"forged" not in seen
        await settled()
        other = await pool.send(b"GET", b"/", [], None)
        other.close()
        assert len(upstream.peers) == 2
        pool.close()


async def test_tls_messages_without_data_do_not_make_an_idle_connection_unusable(
    authority: Authority, tmp_path: Path
) -> None:
    context = authority.server(tmp_path)
    context.minimum_version = ssl.TLSVersion.TLSv1_3

    async def handler(peer: Peer) -> None:
        # Not trio's TLS, which delays the tickets until there is something to send.
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        server = context.wrap_bio(incoming, outgoing, server_side=True)
        while True:
            try:
                server.do_handshake()
                break
            except ssl.SSLWantReadError:
                await peer.send(outgoing.read())
                incoming.write(await peer.stream.receive_some())
        await settled()
        await peer.send(outgoing.read())
        await spoil.wait()
        server.write(OK)
        await peer.send(outgoing.read())
        await trio.sleep_forever()

    spoil = trio.Event()
    async with stage(handler) as upstream:
        connected = await connect("localhost", upstream.origin.port, authority.client())
        for _ in range(3):
            await settled()
        [socket] = select.select([connected._socket], [], [], 0)[0]
        assert socket is connected._socket
        assert connected.is_quiet()
        spoil.set()
        await settled()
        assert not connected.is_quiet()
        connected.close()


async def test_bytes_buffered_by_tls_are_received(
    server: ssl.SSLContext, authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A read may return less than one TLS record; the rest is decrypted, and the socket is not readable.
    monkeypatch.setattr("llm_proxy.net.client_socket.READ_SIZE", 1000)
    response = b"HTTP/1.1 200 OK\r\nContent-Length: 10000\r\n\r\n" + b"x" * 10000
    async with stage(answering(response), server, "localhost") as upstream:
        pool = UpstreamPool(upstream.origin, PATIENT, ssl_context=authority.client())
        with trio.fail_after(5):
            assert await ask(pool) == b"x" * 10000
        pool.close()


async def test_closing_does_not_wait_for_the_peer(server: ssl.SSLContext, authority: Authority) -> None:
    async def handler(peer: Peer) -> None:
        await peer.request()
        await peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhalf")
        await trio.sleep_forever()

    async with stage(handler, server, "localhost") as upstream:
        pool = UpstreamPool(upstream.origin, PATIENT, ssl_context=authority.client())
        response = await pool.send(b"GET", b"/", [], None)
        response.close()
        assert client_sockets(upstream.origin) == 0


async def test_an_early_response_over_tls_is_delivered(server: ssl.SSLContext, authority: Authority) -> None:
    async def handler(peer: Peer) -> None:
        await peer.head()
        await peer.send(b"HTTP/1.1 413 Content Too Large\r\nContent-Length: 3\r\n\r\nbig")
        await trio.sleep_forever()

    async with stage(handler, server, "localhost") as upstream:
        pool = UpstreamPool(upstream.origin, PATIENT, ssl_context=authority.client())
        assert await ask(pool, b"x" * 20_000_000) == b"big"
        assert counts(pool) == "0 idle, 0 in use"
        assert client_sockets(upstream.origin) == 0
