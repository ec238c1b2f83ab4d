from __future__ import annotations

import pytest

from llm_proxy.web.cors import EXPOSED, METHODS, CrossOrigin, HeaderList

APP = b"https://app.example.com"
SOME = CrossOrigin(["https://app.example.com", "http://localhost:3000"])
ALL = CrossOrigin(["*"])

ORIGINS: list[tuple[CrossOrigin, list[bytes], bytes | None]] = [
    (SOME, [APP], APP),
    (SOME, [b"http://localhost:3000"], b"http://localhost:3000"),
    (SOME, [], None),
    (SOME, [b""], None),
    (SOME, [b"null"], None),
    (SOME, [b"*"], None),
    (SOME, [b"https://app.example.com:8443"], None),
    (SOME, [b"http://app.example.com"], None),
    (SOME, [b"https://app.example.com.evil.example"], None),
    (SOME, [b"https://evil.example/https://app.example.com"], None),
    (SOME, [APP, APP], None),
    (SOME, [APP, b"https://evil.example"], None),
    (ALL, [APP], APP),
    (ALL, [b"null"], b"null"),
    (ALL, [], None),
    (ALL, [b""], None),
    (ALL, [b"https://a b"], None),
    (ALL, [b"https://a\r\nset-cookie: x"], None),
    (ALL, ["https://ü".encode()], None),
]


@pytest.mark.parametrize(("policy", "values", "allowed"), ORIGINS)
def test_only_an_allowed_origin_is_returned(policy: CrossOrigin, values: list[bytes], allowed: bytes | None) -> None:
    headers = [(b"host", b"proxy"), *((b"origin", value) for value in values), (b"accept", APP)]
    assert policy.preflight("OPTIONS", [*headers, (b"access_control_request_method", b"POST")]) is None
    assert policy.origin(headers) == allowed


def test_a_preflight_gets_methods_and_headers() -> None:
    asked = [
        (b"origin", APP),
        (b"access-control-request-method", b"POST"),
        (b"access-control-request-headers", b"authorization,content-type,x-stainless-lang"),
    ]
    assert SOME.preflight("OPTIONS", asked) == [
        (b"access-control-allow-origin", APP),
        (b"access-control-allow-methods", METHODS),
        (b"access-control-max-age", b"7200"),
        (b"vary", b"Origin, Access-Control-Request-Method, Access-Control-Request-Headers"),
        (b"access-control-allow-headers", b"authorization,content-type,x-stainless-lang"),
    ]


METHOD = (b"access-control-request-method", b"POST")

NO_PREFLIGHTS: list[tuple[str, HeaderList]] = [
    ("OPTIONS", [(b"origin", APP)]),
    ("OPTIONS", [METHOD]),
    ("POST", [(b"origin", APP), METHOD]),
    ("GET", [(b"origin", APP), METHOD]),
    ("OPTIONS", [(b"origin", b"https://evil.example"), METHOD]),
]


@pytest.mark.parametrize(("method", "headers"), NO_PREFLIGHTS)
def test_a_request_that_is_no_allowed_preflight_is_passed_on(method: str, headers: HeaderList) -> None:
    assert SOME.preflight(method, headers) is None


@pytest.mark.parametrize("names", [b"", b"x-a\r\nset-cookie: x", b"x-a: b", b"x-\xff", b"x-a\x00"])
def test_invalid_header_names_are_not_sent_back(names: bytes) -> None:
    answer = SOME.preflight("OPTIONS", [(b"origin", APP), METHOD, (b"access-control-request-headers", names)])
    assert answer is not None
    assert b"access-control-allow-headers" not in dict(answer)


ALLOWED: HeaderList = [(b"access-control-allow-origin", APP), (b"access-control-expose-headers", EXPOSED)]
VARY = (b"vary", b"Origin")

ANSWERS: list[tuple[HeaderList, bytes | None, HeaderList]] = [
    ([], APP, [VARY, *ALLOWED]),
    ([], None, [VARY]),
    (
        [(b"x-a", b"1"), (b"vary", b"accept-encoding")],
        APP,
        [(b"x-a", b"1"), (b"vary", b"accept-encoding"), VARY, *ALLOWED],
    ),
    ([(b"vary", b"Accept, ORIGIN")], APP, [(b"vary", b"Accept, ORIGIN"), *ALLOWED]),
    ([(b"vary", b"*")], None, [(b"vary", b"*")]),
    ([(b"vary", b"x-origin")], None, [(b"vary", b"x-origin"), VARY]),
    (
        [
            (b"access-control-allow-origin", b"*"),
            (b"access-control-expose-headers", b"x-request-id"),
            (b"access-control-allow-credentials", b"true"),
            (b"content-type", b"application/json"),
        ],
        APP,
        [(b"content-type", b"application/json"), VARY, *ALLOWED],
    ),
    ([(b"access-control-allow-origin", b"*")], None, [VARY]),
]


@pytest.mark.parametrize(("headers", "origin", "marked"), ANSWERS)
def test_responses_get_the_cors_headers(headers: HeaderList, origin: bytes | None, marked: HeaderList) -> None:
    before = list(headers)
    assert SOME.mark(headers, origin) == marked
    assert headers == before
