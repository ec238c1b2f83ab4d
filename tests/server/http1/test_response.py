from __future__ import annotations

import re

import pytest

from llm_proxy.server.http1.response import InvalidResponse, ResponseWriter, checked_fields


def writer(method: str = "GET", version: str = "1.1", *, keep_alive: bool = True) -> ResponseWriter:
    return ResponseWriter(method=method, version=version, keep_alive=keep_alive)


def lines(head: bytes) -> list[bytes]:
    assert head.endswith(b"\r\n\r\n")
    return [line for line in head[:-4].split(b"\r\n") if not line.startswith(b"date: ")]


def test_a_known_length_is_sent_as_content_length() -> None:
    response = writer()
    head = response.start(200, [(b"Content-Type", b"text/plain"), (b"content-length", b"5")])
    assert lines(head) == [b"HTTP/1.1 200 OK", b"Content-Type: text/plain", b"content-length: 5"]
    assert response.body(b"hel", more=True) == b"hel"
    assert response.body(b"lo", more=False) == b"lo"
    assert response.keep_alive


def test_an_unknown_length_is_sent_in_chunks() -> None:
    response = writer()
    assert lines(response.start(200, [])) == [b"HTTP/1.1 200 OK", b"transfer-encoding: chunked"]
    assert response.body(b"", more=True) == b""
    assert response.body(b"x" * 26, more=True) == b"1a\r\n" + b"x" * 26 + b"\r\n"
    assert response.body(b"ab", more=False) == b"2\r\nab\r\n0\r\n\r\n"


def test_an_unknown_length_to_http_1_0_ends_with_the_connection() -> None:
    response = writer(version="1.0")
    assert lines(response.start(200, [])) == [b"HTTP/1.1 200 OK", b"connection: close"]
    assert response.body(b"ab", more=True) == b"ab"
    assert not response.keep_alive
    assert not response.delimited


def test_http_1_0_gets_a_keep_alive_header() -> None:
    response = writer(version="1.0")
    head = response.start(200, [(b"content-length", b"0")])
    assert lines(head)[1:] == [b"content-length: 0", b"connection: keep-alive"]


@pytest.mark.parametrize(
    ("method", "status", "framing"),
    [("HEAD", 200, [b"content-length: 5"]), ("GET", 304, [b"content-length: 5"]), ("GET", 204, [])],
)
def test_some_responses_have_no_body(method: str, status: int, framing: list[bytes]) -> None:
    response = writer(method)
    assert lines(response.start(status, [(b"content-length", b"5")]))[1:] == framing
    assert response.body(b"hello", more=False) == b""
    assert response.keep_alive


def test_a_head_response_of_unknown_length_has_no_framing() -> None:
    assert lines(writer("HEAD").start(200, []))[1:] == []


@pytest.mark.parametrize("value", [b"a\r\nSet-Cookie: b", b"a\nb", b"a\rb", b"a\x00b", b"a\x1bb", b"a\x7fb", b"\r\n"])
@pytest.mark.parametrize("name", [b"x", b"date", b"Location"])
def test_a_header_value_with_a_control_character_is_refused(name: bytes, value: bytes) -> None:
    with pytest.raises(InvalidResponse, match="control"):
        writer().start(200, [(b"a", b"b"), (name, value)])
    with pytest.raises(InvalidResponse, match="control"):
        checked_fields(200, [(name, value)])


@pytest.mark.parametrize("name", [b"", b"a b", b"a:", b":status", b"a\r\nb", "é".encode(), b"a\x00"])
def test_a_header_name_must_be_a_token(name: bytes) -> None:
    for _ in range(2):  # what was refused once is not remembered as good
        with pytest.raises(InvalidResponse, match="not a header name"):
            writer().start(200, [(name, b"x")])
        with pytest.raises(InvalidResponse, match="not a header name"):
            checked_fields(200, [(name, b"x")])


def test_a_header_value_may_contain_tabs_and_bytes_above_ascii() -> None:
    assert b"x: a\tb\xe9\r\n" in writer().start(200, [(b"x", b"a\tb\xe9")])


@pytest.mark.parametrize("length", [b"", b"-1", b"+1", b"1 ", b"1, 1", b"0x1", b"1\r\n", b"9" * 20])
def test_a_content_length_must_be_a_number(length: bytes) -> None:
    with pytest.raises(InvalidResponse, match="Content-Length"):
        writer().start(200, [(b"content-length", length)])


def test_two_different_content_lengths_are_refused() -> None:
    assert lines(writer().start(200, [(b"content-length", b"5")] * 2)).count(b"content-length: 5") == 1
    with pytest.raises(InvalidResponse, match="Content-Length"):
        writer().start(200, [(b"content-length", b"5"), (b"Content-Length", b"6")])


@pytest.mark.parametrize(("first", "second"), [(b"", b"123456"), (b"123", b"456"), (b"12345", b"6")])
def test_a_body_longer_than_its_content_length_is_refused(first: bytes, second: bytes) -> None:
    response = writer()
    response.start(200, [(b"content-length", b"5")])
    response.body(first, more=True)
    with pytest.raises(InvalidResponse, match="length"):
        response.body(second, more=True)


def test_a_body_shorter_than_its_content_length_is_refused() -> None:
    response = writer()
    response.start(200, [(b"content-length", b"5")])
    response.body(b"123", more=True)
    with pytest.raises(InvalidResponse, match="length"):
        response.body(b"4", more=False)


def test_framing_headers_of_the_application_are_replaced() -> None:
    headers = [(b"Transfer-Encoding", b"chunked"), (b"Connection", b"keep-alive"), (b"Keep-Alive", b"timeout=5")]
    assert lines(writer().start(200, headers)) == [b"HTTP/1.1 200 OK", b"transfer-encoding: chunked"]
    with pytest.raises(InvalidResponse, match="coding"):
        writer().start(200, [(b"transfer-encoding", b"gzip")])


def test_the_application_may_close_the_connection() -> None:
    response = writer()
    assert b"connection: close" in lines(response.start(204, [(b"Connection", b"X, Close")]))
    assert not response.keep_alive


@pytest.mark.parametrize("status", [0, 99, 100, 101, 103, 199, 1000])
def test_only_final_responses_can_be_sent(status: int) -> None:
    with pytest.raises(InvalidResponse, match="status"):
        writer().start(status, [])
    with pytest.raises(InvalidResponse, match="status"):
        checked_fields(status, [])


def test_an_unknown_status_has_an_empty_phrase() -> None:
    assert writer().start(599, []).startswith(b"HTTP/1.1 599 \r\n")


def test_a_framing_header_is_recognised_in_any_case() -> None:
    for name in (b"x-plain", b"X-Plain", b"x-plain", b"date", b"Date", b"Content-Length", b"content-length"):
        value = b"0" if name.lower() == b"content-length" else b"v"
        head = ResponseWriter(method="GET", version="1.1", keep_alive=True).start(200, [(name, value)])
        assert head.lower().count(b"\r\n" + name.lower() + b": ") == 1
        assert head.lower().count(b"\r\ndate: ") == 1


def test_a_response_has_one_date_and_no_server_header() -> None:
    head = writer().start(200, [])
    assert len(re.findall(rb"\r\ndate: \w{3}, \d\d \w{3} \d{4} \d\d:\d\d:\d\d GMT\r\n", head)) == 1
    assert b"server" not in head.lower()
    assert writer().start(200, [(b"Date", b"then")]).lower().count(b"date: ") == 1


def test_http_2_headers_are_lower_case_without_connection_headers() -> None:
    headers = [
        (b"X-Y", b" z "),
        (b"Connection", b"close"),
        (b"transfer-encoding", b"chunked"),
        (b"Content-Length", b"5"),
    ]
    fields, length = checked_fields(200, headers)
    assert fields[:-1] == [(b"x-y", b"z"), (b"content-length", b"5")]
    assert fields[-1][0] == b"date"
    assert length == 5
