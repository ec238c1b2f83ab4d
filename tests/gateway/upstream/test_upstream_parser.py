from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from llm_proxy.gateway.upstream.failures import Disconnected, MalformedResponse, UpstreamFailure
from llm_proxy.gateway.upstream.parser import HEAD_LIMIT, INTERIM_LIMIT, OVERHEAD_LIMIT, ResponseParser
from tests.gateway.upstream.framing_rows import CHUNKED, FIVE, NONE, OK, ROWS, Row, Seen


def read(pieces: Iterable[bytes], method: bytes = b"GET", parser: ResponseParser | None = None) -> Seen:
    """Read a response and the end of the stream."""
    parser = parser or ResponseParser()
    parser.begin(bodiless=method == b"HEAD")
    for piece in pieces:
        parser.feed(piece)
    parser.end()
    return Seen(parser.status, b"".join(parser.pieces), parser.reusable, parser.reason)


def verdict(pieces: Iterable[bytes], method: bytes = b"GET") -> Seen | type[UpstreamFailure]:
    try:
        return read(pieces, method)
    except UpstreamFailure as failure:
        return type(failure) if failure.sent else UpstreamFailure


def single_bytes(wire: bytes) -> list[bytes]:
    return [wire[i : i + 1] for i in range(len(wire))]


def test_there_are_rows_for_all_rules() -> None:
    assert len({row.rule for row in ROWS}) == len(ROWS) >= 80


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.rule)
def test_a_response_in_one_piece_is_parsed_by_its_rule(row: Row) -> None:
    assert verdict([row.wire] if row.wire else [], row.method) == row.expected


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.rule)
def test_a_response_byte_by_byte_is_parsed_by_its_rule(row: Row) -> None:
    assert verdict(single_bytes(row.wire), row.method) == row.expected


token = st.text("abcdefghijklmnopqrstuvwxyzABCXYZ0123456789-_.!#$%&'*+^`|~", min_size=1, max_size=20).map(str.encode)
text = st.lists(st.integers(0x20, 0x7E) | st.integers(0x80, 0xFF) | st.just(9), max_size=40).map(bytes).map(bytes.strip)
special = {b"connection", b"keep-alive", b"content-length", b"transfer-encoding", b"upgrade", b"proxy-connection"}
fields = st.lists(st.tuples(token.filter(lambda name: name.lower() not in special), text), max_size=8)


@st.composite
def cut(draw: st.DrawFn, wire: bytes) -> list[bytes]:
    edges = [0, *sorted(draw(st.sets(st.integers(0, len(wire)), max_size=10))), len(wire)]
    return [wire[a:b] for a, b in pairwise(edges) if a < b]


@given(st.data())
def test_a_response_cut_anywhere_is_parsed_in_the_same_way(data: st.DataObject) -> None:
    row = data.draw(st.sampled_from(ROWS))
    assert verdict(data.draw(cut(row.wire)), row.method) == row.expected


@given(st.data(), st.integers(200, 599), fields, st.lists(st.binary(max_size=300), max_size=6), st.booleans())
def test_a_written_response_is_read_wherever_it_is_cut(
    data: st.DataObject, status: int, given_fields: list[tuple[bytes, bytes]], chunks: list[bytes], chunked: bool
) -> None:
    body = b"".join(chunks)
    wire = b"HTTP/1.1 %d Fine\r\n" % status
    wire += b"".join(b"%b: %b\r\n" % pair for pair in given_fields)
    if chunked:
        wire += b"Transfer-Encoding: chunked\r\n\r\n"
        wire += b"".join(b"%x\r\n%b\r\n" % (len(chunk), chunk) for chunk in chunks if chunk) + b"0\r\n\r\n"
    else:
        wire += b"Content-Length: %d\r\n\r\n%b" % (len(body), body)
    bodiless = status in {204, 304}
    if bodiless:
        wire = wire[: wire.index(b"\r\n\r\n") + 4]
    parser = ResponseParser()
    parser.begin(bodiless=False)
    for piece in data.draw(cut(wire)):
        assert not parser.complete
        parser.feed(piece)
    assert parser.complete
    assert parser.reusable
    assert parser.status == status
    assert b"".join(parser.pieces) == (b"" if bodiless else body)
    assert parser.headers[:-1] == [(name.lower(), value) for name, value in given_fields]


@given(st.binary(max_size=400))
@example(b"HTTP/1.1 200 OK\r\n\r\n")
def test_arbitrary_bytes_raise_nothing_but_upstream_failures(wire: bytes) -> None:
    verdict([wire] if wire else [])
    verdict([b"HTTP/1.1 200 OK\r\n" + wire])
    verdict([CHUNKED + wire])


@given(st.sampled_from([row for row in ROWS if isinstance(row.expected, Seen)]), st.data())
def test_a_truncated_response_never_ends_cleanly(row: Row, data: st.DataObject) -> None:
    whole = read([row.wire], row.method)
    wire = row.wire[: data.draw(st.integers(0, len(row.wire) - 1))]
    parser = ResponseParser()
    parser.begin(bodiless=row.method == b"HEAD")
    if wire:
        parser.feed(wire)
    if parser.complete:
        # Only bytes after the response were cut off, or none.
        assert b"".join(parser.pieces) == whole.body
    elif not (parser.head_complete and not whole.reusable and b"\r\n\r\n" in wire):
        with pytest.raises(Disconnected):
            parser.end()


def test_consecutive_responses_are_parsed() -> None:
    parser = ResponseParser()
    assert read([OK + FIVE], parser=parser) == Seen(200, b"hello", reusable=True)
    assert read([CHUNKED + b"2\r\nhi\r\n0\r\n\r\n"], parser=parser) == Seen(200, b"hi", reusable=True)
    assert read([OK + b"Content-Length: 9\r\n\r\n"], b"HEAD", parser) == Seen(200, b"", reusable=True)
    assert read([b"HTTP/1.1 404 Gone\r\n" + FIVE], parser=parser) == Seen(404, b"hello", reusable=True, reason=b"Gone")
    assert parser.headers == [(b"content-length", b"5")]


def test_the_state_of_a_response_is_reset_for_the_next() -> None:
    parser = ResponseParser()
    parser.begin(bodiless=False)
    parser.feed(OK + b"Keep-Alive: timeout=5\r\n" + FIVE)
    announced = [parser.keep_alive]
    parser.begin(bodiless=False)
    parser.feed(b"HTTP/1.1 201\r\n" + NONE)
    assert parser.pieces == []
    assert [*announced, parser.keep_alive] == [5, None]
    assert parser.reason == b""


def test_names_are_in_lower_case_and_values_unchanged() -> None:
    parser = ResponseParser()
    parser.begin(bodiless=False)
    parser.feed(OK + b"X-Ab: C d\xff\r\nSet-Cookie: a\r\nSet-Cookie: b\r\nContent-Length: 0 \r\n\r\n")
    assert parser.headers == [
        (b"x-ab", b"C d\xff"),
        (b"set-cookie", b"a"),
        (b"set-cookie", b"b"),
        (b"content-length", b"0"),
    ]


def test_fields_of_interim_responses_are_not_the_final_ones() -> None:
    parser = ResponseParser()
    parser.begin(bodiless=False)
    parser.feed(b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n" + OK + NONE)
    assert parser.headers == [(b"content-length", b"0")]


def test_the_number_of_interim_responses_is_limited() -> None:
    assert read([b"HTTP/1.1 100\r\n\r\n" * INTERIM_LIMIT + OK + FIVE]).status == 200


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        (b"timeout=5, max=100", 5),
        (b"max=100, timeout=15", 15),
        (b"Timeout=7", 7),
        (b'timeout="9"', 9),
        (b"max=3", None),
    ],
)
def test_the_announced_keep_alive_is_parsed(value: bytes, seconds: int | None) -> None:
    parser = ResponseParser()
    parser.begin(bodiless=False)
    parser.feed(OK + b"Keep-Alive: " + value + b"\r\n" + FIVE)
    assert parser.keep_alive == seconds


def padded_head(size: int) -> bytes:
    """A head of exactly `size` bytes, without content."""
    bare = len(OK + b"X: \r\n" + NONE)
    return OK + b"X: " + b"a" * (size - bare) + b"\r\n" + NONE


@pytest.mark.parametrize("step", [1000, HEAD_LIMIT - 1, HEAD_LIMIT, 1 << 20])
def test_a_head_as_long_as_the_limit_is_accepted(step: int) -> None:
    wire = padded_head(HEAD_LIMIT)
    assert len(wire) == HEAD_LIMIT
    assert read(wire[i : i + step] for i in range(0, len(wire), step)).status == 200


@pytest.mark.parametrize("step", [1000, HEAD_LIMIT, 1 << 20])
def test_a_head_longer_than_the_limit_is_malformed(step: int) -> None:
    wire = padded_head(HEAD_LIMIT + 1)
    assert verdict(wire[i : i + step] for i in range(0, len(wire), step)) is MalformedResponse


def test_content_in_the_same_piece_as_a_long_head_is_read() -> None:
    wire = padded_head(HEAD_LIMIT)[: -len(NONE)] + FIVE
    assert read([wire]).body == b"hello"


def fed_until_refused(parser: ResponseParser, pieces: Iterable[bytes], words: str) -> int:
    """Count the bytes that the parser accepts."""
    fed = 0

    def feed() -> None:
        nonlocal fed
        for piece in pieces:
            parser.feed(piece)
            fed += len(piece)

    with pytest.raises(MalformedResponse, match=words):
        feed()
    return fed


def test_an_endless_head_is_malformed_at_the_limit() -> None:
    parser = ResponseParser()
    parser.begin(bodiless=False)
    assert fed_until_refused(parser, [OK, *[b"X: y\r\n" * 100] * 1000], "longer than 65536") <= HEAD_LIMIT


def test_an_endless_head_of_a_response_to_head_is_malformed_at_the_limit() -> None:
    parser = ResponseParser()
    parser.begin(bodiless=True)
    assert fed_until_refused(parser, [OK, *[b"X: y\r\n" * 100] * 1000], "longer than 65536") <= HEAD_LIMIT


@pytest.mark.parametrize("start", [b"5;", b"0\r\nX: "], ids=["chunk extension", "trailer"])
def test_endless_overhead_is_malformed_at_the_limit(start: bytes) -> None:
    parser = ResponseParser()
    parser.begin(bodiless=False)
    parser.feed(CHUNKED + start)
    assert fed_until_refused(parser, [b"a" * 4096] * 100, "too long") <= OVERHEAD_LIMIT


def test_content_resets_the_overhead() -> None:
    parser = ResponseParser()
    parser.begin(bodiless=False)
    parser.feed(CHUNKED)
    for _ in range(20):
        parser.feed(b"1;" + b"a" * 8000 + b"\r\n")
        parser.feed(b"x\r\n")
    parser.feed(b"0\r\n\r\n")
    assert parser.complete
    assert parser.pieces == [b"x"] * 20


def test_a_line_break_after_a_response_is_malformed() -> None:
    # Some servers send one line break too many after a body.
    assert read([CHUNKED + b"5\r\nhello\r\n0\r\n\r\n\r\n"]).body == b"hello"
