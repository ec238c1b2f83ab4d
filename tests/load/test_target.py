from __future__ import annotations

import ssl
from itertools import islice

import pytest

from llm_proxy.load import LoadTarget


def test_a_request_is_rendered_with_its_length() -> None:
    target = LoadTarget.render("POST", "http://localhost:81/a?b=c", [("X-A", "1")], b"body")
    assert (
        next(target.requests())
        == b"POST /a?b=c HTTP/1.1\r\nHost: localhost:81\r\nX-A: 1\r\nContent-Length: 4\r\n\r\nbody"
    )
    assert (target.host, target.port, target.tls) == ("localhost", 81, None)


def test_a_header_can_replace_the_host() -> None:
    target = LoadTarget.render("GET", "http://127.0.0.1", [("host", "example.com")], b"")
    assert next(target.requests()) == b"GET / HTTP/1.1\r\nhost: example.com\r\n\r\n"
    assert (target.host, target.port) == ("127.0.0.1", 80)


def test_tokens_are_used_in_turn() -> None:
    target = LoadTarget.render("GET", "http://a", [], b"", tokens=["t1", "t2", "t3"])
    lines = [request.split(b"\r\n")[2] for request in islice(target.requests(), 5)]
    assert lines == [b"Authorization: Bearer t%d" % number for number in (1, 2, 3, 1, 2)]
    assert "t1" not in repr(target)


def test_https_verifies_certificates_by_default() -> None:
    checked = LoadTarget.render("GET", "https://[::1]/", [], b"")
    assert (checked.host, checked.port) == ("::1", 443)
    assert checked.tls is not None
    assert (checked.tls.verify_mode, checked.tls.check_hostname) == (ssl.CERT_REQUIRED, True)


@pytest.mark.parametrize(
    ("url", "token", "words"),
    [
        ("ftp://a/", "t", "http:// or https://"),
        ("http://", "t", "http:// or https://"),
        ("http://a:x/", "t", "[Pp]ort"),
        ("http://a/", "canary\r\nX: y", "'Authorization' contains a line break"),
        ("http://a/", "canary\u20ac", "'Authorization' contains characters"),
    ],
)
def test_errors_for_invalid_requests_do_not_contain_the_token(url: str, token: str, words: str) -> None:
    with pytest.raises(ValueError, match=words) as caught:
        LoadTarget.render("GET", url, [], b"", tokens=[token])
    assert "canary" not in str(caught.value)
