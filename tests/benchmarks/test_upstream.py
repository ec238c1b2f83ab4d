"""The scripted upstream, over real sockets."""

from __future__ import annotations

import hashlib
import http.client
import socket
import time
from pathlib import Path

import msgspec
import pytest

from benchmarks.processes import Upstream
from benchmarks.upstream.faults import FAULTS

CHAT = b'{"model":"gpt-scripted","messages":[{"role":"user","content":"hi"}]}'
STREAM = CHAT[:-1] + b',"stream":true}'


def ask(
    upstream: Upstream, body: bytes = CHAT, *, path: str = "/v1/chat/completions", **directions: str
) -> tuple[http.client.HTTPResponse, bytes]:
    headers = {f"x-scripted-{name}": value for name, value in directions.items()}
    connection = http.client.HTTPConnection(upstream.host, upstream.port, timeout=5)
    try:
        connection.request("POST", path, body, headers | {"Authorization": "Bearer sk-real"})
        response = connection.getresponse()
        return response, response.read()
    finally:
        connection.close()


def raw(upstream: Upstream, *extra: bytes, body: bytes = CHAT) -> bytes:
    """Render a request; `extra` are header lines."""
    lines = [b"POST /v1/chat/completions HTTP/1.1", b"host: x", b"authorization: Bearer sk-real"]
    lines += [b"content-length: %d" % len(body), *extra]
    return b"\r\n".join(lines) + b"\r\n\r\n" + body


def connect(upstream: Upstream) -> socket.socket:
    return socket.create_connection((upstream.host, upstream.port), timeout=5)


def test_upstream_answers_like_the_scripted_provider_and_counts(upstream: Upstream) -> None:
    response, body = ask(upstream)
    assert response.status == 200
    assert "hi" in msgspec.json.decode(body)["choices"][0]["message"]["content"]
    counts = upstream.wait(answered=1, connections_open=0)
    assert counts["requests"] == counts["answered"] == counts["connections_accepted"] == 1
    assert counts["statuses"] == {"200": 1}
    assert counts["in_flight"] == counts["closed_early"] == counts["broken"] == 0


def test_streams_arrive_in_the_directed_pieces(upstream: Upstream) -> None:
    response, body = ask(upstream, STREAM, chunks="7")
    assert response.getheader("transfer-encoding") == "chunked"
    assert body.count(b"data: ") == 7 + 3
    assert body.endswith(b"data: [DONE]\n\n")


def test_gap_spreads_the_pieces_in_time(upstream: Upstream) -> None:
    started = time.monotonic()
    ask(upstream, STREAM, chunks="5", gap="0.02")
    assert time.monotonic() - started >= 7 * 0.02


def test_upstream_records_every_request(upstream: Upstream) -> None:
    before = time.time()
    ask(upstream)
    ask(upstream, b"not json", path="/v1/odd%20path?q=1")
    first, second = upstream.requests()
    assert (first["number"], first["method"], first["target"]) == (1, "POST", "/v1/chat/completions")
    assert first["body_sha256"] == hashlib.sha256(CHAT).hexdigest()
    assert first["body_length"] == len(CHAT)
    assert ["authorization", "Bearer sk-real"] in first["headers"]
    assert before <= first["started"] <= first["ended"] <= time.time()
    assert (second["target"], second["status"]) == ("/v1/odd%20path?q=1", 404)
    assert [request["number"] for request in upstream.requests(since=1)] == [2]


def test_wrong_key_is_refused(upstream: Upstream) -> None:
    connection = http.client.HTTPConnection(upstream.host, upstream.port, timeout=5)
    connection.request("POST", "/v1/chat/completions", CHAT, {"Authorization": "Bearer sk-proxy-token"})
    assert connection.getresponse().status == 401
    connection.close()


def test_replies_are_not_mixed_up_by_the_cache(upstream: Upstream) -> None:
    bodies = {ask(upstream, CHAT.replace(b"hi", b"%d" % number))[1] for number in (1, 2, 1, 2)}
    assert len(bodies) == 2
    assert ask(upstream, status="429")[0].status == 429
    assert ask(upstream)[0].status == 200
    assert ask(upstream, b"one", echo="1")[1] == b"one"


def test_connection_is_kept_and_pipelining_works(upstream: Upstream) -> None:
    with connect(upstream) as sock:
        sock.sendall(raw(upstream) * 3)
        received = b""
        while received.count(b"HTTP/1.1 200") < 3 or not received.endswith(b"}}}"):
            received += sock.recv(65536)
    assert upstream.wait(connections_open=0)["connections_accepted"] == 1


def test_expect_continue_is_answered(upstream: Upstream) -> None:
    request = raw(upstream, b"expect: 100-continue")
    head, _, body = request.partition(b"\r\n\r\n")
    with connect(upstream) as sock:
        sock.sendall(head + b"\r\n\r\n")
        assert sock.recv(100).startswith(b"HTTP/1.1 100 ")
        sock.sendall(body)
        assert sock.recv(65536).startswith(b"HTTP/1.1 200 ")


def test_client_disconnect_before_the_response_is_noticed_at_once(upstream: Upstream) -> None:
    sock = connect(upstream)
    sock.sendall(raw(upstream, b"x-scripted-delay: 60"))
    upstream.wait(in_flight=1)
    left = time.time()
    sock.close()
    counts = upstream.wait(closed_early=1, in_flight=0)
    assert counts["answered"] == 0
    (request,) = upstream.requests()
    assert 0 <= request["closed_early_at"] - left < 1
    assert request["closed_early_at"] <= request["ended"]


def test_client_disconnect_within_a_stream_is_noticed(upstream: Upstream) -> None:
    sock = connect(upstream)
    sock.sendall(raw(upstream, b"x-scripted-gap: 0.01", b"x-scripted-chunks: 9999", body=STREAM))
    assert sock.recv(15) == b"HTTP/1.1 200 Sc"
    sock.close()
    upstream.wait(closed_early=1, in_flight=0, connections_open=0)


def test_hold_keeps_answers_back_until_release(upstream: Upstream) -> None:
    upstream.hold()
    with connect(upstream) as first, connect(upstream) as second:
        for sock in (first, second):
            sock.sendall(raw(upstream))
        assert upstream.wait(in_flight=2)["answered"] == 0
        with pytest.raises(TimeoutError):
            upstream.wait(timeout=0.05, answered=1)
        upstream.release()
        assert first.recv(9) == second.recv(9) == b"HTTP/1.1 "
    assert upstream.counts()["in_flight_peak"] == 2


def test_unknown_count_is_refused(upstream: Upstream) -> None:
    with pytest.raises(ValueError, match="no such count"):
        upstream.wait(nonsense=1)


def test_broken_bytes_are_counted(upstream: Upstream) -> None:
    with connect(upstream) as sock:
        sock.sendall(b"\x00\x01\x02\r\n\r\n")
        assert sock.recv(10) == b""
    with connect(upstream) as sock:
        sock.sendall(b"POST / HTTP/1.1\r\ncontent-length: 5\r\n\r\nab")
    assert upstream.wait(broken=2)["requests"] == 0


@pytest.mark.parametrize("pieces", ["0", "2"])
def test_directed_abort_breaks_the_connection(upstream: Upstream, pieces: str) -> None:
    with pytest.raises((http.client.IncompleteRead, http.client.RemoteDisconnected)):
        ask(upstream, STREAM, abort=pieces)
    assert upstream.wait(in_flight=0)["answered"] == 0


def outcome(upstream: Upstream, fault: str) -> str:
    """Say what an ordinary client makes of a fault."""
    connection = http.client.HTTPConnection(upstream.host, upstream.port, timeout=0.1)
    try:
        connection.request("POST", "/", CHAT, {"x-upstream-fault": fault})
        response = connection.getresponse()
        response.read()
    except (OSError, http.client.HTTPException, ValueError) as error:
        return type(error).__name__
    else:
        return str(response.status)
    finally:
        connection.close()


def test_faults_send_the_named_bytes(upstream: Upstream) -> None:
    expected = {
        "reset-early": "ConnectionResetError",
        "reset-in-body": "ConnectionResetError",
        "reset-in-stream": "ConnectionResetError",
        "close-early": "RemoteDisconnected",
        "close-in-stream": "IncompleteRead",
        "hang": "TimeoutError",
        "hang-in-stream": "TimeoutError",
        "drip-body": "TimeoutError",
        "short-body": "IncompleteRead",
        "bad-chunk": "IncompleteRead",
        "until-close": "200",
        "switching": "101",
        "huge-header": "LineTooLong",
        "many-headers": "HTTPException",
        "garbage": "BadStatusLine",
        "gzip-bomb": "200",
        "no-such-fault": "400",
    }
    found = {name: outcome(upstream, name) for name in expected}
    assert found == expected


def test_every_fault_leaves_the_server_alive(upstream: Upstream) -> None:
    for name in FAULTS:
        outcome(upstream, name)
    upstream.wait(in_flight=0, connections_open=0)
    assert ask(upstream)[0].status == 200


def test_log_has_each_request_before_its_answer(tmp_path: Path) -> None:
    log = tmp_path / "requests.log"
    with Upstream.start("--key", "sk-real", "--log", str(log)) as upstream:
        upstream.hold()
        with connect(upstream) as sock:
            sock.sendall(raw(upstream, b"x-marker: 17"))
            upstream.wait(in_flight=1)
            lines = [msgspec.json.decode(line) for line in log.read_bytes().splitlines()]
            assert [line["number"] for line in lines] == [1]
            assert ["x-marker", "17"] in lines[0]["headers"]
            upstream.process.kill()
    assert len(log.read_bytes().splitlines()) == 1


def test_options_for_latency_and_chunks_apply_to_all_responses() -> None:
    with Upstream.start("--answers", "plain", "--key", "sk-real", "--latency", "20ms", "--chunks", "3") as upstream:
        started = time.monotonic()
        answers = [ask(upstream, STREAM) for _ in range(3)]
        assert time.monotonic() - started >= 3 * 0.02
        assert {response.status for response, _ in answers} == {200}
        assert {body.count(b"data: ") for _, body in answers} == {5}
        assert 250 < len(ask(upstream)[1]) < 350
