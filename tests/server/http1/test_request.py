from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from llm_proxy.server.http1.request import PriorKnowledge, RequestError, RequestReader
from tests.server.http1.test_framing import LIMIT, ROWS

# Hypothesis does not print longer ones; test_framing sends all rows in small pieces too.
WIRES = [row.wire for row in ROWS if len(row.wire) < 5000]


def events(pieces: list[bytes]) -> list[Any]:
    """Feed these pieces to a reader; return heads, bodies, ends, and the final error if there is one."""
    reader = RequestReader(LIMIT)
    seen: list[Any] = []
    body = b""
    head_seen = False

    def look() -> None:
        nonlocal body, head_seen
        if reader.head is not None:
            head = reader.head
            if not head_seen:
                head_seen = True
                seen.append((head.method, head.target, head.version, tuple(head.headers), head.keep_alive))
            body += reader.take_body()

    try:
        for piece in pieces:
            reader.feed(piece)
            look()
            while reader.complete:
                seen.append(body)
                body, head_seen = b"", False
                reader.next_request()
                look()
    except RequestError as refusal:
        look()
        seen.append((body, refusal.status))
    except PriorKnowledge:
        seen.append("HTTP/2")
    return seen


@st.composite
def cut(draw: st.DrawFn) -> tuple[bytes, list[bytes]]:
    """Several rows of the table in sequence, and the same bytes cut anywhere."""
    wire = b"".join(draw(st.lists(st.sampled_from(WIRES), min_size=1, max_size=3)))
    places = sorted(draw(st.sets(st.integers(1, max(1, len(wire) - 1)), max_size=12)))
    edges = [0, *places, len(wire)]
    return wire, [piece for a, b in pairwise(edges) if (piece := wire[a:b])]


@settings(max_examples=400)
@given(cut())
def test_requests_are_the_same_for_any_cutting(case: tuple[bytes, list[bytes]]) -> None:
    wire, pieces = case
    assert events(pieces) == events([wire])


@given(
    st.lists(st.binary(min_size=1, max_size=40), max_size=8),
    st.sampled_from([b"", b"X: y\r\n"]),
    st.binary(max_size=12),
    st.integers(1, 50),
)
@example([b"\r\n", b"\r\n0\r\n\r\n", b"\r"], b"", b"\r\n\r\n", 1)
def test_the_end_of_a_chunked_body_is_found_for_any_cutting(
    chunks: list[bytes], trailer: bytes, rest: bytes, step: int
) -> None:
    wire = b"".join(b"%x\r\n%b\r\n" % (len(chunk), chunk) for chunk in chunks) + b"0\r\n"
    wire += trailer + b"\r\n" + rest
    reader = RequestReader(LIMIT)
    reader.feed(b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n")
    for i in range(0, len(wire), step):
        reader.feed(wire[i : i + step])
    assert reader.complete
    assert reader.take_body() == b"".join(chunks)
    assert reader.pending == len(rest)


@given(st.binary(max_size=200))
def test_random_bytes_are_parsed_or_refused(data: bytes) -> None:
    events([b"GET / HTTP/1.1\r\nHost: a\r\n" + data])
    events([b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n" + data])
    events([data])


@pytest.mark.parametrize("over", [0, 1])
@pytest.mark.parametrize("step", [1, 7, 10_000])
def test_the_size_limit_of_a_head_is_exact(over: int, step: int) -> None:
    head = b"GET / HTTP/1.1\r\nHost: a\r\nX: "
    head += b"y" * (LIMIT + over - len(head) - 4) + b"\r\n\r\n"
    seen = events([head[i : i + step] for i in range(0, len(head), step)])
    assert seen[-1] == ((b"", 431) if over else b"")


def test_names_are_lower_case_and_values_are_trimmed() -> None:
    reader = RequestReader(LIMIT)
    reader.feed(b"GET /A%20b?C HTTP/1.1\r\nHOST: A\r\nX-Y: \t z w \t\r\nE:\r\n\r\n")
    assert reader.head is not None
    assert reader.head.target == b"/A%20b?C"
    assert reader.head.headers == [(b"host", b"A"), (b"x-y", b"z w"), (b"e", b"")]


@pytest.mark.parametrize(
    ("method", "sent", "target", "host"),
    [
        (b"GET", b"http://b/c?d=e", b"/c?d=e", b"b"),
        (b"GET", b"HTTPS://B:8443/manage/../c", b"/manage/../c", b"B:8443"),
        (b"GET", b"http://[::1]:80//c", b"//c", b"[::1]:80"),
        (b"GET", b"http://b", b"/", b"b"),
        (b"GET", b"http://b?d=/e", b"/?d=/e", b"b"),
        (b"OPTIONS", b"http://b", b"*", b"b"),
        (b"OPTIONS", b"http://b?d", b"/?d", b"b"),
        (b"OPTIONS", b"http://b/", b"/", b"b"),
        (b"GET", b"/http://b/", b"/http://b/", b"a"),
    ],
)
def test_the_authority_of_an_absolute_target_takes_the_place_of_host(
    method: bytes, sent: bytes, target: bytes, host: bytes
) -> None:
    reader = RequestReader(LIMIT)
    reader.feed(b"%b %b HTTP/1.1\r\nX: y\r\nHost: a\r\n\r\nGET / HTTP/1.1\r\nHost: z\r\n\r\n" % (method, sent))
    assert reader.head is not None
    assert reader.head.target == target
    assert sorted(reader.head.headers) == [(b"host", host), (b"x", b"y")]
    reader.next_request()
    assert (reader.head.target, reader.head.headers) == (b"/", [(b"host", b"z")])


def test_an_absolute_target_in_http_1_0_sets_the_host() -> None:
    reader = RequestReader(LIMIT)
    reader.feed(b"GET http://b/ HTTP/1.0\r\n\r\n")
    assert reader.head is not None
    assert (reader.head.target, reader.head.headers) == (b"/", [(b"host", b"b")])


def test_an_upgrade_header_is_passed_to_the_application() -> None:
    reader = RequestReader(LIMIT)
    reader.feed(b"GET / HTTP/1.1\r\nUpgrade: websocket\r\nHost: a\r\nConnection: upgrade\r\n\r\n")
    assert reader.head is not None
    assert sorted(reader.head.headers) == [(b"connection", b"upgrade"), (b"host", b"a"), (b"upgrade", b"websocket")]
    assert reader.complete


def test_the_remaining_length_of_a_body_is_known() -> None:
    reader = RequestReader(LIMIT)
    reader.feed(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\nabc")
    assert (reader.remaining, reader.complete, reader.take_body()) == (7, False, b"abc")
    reader.feed(b"defghijGET ")
    assert (reader.remaining, reader.complete, reader.take_body(), reader.pending) == (0, True, b"defghij", 4)


def test_a_body_of_crlf_pairs_needs_linear_time() -> None:
    """Every second position looks like an end; a cut at each would make half a million pieces."""
    pieces = 0

    class Counting(RequestReader):
        def _parse(self, data: bytes | memoryview) -> None:
            nonlocal pieces
            pieces += 1
            super()._parse(data)

    reader = Counting(LIMIT)
    reader.feed(b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n")
    size = 1 << 20
    reader.feed(b"%x\r\n" % size)
    for _ in range(size // 65536):
        reader.feed(b"\r\n" * 32768)
    reader.feed(b"\r\n0\r\n\r\n")
    assert reader.complete
    assert len(reader.take_body()) == size
    assert pieces < 50
