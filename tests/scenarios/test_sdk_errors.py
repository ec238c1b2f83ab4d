"""Whatever the proxy refuses, each SDK raises its own exception for it, with our code on it."""
# ruff: noqa: ASYNC110 (what is waited for happens in other processes)

from __future__ import annotations

import hashlib
import json
import sqlite3
from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager, closing
from functools import partial
from pathlib import Path
from typing import Any

import anthropic
import httpx2
import openai
import pytest
import trio

from benchmarks.processes import Upstream
from llm_proxy import errors
from llm_proxy.errors import ProxyError, Shape, provider_response
from tests.databases.kinds import Kind
from tests.databases.scratch import Databases
from tests.harness.deployment import UPSTREAM_KEY, Deployment
from tests.scenarios.gateway import figure, open_gateway
from tests.scenarios.refusals import ANTHROPIC, CASES, LARGEST, OPENAI, STRICT, Case, Sdk, ask_gpt
from tests.scenarios.sdk import LAX_GENERATORS, claude, gpt, items

pytestmark = [pytest.mark.filterwarnings(*LAX_GENERATORS)]

REQUEST_ID = "0190a5c0-0000-7000-8000-000000000000"
AT_ONCE = 3
#: Retries that a client of these tests could afford, where the point is that it makes none.
RETRIES = 3
#: A limit whose window ends in days, and one of which two requests for 500 tokens cannot be reserved at once.
LASTING: dict[str, Any] = {"window": "month", "amount": 0}
RESERVED: dict[str, Any] = {"metric": "output_tokens", "window": "total", "amount": 900, "policy": "reserved"}
SDKS = pytest.mark.parametrize("sdk", [OPENAI, ANTHROPIC], ids=["openai", "anthropic"])


@pytest.fixture(scope="module")
def gateway_settings(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    prices = tmp_path_factory.mktemp("prices") / "prices.yaml"
    price = {"*scripted*": {"input": 1, "output": 1}}
    prices.write_text(json.dumps({"prices": {"openai": price, "anthropic": price}}))
    return {
        "MAX_REQUEST_SIZE": str(LARGEST),
        "MAX_CONCURRENT_REQUESTS": str(AT_ONCE),
        "PRICES_PATH": str(prices),
    }


@pytest.fixture(scope="module")
def strict_providers() -> bool:
    return True


def limited(gateway: Deployment, sdk: Sdk, limit: dict[str, Any], **fields: Any) -> str:
    """The secret of a new token with this limit, if there is one."""
    token = gateway.new_token(gateway.new_project(provider=sdk.provider)["id"], **fields)
    if limit:
        gateway.server.manage("POST", "/limits", {"token_id": token["id"], **limit})
    return str(token["token"])


@asynccontextmanager
async def raises(sdk: Sdk, code: str, status: int, exception: type[Exception], words: str = "") -> AsyncIterator[None]:
    """Expect a refusal, and look at everything that the SDK makes of it."""
    with pytest.raises(exception) as caught:
        yield
    error: Any = caught.value
    assert (error.status_code, sdk.code(error), sdk.in_body(error)) == (status, code, code)
    assert error.type
    assert error.request_id == error.response.headers["x-llm-proxy-request-id"]
    message = error.body["message"] if sdk is OPENAI else error.body["error"]["message"]
    assert message in str(error)
    assert words in message
    if status == 503:
        assert int(error.response.headers["retry-after"]) >= 1


@SDKS
@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.code}{case.kind}")
def test_each_error_code_raises_the_sdks_exception(gateway: Deployment, sdk: Sdk, case: Case) -> None:
    project = gateway.new_project(provider=sdk.provider + case.kind)
    token = gateway.new_token(project["id"], **case.token)
    secret = case.spoil(gateway, token) or token["token"]

    async def meet() -> None:
        async with (
            sdk.make("async", gateway.server.url, secret, default_headers=case.headers) as client,
            raises(sdk, case.code, case.status, case.exception(sdk)),
        ):
            await (case.call or (lambda sdk, client: sdk.ask(client)))(sdk, client)

    trio.run(meet)


@pytest.mark.parametrize(
    ("sdk", "provider", "base", "words"),
    [
        (
            OPENAI,
            "openai",
            "",
            'The path "/chat/completions" is unknown; the base URL of the client must end in /v1',
        ),
        (OPENAI, "openai", "/openai", "the base URL of the client must end in /v1"),
        (OPENAI, "openai", "/v1/v1", "/v1 is there twice; leave it off the base URL of the client"),
        (ANTHROPIC, "anthropic", "/v1", "/v1 is there twice; leave it off the base URL of the client"),
        (OPENAI, "anthropic", "/v1", 'uses the provider "anthropic": it takes /v1/messages'),
    ],
)
async def test_a_wrong_base_url_or_token_is_an_error_that_says_what_to_do(
    gateway: Deployment, sdk: Sdk, provider: str, base: str, words: str
) -> None:
    secret = gateway.new_secret(gateway.new_project(provider=provider)["id"])
    url = gateway.server.url
    async with (
        sdk.make("async", url, secret) as client,
        raises(sdk, "endpoint_not_allowed", 404, sdk.errors.NotFoundError, words),
    ):
        await sdk.ask(client.with_options(base_url=url + base))
    assert gateway.upstream.counts()["requests"] == 0


@pytest.mark.parametrize(
    ("sdk", "provider", "base"),
    [(ANTHROPIC, "openai", ""), (OPENAI, "anthropic", "/openai/v1"), (ANTHROPIC, "openai", "/anthropic")],
)
async def test_a_provider_without_a_credential_is_an_error_that_says_what_to_do(
    gateway: Deployment, sdk: Sdk, provider: str, base: str
) -> None:
    secret = gateway.new_secret(gateway.new_project(provider=provider)["id"])
    url = gateway.server.url
    words = f"no credential for the provider '{sdk.provider}', only for {provider}: send"
    async with (
        sdk.make("async", url, secret) as client,
        raises(sdk, "credential_missing", 403, sdk.errors.PermissionDeniedError, words),
    ):
        await sdk.ask(client.with_options(base_url=url + base) if base else client)
    assert gateway.upstream.counts()["requests"] == 0


async def test_an_anthropic_client_without_the_version_in_its_path_gets_anthropics_error(gateway: Deployment) -> None:
    """As the AI SDK does, whose base URL has the version."""
    async with (
        claude("async", gateway.server.url, "sk-" + "x" * 43) as client,
        raises(ANTHROPIC, "endpoint_not_allowed", 404, anthropic.NotFoundError, "must end in /v1"),
    ):
        await client.post("/messages", cast_to=object)


@SDKS
def test_the_synchronous_client_raises_the_same_exceptions(gateway: Deployment, sdk: Sdk) -> None:
    async def meet() -> None:
        async with (
            sdk.make("sync", gateway.server.url, "sk-" + "x" * 43) as client,
            raises(sdk, "token_invalid", 401, sdk.errors.AuthenticationError),
        ):
            sdk.ask(client)

    trio.run(meet)


@SDKS
async def test_a_strict_provider_accepts_valid_requests(gateway: Deployment, sdk: Sdk) -> None:
    project = gateway.new_project(provider=f"{sdk.provider}-strict")
    secret = gateway.new_secret(project["id"])
    long = [{"role": "user", "content": "Expire. " * 10_000}]
    async with sdk.make("async", gateway.server.url, secret, default_headers=STRICT) as client:
        assert (await sdk.ask(client, messages=long)).id
        sent = (await sdk.raw(client, messages=long)).http_response.request.content
    # A body that was read whole, to be judged, is still the client's own.
    assert {entry["body_sha256"] for entry in gateway.upstream.requests()} == {hashlib.sha256(sent).hexdigest()}


@SDKS
async def test_a_limit_that_is_used_up_is_not_retried(gateway: Deployment, sdk: Sdk) -> None:
    project = gateway.new_project(provider=sdk.provider)
    secret = gateway.new_secret(project["id"], max_requests=1)
    count = {"name": "llm_proxy_refusals_total", "code": "request_limit_exceeded"}
    before = figure(gateway, **count)
    async with sdk.make("async", gateway.server.url, secret, max_retries=RETRIES) as client:
        await sdk.ask(client)
        started = trio.current_time()
        with pytest.raises(sdk.errors.RateLimitError):
            await sdk.ask(client)
    assert trio.current_time() - started < 0.4
    assert figure(gateway, **count) == before + 1
    assert gateway.upstream.counts()["requests"] == 1


@SDKS
@pytest.mark.parametrize(
    ("code", "status", "error", "token", "limit", "more"),
    [
        ("rate_limit_exceeded", 429, "RateLimitError", {}, LASTING | {"metric": "requests"}, {}),
        ("budget_exceeded", 429, "RateLimitError", {}, LASTING | {"metric": "cost"}, {}),
        ("budget_exceeded", 429, "RateLimitError", {}, LASTING | {"metric": "tokens"}, {}),
        ("model_not_allowed", 403, "PermissionDeniedError", {"models": ["other-*"]}, {}, {}),
        ("model_not_priced", 403, "PermissionDeniedError", {}, LASTING | {"metric": "cost"}, {"model": "unpriced"}),
        ("cost_unbounded", 400, "BadRequestError", {}, RESERVED, {"extra_body": {"unheard_of": 1}}),
    ],
)
async def test_a_refusal_by_a_limit_that_lasts_is_not_retried(
    gateway: Deployment,
    sdk: Sdk,
    *,
    code: str,
    status: int,
    error: str,
    token: dict[str, Any],
    limit: dict[str, Any],
    more: dict[str, Any],
) -> None:
    secret = limited(gateway, sdk, limit, **token)
    before = figure(gateway, "llm_proxy_refusals_total", code=code)
    async with (
        sdk.make("async", gateway.server.url, secret, max_retries=RETRIES) as client,
        raises(sdk, code, status, getattr(sdk.errors, error)),
    ):
        await sdk.ask(client, **{"max_tokens": 20} | more)
    assert figure(gateway, "llm_proxy_refusals_total", code=code) == before + 1
    assert gateway.upstream.counts()["requests"] == 0


@SDKS
@pytest.mark.parametrize(
    ("code", "limit"),
    [
        ("rate_limit_exceeded", {"metric": "concurrency", "amount": 1, "wait": "0s"}),
        ("budget_reserved", RESERVED),
    ],
)
async def test_a_refusal_by_a_limit_that_running_requests_cause_is_solved_by_a_retry(
    gateway: Deployment, sdk: Sdk, code: str, limit: dict[str, Any]
) -> None:
    secret = limited(gateway, sdk, limit)
    gateway.upstream.hold()
    async with sdk.make("async", gateway.server.url, secret) as client, trio.open_nursery() as nursery:
        nursery.start_soon(partial(sdk.ask, client, max_tokens=500))
        await trio.to_thread.run_sync(lambda: gateway.upstream.wait(in_flight=1))
        async with raises(sdk, code, 429, sdk.errors.RateLimitError):
            await sdk.ask(client, max_tokens=500)
        refused = figure(gateway, "llm_proxy_refusals_total", code=code)
        nursery.start_soon(partial(sdk.ask, client.with_options(max_retries=1), max_tokens=500))
        with trio.fail_after(5):
            while figure(gateway, "llm_proxy_refusals_total", code=code) == refused:
                await trio.sleep(0.01)
        gateway.upstream.release()
    assert gateway.upstream.counts()["answered"] == 2


@SDKS
async def test_overloaded_raises_after_retries(gateway: Deployment, sdk: Sdk) -> None:
    project = gateway.new_project(provider=sdk.provider)
    secret = gateway.new_secret(project["id"])
    gateway.upstream.hold()
    async with sdk.make("async", gateway.server.url, secret) as client, trio.open_nursery() as nursery:
        for _ in range(AT_ONCE):
            nursery.start_soon(sdk.ask, client)
        await trio.to_thread.run_sync(lambda: gateway.upstream.wait(in_flight=AT_ONCE))
        async with raises(sdk, "overloaded", 503, sdk.errors.InternalServerError):
            await sdk.ask(client)
        gateway.upstream.release()
    assert gateway.upstream.counts()["requests"] == AT_ONCE


@SDKS
async def test_a_short_overload_is_solved_by_retries(gateway: Deployment, sdk: Sdk) -> None:
    """The SDKs wait for as long as `Retry-After` says, one second, and the caller does not notice it."""
    project = gateway.new_project(provider=sdk.provider)
    secret = gateway.new_secret(project["id"])
    gateway.upstream.hold()
    async with sdk.make("async", gateway.server.url, secret, max_retries=1) as client, trio.open_nursery() as nursery:
        for _ in range(AT_ONCE):
            nursery.start_soon(sdk.ask, client)
        await trio.to_thread.run_sync(lambda: gateway.upstream.wait(in_flight=AT_ONCE))
        refused = figure(gateway, "llm_proxy_refusals_total", code="overloaded")
        nursery.start_soon(sdk.ask, client)
        with trio.fail_after(5):
            while figure(gateway, "llm_proxy_refusals_total", code="overloaded") == refused:
                await trio.sleep(0.01)
        gateway.upstream.release()
    assert gateway.upstream.counts()["answered"] == AT_ONCE + 1


@SDKS
@pytest.mark.parametrize("status", [400, 401, 403, 404, 409, 422, 429, 500, 503, 529])
async def test_the_providers_own_errors_pass_unchanged(gateway: Deployment, sdk: Sdk, status: int) -> None:
    secret = gateway.new_secret(gateway.new_project(provider=sdk.provider)["id"])
    directed = {"x-scripted-status": str(status)}
    met: list[Any] = []
    for url, key in ((gateway.server.url, secret), (gateway.upstream.url, UPSTREAM_KEY)):
        async with sdk.make("async", url, key, default_headers=directed) as client:
            with pytest.raises(sdk.errors.APIStatusError) as caught:
                await sdk.ask(client)
            met.append(caught.value)
    proxied, direct = met
    assert type(proxied) is type(direct)
    assert (proxied.status_code, proxied.body, str(proxied)) == (status, direct.body, str(direct))
    assert proxied.response.content == direct.response.content
    assert proxied.request_id == direct.request_id


@SDKS
async def test_a_rejected_api_key_is_the_providers_error(gateway: Deployment, sdk: Sdk) -> None:
    project = gateway.new_project(provider=sdk.provider, api_key="sk-another-key-than-the-upstream-knows")
    async with sdk.make("async", gateway.server.url, gateway.new_secret(project["id"])) as client:
        with pytest.raises(sdk.errors.AuthenticationError, match="Incorrect API key provided"):
            await sdk.ask(client)


@SDKS
async def test_a_stream_that_breaks_off_does_not_look_complete(gateway: Deployment, sdk: Sdk) -> None:
    secret = gateway.new_secret(gateway.new_project(provider=sdk.provider)["id"])
    async with sdk.make("async", gateway.server.url, secret) as client:
        stream = await sdk.ask(client, stream=True, extra_headers={"x-scripted-abort": "3"})
        with pytest.raises((sdk.errors.APIConnectionError, httpx2.RemoteProtocolError)):
            await items(stream)


@SDKS
async def test_a_draining_server_serves_new_requests(
    databases: Databases, upstream: Upstream, tmp_path: Path, sdk: Sdk
) -> None:
    with ExitStack() as stack:
        scratch = stack.enter_context(databases.migrated(Kind.SQLITE))
        gateway = stack.enter_context(open_gateway(scratch, upstream, tmp_path))
        secret = gateway.new_secret(gateway.new_project(provider=sdk.provider)["id"])
        upstream.hold()
        async with sdk.make("async", gateway.server.url, secret) as client, trio.open_nursery() as nursery:
            nursery.start_soon(sdk.ask, client)
            await trio.to_thread.run_sync(lambda: upstream.wait(in_flight=1))
            gateway.server.terminate()
            with trio.fail_after(5):
                while await trio.to_thread.run_sync(gateway.server.is_ready):
                    await trio.sleep(0.01)
            nursery.start_soon(sdk.ask, client)
            await trio.to_thread.run_sync(lambda: upstream.wait(in_flight=2))
            upstream.release()


async def test_database_unavailable_raises_after_retries(
    databases: Databases, upstream: Upstream, tmp_path: Path
) -> None:
    with ExitStack() as stack:
        scratch = stack.enter_context(databases.migrated(Kind.SQLITE))
        gateway = stack.enter_context(open_gateway(scratch, upstream, tmp_path))
        secrets = [gateway.new_secret(gateway.new_project(provider=sdk.provider)["id"]) for sdk in (OPENAI, ANTHROPIC)]
        # Somebody else holds the file: nothing can be written down, so nothing may be sent.
        with closing(sqlite3.connect(scratch.path, isolation_level=None)) as intruder:
            intruder.execute("BEGIN IMMEDIATE")
            for sdk, secret in zip((OPENAI, ANTHROPIC), secrets, strict=True):
                async with (
                    sdk.make("async", gateway.server.url, secret) as client,
                    raises(sdk, "database_unavailable", 503, sdk.errors.InternalServerError),
                ):
                    await sdk.ask(client)
            intruder.execute("ROLLBACK")
        assert upstream.counts()["requests"] == 0
        async with gpt("async", gateway.server.url, secrets[0], max_retries=10) as client:
            assert (await ask_gpt(client)).id


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
