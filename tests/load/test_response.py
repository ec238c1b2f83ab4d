from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_proxy.load.response import Answer, BadAnswer, Truncated

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\n"
CHUNKED = HEAD + b"Transfer-Encoding: chunked\r\n\r\n"
NO_LENGTH = HEAD + b"\r\n"
EARLY = b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n"
FAULT = b"HTTP/1.1 429 Too Many Requests\r\n"


def counted(body: bytes, head: bytes = HEAD) -> bytes:
    return head + b"Content-Length: %d\r\n\r\n" % len(body) + body


def chunks(*pieces: bytes) -> bytes:
    return b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces) + b"0\r\n\r\n"


#: Status, keeps, stream, received, and the body of an error; or the name of the exception.
Parsed = tuple[int, bool, bool, int, bytes] | str


def read(pieces: list[bytes], *, bodiless: bool = False) -> Parsed:
    """Parse these pieces and then the end of the connection."""
    answer = Answer(bodiless=bodiless)
    try:
        for piece in pieces:
            answer.feed(piece)
        if not answer.complete:
            answer.end()
    except BadAnswer as error:
        return type(error).__name__
    assert answer.complete
    assert answer.size == sum(map(len, pieces))
    return answer.status, answer.keeps, answer.stream, answer.received, answer.body


BODIES = st.binary(max_size=40) | st.sampled_from([b"\r\n\r\n", b"0\r\n\r\n", b"HTTP/1.1 200 OK\r\n\r\n"])
ANSWERS = st.one_of(
    BODIES.map(counted),
    BODIES.map(lambda body: counted(body, FAULT)),
    BODIES.map(lambda body: EARLY + counted(body)),
    BODIES.map(lambda body: NO_LENGTH + body),
    st.lists(BODIES.filter(len), max_size=4).map(lambda pieces: CHUNKED + chunks(*pieces)),
    st.lists(BODIES.filter(len), max_size=4).map(
        lambda pieces: FAULT + b"transfer-encoding: chunked\r\n\r\n" + chunks(*pieces)
    ),
    # Malformed ones: too many bytes, too few, and random ones.
    BODIES.map(lambda body: counted(body) + b"x"),
    BODIES.map(lambda body: CHUNKED + chunks(b"a") + b"x" + body),
    BODIES.map(lambda body: (CHUNKED + chunks(body or b"a"))[:-1]),
    BODIES.map(lambda body: counted(body + b"x")[:-1]),
    st.binary(max_size=40),
)


@st.composite
def chunked(draw: st.DrawFn, source: st.SearchStrategy[bytes]) -> tuple[bytes, list[bytes]]:
    """Bytes in one piece, and cut anywhere."""
    whole = draw(source)
    cuts = sorted(draw(st.lists(st.integers(0, len(whole)), max_size=20)))
    pieces = [whole[start:end] for start, end in pairwise([0, *cuts, len(whole)])]
    return whole, [piece for piece in pieces if piece]


@given(chunked(ANSWERS))
def test_a_response_is_the_same_for_any_cutting(cut: tuple[bytes, list[bytes]]) -> None:
    whole, pieces = cut
    assert read(pieces) == read([whole])


@pytest.mark.parametrize(
    ("answer", "parsed"),
    [
        (counted(b"hello"), (200, True, False, 5, b"")),
        (counted(b""), (200, True, False, 0, b"")),
        (counted(b"{}", FAULT), (429, True, False, 2, b"{}")),
        (EARLY + counted(b"hello"), (200, True, False, 5, b"")),
        (CHUNKED + chunks(b"ab", b"cde"), (200, True, True, 5, b"")),
        (NO_LENGTH + b"hello", (200, False, True, 5, b"")),
        (b"HTTP/1.0 200 OK\r\nContent-Length: 0\r\n\r\n", (200, False, False, 0, b"")),
        (HEAD + b"Connection: Close\r\nContent-Length: 0\r\n\r\n", (200, False, False, 0, b"")),
        (b"HTTP/1.1 204 No Content\r\n\r\n", (204, True, False, 0, b"")),
    ],
)
def test_complete_responses_are_parsed(answer: bytes, parsed: Parsed) -> None:
    assert read([answer]) == parsed


@pytest.mark.parametrize(
    ("answer", "name"),
    [
        (b"", "Truncated"),
        (HEAD, "Truncated"),
        (counted(b"hello")[:-1], "Truncated"),
        (CHUNKED + b"2\r\nab\r\n", "Truncated"),
        (counted(b"hello") + b"HTTP/1.1 200 OK\r\n", "BadAnswer"),
        (CHUNKED + chunks(b"a") + counted(b""), "BadAnswer"),
        (CHUNKED + b"zz\r\n", "BadAnswer"),
        (b"HTTP/1.1 101 Switching Protocols\r\n\r\n", "BadAnswer"),
        (b"SSH-2.0-OpenSSH\r\n\r\n", "BadAnswer"),
        (b"HTTP/1.1 2000 OK\r\n\r\n", "BadAnswer"),
        (HEAD + b"Content-Length: -1\r\n\r\n", "BadAnswer"),
        (HEAD + b"X: " + b"x" * 1_048_577, "BadAnswer"),
        (EARLY * 20_000, "Truncated"),
    ],
)
def test_malformed_responses_are_refused(answer: bytes, name: str) -> None:
    assert read([answer]) == name


def test_a_response_to_head_has_no_body() -> None:
    assert read([HEAD + b"Content-Length: 5\r\n\r\n"], bodiless=True) == (200, True, False, 0, b"")


def test_pieces_are_chunks() -> None:
    answer = Answer()
    answer.feed(CHUNKED + chunks(b"a", b"b", b"c"))
    assert answer.pieces == 3


def test_only_the_first_bytes_of_a_long_error_body_are_kept() -> None:
    answer = Answer()
    answer.feed(FAULT + b"\r\n")
    for _ in range(100):
        answer.feed(bytes(1000))
    assert (len(answer.body), answer.received) == (65_536, 100_000)


def test_truncated_is_a_bad_answer() -> None:
    with pytest.raises(Truncated, match="before the response was complete"):
        Answer().end()
