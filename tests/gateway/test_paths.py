from __future__ import annotations

import posixpath
import re
from urllib.parse import unquote_to_bytes, urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_proxy.errors import InvalidPath
from llm_proxy.gateway.http import paths

TAKEN = [
    b"/",
    b"/v1",
    b"/v1/",
    b"/v1/chat/completions",
    b"/v1/models/ft:gpt-4o:acme@2",
    b"/v1/models/ft%3Agpt%20x%7E%5b",
    b"/v1/models/%e2%82%ac",
    b"/v1/x!$&'()*+,=~_\"<>[]^`{|}@",
    b"/v1/.hidden",
    b"/v1/a..b",
    b"/v1/a.",
    b"/v1/..a",
    b"/" + b"a" * 5000,
]

REFUSED = [
    b"",
    b"*",
    b"v1/models",
    b"http://evil.example/v1/models",
    b"//",
    b"//v1/models",
    b"/v1//models",
    b"/v1/models//",
    b"/.",
    b"/..",
    b"/v1/.",
    b"/v1/./models",
    b"/v1/../admin",
    b"/v1/..",
    b"/v1/...",
    b"/v1/.../x",
    b"/v1/..;/admin",
    b"/v1/..;x=y/admin",
    b"/v1/%2e%2e/admin",
    b"/v1/%2E%2e/admin",
    b"/v1/.%2e/admin",
    b"/v1/%2e./admin",
    b"/v1/..%20/admin",
    b"/v1/. /admin",
    b"/v1/gpt-3%2e5",
    b"/v1/gpt%2D4o",
    b"/v1/gpt%5F4o",
    b"/v1/threads/%72uns",
    b"/v1/threads/%52uns",
    b"/v1/threads/run%7a",
    b"/v1/threads/run%5A",
    b"/v1/threads/%61",
    b"/v1/threads/%30",
    b"/v1/threads/%39",
    b"/v1/threads/%4F",
    b"/v1%2fmodels",
    b"/v1%2Fmodels",
    b"/v1/%5c",
    b"/v1/%5C",
    b"/v1/%252e",
    b"/v1/%00",
    b"/v1/%0a",
    b"/v1/%0D%0A",
    b"/v1/%1f",
    b"/v1/%7F",
    b"/v1/%3b",
    b"/v1/%23",
    b"/v1/%3F",
    b"/v1/%",
    b"/v1/%4",
    b"/v1/%zz",
    b"/v1/%u002e",
    b"/v1/%c0%ae%c0%ae/x",
    b"/v1/%e0%80%af",
    b"/v1/%ff",
    b"/v1/%c2%85",
    b"/v1/%e2%80%ae",
    b"/v1/%ef%bc%8e%ef%bc%8e/x",
    b"/v1/%e2%80%a5/x",
    b"/v1/%ef%bc%8f",
    b"/v1\\models",
    b"/v1;x/models",
    b"/v1/models#x",
    b"/v1/models?x",
    b"/v1/ models",
    b"/v1/models\n",
    b"/v1/models\r\nHost: x",
    b"/v1/\x00",
    b"/v1/\x7f",
    b"/v1/\x80",
    "/v1/ä".encode(),
    b"/" + b"a" * 5000 + b"/..",
]


@pytest.mark.parametrize("path", TAKEN)
def test_an_unambiguous_path_is_allowed(path: bytes) -> None:
    paths.check(path)


@pytest.mark.parametrize("path", REFUSED)
def test_an_ambiguous_path_is_refused(path: bytes) -> None:
    for _ in range(2):
        with pytest.raises(InvalidPath):
            paths.check(path)


@pytest.mark.parametrize(
    "path",
    [
        b"/v1/models/openai%2Fgpt-oss-120b",
        b"/v1/models/openai%2fgpt-oss-120b",
        b"/model/arn%3Aaws%3Abedrock%3Aeu-west-1%3A1%3Ainference-profile%2Fx.y-v1%3A0/invoke",
        b"/v1/models/a%2Fb%2Fc",
        *TAKEN,
    ],
)
def test_a_request_may_have_an_escaped_slash(path: bytes) -> None:
    paths.check_request(path)


@pytest.mark.parametrize(
    "path",
    [
        b"/v1/models/a%2F",
        b"/v1/models/%2Fa",
        b"/v1/models/a%2F/x",
        b"/v1/models/a%2F%2fb",
        b"/v1/models/a%2F%2E%2E",
        b"/v1/models/..%2Fa",
        b"/v1/models/a%2F.%2Fb",
        b"/v1/models/a%2F..",
        b"/v1/models/a%2F%20/x",
        b"/v1/models/a%252Fb",
        b"%2Fv1/models",
        *(path for path in REFUSED if b"%2f" not in path.lower()),
    ],
)
def test_an_escaped_slash_may_not_make_another_path_of_a_request(path: bytes) -> None:
    with pytest.raises(InvalidPath):
        paths.check_request(path)


PIECES = st.sampled_from(
    [b" ", b"\n", *rb"/ . .. a v1 % %2 %2e %2F %25 %61 %c0 %ae %e2%82%ac ; \ # ? %20 : %5c %3b * { %zz".split()]
)


@given(st.lists(PIECES, max_size=12).map(b"".join) | st.binary(max_size=20))
def test_an_allowed_path_has_the_same_meaning_for_every_server(tail: bytes) -> None:
    path = b"/" + tail
    try:
        paths.check(path)
    except InvalidPath:
        return
    decoded = unquote_to_bytes(path)
    assert unquote_to_bytes(decoded) == decoded
    escaped = [unquote_to_bytes(escape) for escape in re.findall(rb"%..", path)]
    assert not any(byte.isalnum() or byte in b"-._" for byte in escaped)
    assert decoded.count(b"/") == path.count(b"/")
    for reading in (path, decoded):
        assert posixpath.normpath(reading) == (reading.rstrip(b"/") or b"/")
        assert not set(b";\\#?").intersection(reading)
        assert all(segment.rstrip(b" .") for segment in reading.strip(b"/").split(b"/") if reading != b"/")
    assert path.isascii()
    assert decoded.decode().isprintable()
    assert urlsplit(b"http://host" + path).path == path


@given(st.from_regex(paths._SIMPLE_PATH, fullmatch=True))
def test_a_simple_path_is_allowed_by_the_grammar(path: bytes) -> None:
    paths.check(path)
    assert paths._PATH.fullmatch(path)


@pytest.mark.parametrize("query", [b"", b"limit=20&after=x%20y", b"a=b?c/d:e@[f]", b"x='\"<>^`{|}~;"])
def test_a_query_of_visible_ascii_is_allowed(query: bytes) -> None:
    paths.check_query(query)


@pytest.mark.parametrize("query", [b"a b", b"a\r\nb", b"a#b", b"\x00", b"\x7f", "ä".encode(), b"a\n"])
def test_a_query_that_would_break_the_request_line_is_refused(query: bytes) -> None:
    with pytest.raises(InvalidPath):
        paths.check_query(query)


@pytest.mark.parametrize("query", [b"$httpMethod=DELETE", b"a=b&%24HTTPMETHOD=GET", b"%24c%74=text/plain"])
def test_a_query_that_makes_it_another_request_at_google_is_refused(query: bytes) -> None:
    paths.check_query(b"$alt=sse&$fields=a&x=$ct")
    with pytest.raises(InvalidPath):
        paths.check_query(query)
