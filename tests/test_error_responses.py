from __future__ import annotations

import json

import pytest

from llm_proxy import errors
from llm_proxy.errors import ProxyError, Shape, provider_response

REQUEST_ID = "0190a5c0-0000-7000-8000-000000000000"


EVERY_ERROR = pytest.mark.parametrize("kind", errors.DATA_PLANE, ids=lambda kind: kind.code)


@EVERY_ERROR
@pytest.mark.parametrize("shape", ["openai", "anthropic", "google", "aws"])
def test_every_error_has_a_body_of_each_shape(kind: type[ProxyError], shape: Shape) -> None:
    status, fields, body = provider_response(kind(param="model"), shape, REQUEST_ID)
    headers = dict(fields)
    document = json.loads(body)
    assert status == kind.status
    assert headers[b"content-type"] == b"application/json"
    assert headers[b"content-length"] == b"%d" % len(body)
    assert headers[b"x-request-id"] == headers[b"x-llm-proxy-request-id"] == REQUEST_ID.encode()
    if shape == "openai":
        assert document == {
            "error": {
                "message": kind.message,
                "type": kind.types[0],
                "param": "model",
                "code": kind.code,
            }
        }
    elif shape == "google":
        reason = {"reason": kind.code.upper(), "domain": "llm-proxy"}
        assert document["error"].pop("details") == [{"@type": "type.googleapis.com/google.rpc.ErrorInfo", **reason}]
        assert document == {"error": {"code": kind.status, "message": kind.message, "status": kind.types[2]}}
    elif shape == "aws":
        assert document == {"message": kind.message, "code": kind.code}
        assert headers[b"x-amzn-errortype"] == kind.types[3].encode()
        assert headers[b"x-amzn-requestid"] == REQUEST_ID.encode()
    else:
        assert document == {
            "type": "error",
            "error": {
                "type": kind.types[1],
                "message": kind.message,
                "code": kind.code,
                "details": {"error_code": kind.code},
            },
            "request_id": REQUEST_ID,
        }
        assert headers[b"request-id"] == REQUEST_ID.encode()


def headers_of(error: ProxyError) -> dict[bytes, bytes]:
    return dict(provider_response(error, "openai", REQUEST_ID)[1])


def test_waiting_is_advised_where_it_helps() -> None:
    assert headers_of(errors.Overloaded(retry_after=7))[b"retry-after"] == b"7"
    assert headers_of(errors.RequestLimitExceeded(retry_after=0))[b"retry-after"] == b"0"
    assert b"x-should-retry" not in headers_of(errors.RequestLimitExceeded(retry_after=3))


@EVERY_ERROR
def test_a_4xx_that_a_retry_does_not_heal_says_so(kind: type[ProxyError]) -> None:
    hopeless = 400 <= kind.status < 500 and kind is not errors.RequestTimeout
    assert headers_of(kind()).get(b"x-should-retry") == (b"false" if hopeless else None)


def test_a_wait_of_more_than_a_minute_is_no_reason_to_retry() -> None:
    assert b"x-should-retry" not in headers_of(errors.RequestLimitExceeded(retry_after=60))
    headers = headers_of(errors.RequestLimitExceeded(retry_after=61))
    assert (headers[b"retry-after"], headers[b"x-should-retry"]) == (b"61", b"false")


def test_the_methods_are_told_on_405_and_the_scheme_on_401() -> None:
    assert headers_of(errors.MethodNotAllowed(allow=("GET", "POST")))[b"allow"] == b"GET, POST"
    assert headers_of(errors.TokenExpired())[b"www-authenticate"] == b"Bearer"
