from __future__ import annotations

import json

import anthropic
import httpx2
import openai
import pytest

from llm_proxy import errors
from llm_proxy.errors import ProxyError, Shape, provider_response

REQUEST_ID = "0190a5c0-0000-7000-8000-000000000000"


EVERY_ERROR = pytest.mark.parametrize("kind", errors.DATA_PLANE, ids=lambda kind: kind.code)


@EVERY_ERROR
@pytest.mark.parametrize("shape", ["openai", "anthropic"])
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
                "type": errors.TYPES[kind.status][0],
                "param": "model",
                "code": kind.code,
            }
        }
    else:
        assert document == {
            "type": "error",
            "error": {
                "type": errors.TYPES[kind.status][1],
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


class Answering(httpx2.BaseTransport):
    """A transport that answers every request with one error, and counts them."""

    def __init__(self, error: ProxyError, shape: Shape) -> None:
        self.requests = 0
        self._answer = provider_response(error, shape, REQUEST_ID)

    def handle_request(self, request: httpx2.Request) -> httpx2.Response:
        self.requests += 1
        status, headers, body = self._answer
        return httpx2.Response(status, headers=headers, content=body)


@pytest.mark.parametrize(
    ("error", "exception"),
    [
        (errors.TokenInvalid(), openai.AuthenticationError),
        (errors.ProjectInactive(), openai.PermissionDeniedError),
        (errors.EndpointNotAllowed(), openai.NotFoundError),
        (errors.ParameterNotAllowed(param="model"), openai.BadRequestError),
        (errors.RequestLimitExceeded(), openai.RateLimitError),
    ],
)
def test_openais_sdk_raises_its_own_exception_at_once(
    error: ProxyError, exception: type[openai.APIStatusError]
) -> None:
    transport = Answering(error, "openai")
    with (
        openai.OpenAI(api_key="sk-x", http_client=httpx2.Client(transport=transport)) as client,
        pytest.raises(exception) as caught,
    ):
        client.models.list()
    assert caught.value.code == error.code
    assert caught.value.param == error.param
    assert caught.value.request_id == REQUEST_ID
    assert error.message in str(caught.value)
    assert transport.requests == 1


@pytest.mark.parametrize(
    ("error", "exception"),
    [
        (errors.TokenInvalid(), anthropic.AuthenticationError),
        (errors.EndpointNotAllowed(), anthropic.NotFoundError),
        (errors.RequestLimitExceeded(), anthropic.RateLimitError),
    ],
)
def test_anthropics_sdk_raises_its_own_exception_at_once(
    error: ProxyError, exception: type[anthropic.APIStatusError]
) -> None:
    transport = Answering(error, "anthropic")
    with (
        anthropic.Anthropic(api_key="sk-x", http_client=httpx2.Client(transport=transport)) as client,
        pytest.raises(exception) as caught,
    ):
        client.models.list()
    assert caught.value.error_code == error.code
    assert caught.value.request_id == REQUEST_ID
    assert error.message in str(caught.value)
    assert transport.requests == 1
