from __future__ import annotations

import ssl
from typing import Any

import pytest
import trio
import trustme

from llm_proxy.load import CannotStart, Load, LoadPlan, LoadTarget, Measurements, report
from llm_proxy.net.tls import client_context
from tests.load.servers import LAST_CHUNK, OK, STREAM, Server, always, start

DENIED = b'{"error":{"message":"No such token.","type":"x","code":"token_invalid"}}'


def fault(status: int, body: bytes) -> bytes:
    return b"HTTP/1.1 %d X\r\ncontent-length: %d\r\n\r\n%b" % (status, len(body), body)


def load_on(server: Server, **plan: Any) -> Load:
    return Load(LoadTarget.render("POST", server.url, [], b"{}"), LoadPlan(**{"connections": 2, **plan}))


async def put_load(server: Server, **plan: Any) -> Measurements:
    load = load_on(server, **plan)
    with trio.fail_after(20):
        await load.run()
    return load.measured


async def test_a_closed_loop_sends_exactly_the_planned_requests(nursery: trio.Nursery) -> None:
    server = await start(nursery, always(OK))
    measured = await put_load(server, requests=25)
    assert (measured.answered, measured.failed, len(server.requests), server.connections) == (25, 0, 25, 2)
    assert measured.response_bytes == 25 * len(OK)
    assert (measured.latencies.count, measured.first_bytes.count, measured.intended.count, measured.gaps.count) == (
        25,
        25,
        0,
        0,
    )
    assert set(server.requests) == {next(load_on(server).target.requests())}


async def test_there_are_not_more_connections_than_requests(nursery: trio.Nursery) -> None:
    server = await start(nursery, always(OK))
    await put_load(server, requests=1, connections=5)
    assert server.connections == 1


@pytest.mark.parametrize("arrivals", ["even", "poisson"])
async def test_a_fixed_rate_sends_exactly_the_planned_requests(nursery: trio.Nursery, arrivals: str) -> None:
    server = await start(nursery, always(OK))
    measured = await put_load(server, requests=40, rate=2000.0, arrivals=arrivals)
    assert (measured.answered, measured.intended.count, measured.lag.count) == (40, 40, 40)
    assert measured.intended.max >= measured.latencies.percentile(1)


async def test_a_stall_of_the_server_counts_in_the_intended_latency(nursery: trio.Nursery) -> None:
    async def stall_once(stream: trio.abc.Stream, number: int) -> bool:
        if number == 5:
            await trio.sleep(1)
        await stream.send_all(OK)
        return True

    server = await start(nursery, stall_once)
    measured = await put_load(server, connections=1, rate=50.0, requests=50)
    # One second without a response: one request was sent in it instead of fifty.
    assert measured.latencies.max >= 1
    assert measured.latencies.percentile(90) < 0.5
    assert measured.intended.percentile(50) > 0.2
    assert measured.waited >= 30
    found = report(LoadPlan(rate=50.0, connections=1), measured)
    assert found["intended_latency_ms"]["p90"] > found["latency_ms"]["p90"]
    # The generator did not cause it.
    assert measured.lag.percentile(90) < measured.intended.percentile(90) / 2


async def test_requests_that_wait_too_long_for_a_connection_time_out_unsent(nursery: trio.Nursery) -> None:
    async def hang(stream: trio.abc.Stream, number: int) -> bool:
        await trio.sleep_forever()

    server = await start(nursery, hang)
    measured = await put_load(server, connections=1, rate=1000.0, requests=20, timeout=0.2)
    assert measured.failures == {"Timeout": 20}
    assert 1 <= len(server.requests) < 20


async def test_a_request_without_a_response_times_out(nursery: trio.Nursery) -> None:
    async def hang_once(stream: trio.abc.Stream, number: int) -> bool:
        if number == 2:
            await trio.sleep_forever()
        await stream.send_all(OK)
        return True

    server = await start(nursery, hang_once)
    measured = await put_load(server, connections=1, requests=4, timeout=0.3)
    assert (measured.answered, measured.failures, server.connections) == (3, {"Timeout": 1}, 2)


async def test_streams_have_pieces_and_gaps(nursery: trio.Nursery) -> None:
    async def give(stream: trio.abc.Stream, number: int) -> bool:
        await stream.send_all(STREAM)
        for _ in range(3):
            await trio.sleep(0.02)
            await stream.send_all(b"5\r\nhello\r\n")
        await trio.sleep(0.02)
        await stream.send_all(LAST_CHUNK)
        return True

    server = await start(nursery, give)
    measured = await put_load(server, requests=2)
    assert (measured.answered, measured.failed, measured.pieces) == (2, 0, 6)
    # Two gaps between the three pieces of each; the head and the end are not pieces.
    assert measured.gaps.count == 4
    assert measured.latencies.percentile(1) > measured.first_bytes.max


@pytest.mark.parametrize(
    ("answer", "failure"),
    [
        (STREAM + b"5\r\nhello\r\n", "Truncated"),
        (STREAM + b"5\r\nhel", "Truncated"),
        (STREAM + b"zz\r\n", "BadAnswer"),
        (OK[:-1], "Truncated"),
        (OK + b"more", "BadAnswer"),
        (b"", "Truncated"),
    ],
)
async def test_responses_without_a_correct_end_are_failures(nursery: trio.Nursery, answer: bytes, failure: str) -> None:
    server = await start(nursery, always(answer, stays=False))
    measured = await put_load(server, requests=3)
    assert (measured.answered, measured.failures, measured.failed) == (0, {failure: 3}, 3)


async def test_a_connection_that_the_server_closes_is_opened_again(nursery: trio.Nursery) -> None:
    answer = b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 0\r\n\r\n"
    server = await start(nursery, always(answer, stays=False))
    measured = await put_load(server, requests=5, connections=1)
    assert (measured.answered, measured.failed, server.connections) == (5, 0, 5)


async def test_a_connection_that_was_closed_while_idle_is_opened_again(nursery: trio.Nursery) -> None:
    server = await start(nursery, always(OK, stays=False))
    measured = await put_load(server, requests=2, connections=1, rate=1.5)
    assert (measured.answered, measured.failed, server.connections) == (2, 0, 2)


async def test_errors_are_counted_by_status_and_code(nursery: trio.Nursery) -> None:
    answers = [fault(401, DENIED), fault(500, b"oops"), fault(529, b'{"type":"error","error":{"type":"overloaded"}}')]

    async def give(stream: trio.abc.Stream, number: int) -> bool:
        await stream.send_all(answers[number % 3])
        return True

    server = await start(nursery, give)
    measured = await put_load(server, requests=6)
    assert measured.statuses == {401: 2, 500: 2, 529: 2}
    assert measured.codes == {"401 token_invalid": 2, "500": 2, "529 overloaded": 2}
    assert report(LoadPlan(), measured)["errors"] == {"401": 2, "500": 2, "529": 2}


async def test_a_token_that_is_refused_at_first_ends_the_load(nursery: trio.Nursery) -> None:
    server = await start(nursery, always(fault(401, DENIED)))
    load = load_on(server, requests=1000)
    load.stop_if_refused = True
    await load.run()
    assert load.measured.token_refused is not None
    assert (load.measured.token_refused.status, load.measured.token_refused.message) == (401, "No such token.")
    assert len(server.requests) <= 2


async def test_a_token_that_is_refused_later_does_not_end_the_load(nursery: trio.Nursery) -> None:
    async def give(stream: trio.abc.Stream, number: int) -> bool:
        await stream.send_all(OK if number == 1 else fault(403, DENIED))
        return True

    server = await start(nursery, give)
    load = load_on(server, requests=5, connections=1)
    load.stop_if_refused = True
    await load.run()
    assert (load.measured.token_refused, load.measured.statuses) == (None, {200: 1, 403: 4})


async def test_a_cancelled_load_has_measurements(nursery: trio.Nursery) -> None:
    async def give(stream: trio.abc.Stream, number: int) -> bool:
        if number == 3:
            stop.cancel()
        if number >= 3:
            await trio.sleep_forever()
        await stream.send_all(OK)
        return True

    server = await start(nursery, give)
    load = load_on(server, requests=100, connections=1)
    with trio.CancelScope() as stop:
        await load.run()
    assert (load.measured.answered, load.measured.failed, load.measured.unfinished) == (2, 0, 1)
    assert load.measured.elapsed > 0


async def test_a_refused_connection_raises_cannot_start() -> None:
    load = Load(LoadTarget.render("GET", "http://127.0.0.1:9/", [], b""), LoadPlan(requests=5))
    with pytest.raises(CannotStart, match=r"cannot connect to 127\.0\.0\.1:9: connection refused"):
        await load.run()


async def test_an_unknown_host_raises_cannot_start() -> None:
    load = Load(LoadTarget.render("GET", "http://unknown.invalid/", [], b""), LoadPlan(requests=5))
    with pytest.raises(CannotStart, match=r"cannot find unknown\.invalid"):
        await load.run()


async def test_the_address_of_a_host_that_accepts_is_used(nursery: trio.Nursery) -> None:
    server = await start(nursery, always(OK))
    load = Load(LoadTarget.render("GET", f"http://localhost:{server.port}/", [], b""), LoadPlan(requests=3))
    await load.run()
    assert load.measured.answered == 3


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
def server_context(authority: trustme.CA) -> ssl.SSLContext:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    return context


@pytest.mark.parametrize("plan", [{}, {"rate": 500.0}])
async def test_requests_and_responses_over_tls(
    nursery: trio.Nursery, authority: trustme.CA, server_context: ssl.SSLContext, plan: dict[str, Any]
) -> None:
    server = await start(nursery, always(STREAM + b"2\r\nab\r\n" + LAST_CHUNK), server_context)
    context = client_context(insecure=True)
    target = LoadTarget.render("POST", f"https://127.0.0.1:{server.port}/", [], bytes(100_000), tls=context)
    load = Load(target, LoadPlan(connections=2, requests=6, **plan))
    await load.run()
    assert (load.measured.answered, load.measured.failed, load.measured.pieces, server.connections) == (6, 0, 6, 2)


async def test_an_incomplete_response_over_tls_is_a_failure(
    nursery: trio.Nursery, server_context: ssl.SSLContext
) -> None:
    server = await start(nursery, always(OK[:-1], stays=False), server_context)
    url = f"https://127.0.0.1:{server.port}/"
    load = Load(LoadTarget.render("POST", url, [], b"", tls=client_context(insecure=True)), LoadPlan(requests=3))
    await load.run()
    assert load.measured.failures == {"Truncated": 3}


async def test_an_untrusted_certificate_raises_cannot_start(
    nursery: trio.Nursery, authority: trustme.CA, server_context: ssl.SSLContext
) -> None:
    server = await start(nursery, always(OK), server_context)
    url = f"https://127.0.0.1:{server.port}/"
    with pytest.raises(CannotStart, match="its certificate is not trusted: unable to get local issuer"):
        await Load(LoadTarget.render("GET", url, [], b""), LoadPlan(requests=1)).run()
    trusting = ssl.create_default_context()
    authority.configure_trust(trusting)
    await Load(LoadTarget.render("GET", url, [], b"", tls=trusting), LoadPlan(requests=1)).run()
    assert len(server.requests) == 1
