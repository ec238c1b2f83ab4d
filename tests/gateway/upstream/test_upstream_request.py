from __future__ import annotations

from collections.abc import AsyncIterator, Sequence

import h11
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_proxy.gateway.upstream.connector import Origin, Timeouts
from llm_proxy.gateway.upstream.request import BodyReader, chunk, write_request

Headers = Sequence[tuple[bytes, bytes]]


def head(method: bytes = b"GET", target: bytes = b"/", headers: Headers = (), body: bytes | None = None) -> bytes:
    return write_request(method, target, b"api.example", headers, body).head


def test_a_request_is_written_byte_for_byte() -> None:
    assert head(b"POST", b"/v1/x?y", [(b"X-A", b"1"), (b"x-a", b"2")], b"abc") == (
        b"POST /v1/x?y HTTP/1.1\r\nHost: api.example\r\nX-A: 1\r\nx-a: 2\r\nContent-Length: 3\r\n\r\n"
    )


@pytest.mark.parametrize(
    ("method", "target", "headers"),
    [
        (b"GET", b"/", [(b"X", b"a\r\nY: b")]),
        (b"GET", b"/", [(b"X", b"a\nY: b")]),
        (b"GET", b"/", [(b"X", b"a\rb")]),
        (b"GET", b"/", [(b"X", b"a\0b")]),
        (b"GET", b"/", [(b"X\r\nY", b"b")]),
        (b"GET", b"/ HTTP/1.1\r\nX: y\r\n\r\nGET /", []),
        (b"GET", b"/a b", []),
        (b"GET", b"/a\nb", []),
        (b"GET", b"/a\0b", []),
        (b"GET", b"", []),
        (b"GET /x", b"/", []),
        (b"GET\r\n", b"/", []),
        (b"GET", b"/", [(b"Content-Length", b"3")]),
        (b"GET", b"/", [(b"transfer-ENCODING", b"chunked")]),
        (b"GET", b"/", [(b"X", b"y"), (b"HOST", b"evil.example")]),
    ],
)
def test_a_request_that_would_be_read_as_another_is_refused(method: bytes, target: bytes, headers: Headers) -> None:
    with pytest.raises(ValueError, match="request") as caught:
        head(method, target, headers)
    assert "evil" not in str(caught.value)


def test_names_that_contain_a_framing_name_are_sent() -> None:
    assert b"X-Host: a\r\nX-Content-Length: 1\r\n" in head(headers=[(b"X-Host", b"a"), (b"X-Content-Length", b"1")])


token = st.text("abcXYZ019-_.!#$%&'*+^`|~", min_size=1, max_size=12).map(str.encode)
value = st.lists(st.integers(0x21, 0x7E) | st.integers(0x80, 0xFF), max_size=20).map(bytes)


@given(token, value.filter(bool), st.lists(st.tuples(token, value), max_size=6), st.none() | st.binary(max_size=50))
def test_another_implementation_reads_the_same_request(
    method: bytes, target: bytes, headers: list[tuple[bytes, bytes]], body: bytes | None
) -> None:
    reader = h11.Connection(h11.SERVER)
    target = b"/" + bytes(byte for byte in target if byte < 0x80)
    reader.receive_data(head(method, target, headers, body) + (body or b""))
    request = reader.next_event()
    assert isinstance(request, h11.Request)
    assert (request.method, request.target) == (method, target)
    assert request.headers.raw_items()[1 : 1 + len(headers)] == headers
    if body:
        data = reader.next_event()
        assert isinstance(data, h11.Data)
        assert data.data == body
    assert isinstance(reader.next_event(), h11.EndOfMessage)
    assert reader.trailing_data == (b"", False)


@given(st.binary(min_size=1, max_size=1000))
def test_a_chunk_has_its_size_in_hexadecimal(piece: bytes) -> None:
    size, _, rest = chunk(piece).partition(b"\r\n")
    assert int(size, 16) == len(piece)
    assert rest == piece + b"\r\n"


async def test_a_reader_closes_the_generator_of_the_body() -> None:
    class Source:
        content_length = None
        closed = False

        async def __aiter__(self) -> AsyncIterator[bytes]:
            try:
                yield b"a"
                yield b"b"
            finally:
                self.closed = True

    source = Source()
    reader = BodyReader(source)
    assert await anext(reader) == b"a"
    await reader.aclose()
    assert source.closed


async def test_a_reader_accepts_any_iterator() -> None:
    class Source:
        content_length = 2
        left = 3

        def __aiter__(self) -> Source:
            return self

        async def __anext__(self) -> bytes:
            self.left -= 1
            if self.left < 0:
                raise StopAsyncIteration
            return b"x" if self.left else b""

    reader = BodyReader(Source())
    assert [piece async for piece in reader] == [b"x", b"x"]
    await reader.aclose()


@pytest.mark.parametrize(
    ("origin", "authority"),
    [
        (Origin("https", "api.example", 443), b"api.example"),
        (Origin("http", "api.example", 80), b"api.example"),
        (Origin("https", "api.example", 80), b"api.example:80"),
        (Origin("http", "127.0.0.1", 8080), b"127.0.0.1:8080"),
        (Origin("http", "::1", 8080), b"[::1]:8080"),
        (Origin("https", "::1", 443), b"[::1]"),
    ],
)
def test_the_host_field_has_the_authority(origin: Origin, authority: bytes) -> None:
    assert origin.authority == authority


@pytest.mark.parametrize(
    ("scheme", "host", "port"),
    [
        ("ftp", "a", 1),
        ("http", "", 1),
        ("http", "a/b", 1),
        ("http", "a@b", 1),
        ("http", "a\r\nb", 1),
        ("http", "a\n", 1),
        ("http", "[::1]", 1),
        ("http", "bücher.example", 1),
        ("http", "a", 0),
        ("http", "a", 65536),
    ],
)
def test_an_invalid_origin_is_refused(scheme: str, host: str, port: int) -> None:
    with pytest.raises(ValueError, match=r"."):
        Origin(scheme, host, port)


@pytest.mark.parametrize("seconds", [(0, 1, 1), (1, 0, 1), (1, 1, 0), (1, 1, -1)])
def test_a_timeout_of_zero_is_refused(seconds: tuple[float, float, float]) -> None:
    with pytest.raises(ValueError, match=r"."):
        Timeouts(*seconds)
