"""The upstream never sees a token, the client never sees a key, and everything else is forwarded unchanged.

The server logs at its most talkative here, and the last test searches what all the others made it write.
"""

from __future__ import annotations

import base64
import hashlib
import json
import random
from pathlib import Path
from typing import Any

import pytest
from attrs import frozen

from benchmarks.processes import Upstream
from tests.harness import client
from tests.harness.deployment import UPSTREAM_KEY, Deployment, chat_body
from tests.harness.server import ENCRYPTION_KEY, MANAGEMENT_TOKEN

#: What providers say about themselves or the account behind the key, and what belongs to one connection.
NOT_PASSED_ON = {
    "set-cookie",
    "server",
    "alt-svc",
    "openai-organization",
    "openai-project",
    "anthropic-organization-id",
    "anthropic-workspace-id",
}
OURS = {"x-llm-proxy-request-id", "x-llm-proxy-overhead-ms"}
PLAIN = "plain"
STREAMED = "streamed"
SHAPES = pytest.mark.parametrize("shape", [PLAIN, STREAMED])


@pytest.fixture(scope="module")
def gateway_settings() -> dict[str, str]:
    return {"LOG_LEVEL": "debug"}


@frozen
class Api:
    """One of the two APIs: where a chat goes, and how the upstream wants its key."""

    provider: str
    path: str
    credential: tuple[str, str]

    def body(self, shape: str) -> bytes:
        """A small chat."""
        body = json.loads(chat_body(stream=shape == STREAMED))
        if self.provider == "anthropic":
            body = {"model": "claude", "max_tokens": 50, "messages": body["messages"], "stream": shape == STREAMED}
        return json.dumps(body).encode()


OPENAI = Api("openai", "/v1/chat/completions", ("authorization", f"Bearer {UPSTREAM_KEY}"))
ANTHROPIC = Api("anthropic", "/v1/messages", ("x-api-key", UPSTREAM_KEY))
APIS = pytest.mark.parametrize("api", [OPENAI, ANTHROPIC], ids=["openai", "anthropic"])


@pytest.fixture(scope="module")
def told() -> list[str]:
    """All tokens of this module's tests, for the last of them."""
    return []


def new_token(gateway: Deployment, told: list[str], api: Api) -> str:
    told.append(gateway.new_secret(gateway.project(api.provider)["id"]))
    return told[-1]


@pytest.fixture
def token(gateway: Deployment, told: list[str]) -> str:
    return new_token(gateway, told, OPENAI)


async def raw_exchange(url: str, target: str, headers: client.Headers, body: bytes) -> bytes:
    """A request, and every byte that comes back."""
    async with client.connect(url) as connection:
        await connection.request("POST", target, [*headers, ("Connection", "close")], body)
        return await connection.receive_all()


def seen_by(upstream: Upstream) -> tuple[dict[str, Any], list[tuple[str, str]]]:
    """The one request that the upstream got, and its headers."""
    (entry,) = upstream.requests()
    return entry, [(name, value) for name, value in entry["headers"]]


# Towards the upstream.


@APIS
@SHAPES
@pytest.mark.parametrize("place", ["authorization", "x-api-key", "api-key", "x-goog-api-key", "everywhere"])
async def test_the_upstream_never_sees_the_token(
    gateway: Deployment, told: list[str], api: Api, shape: str, place: str
) -> None:
    token = new_token(gateway, told, api)
    places = {"authorization": f"Bearer {token}", "x-api-key": token, "api-key": token, "x-goog-api-key": token}
    headers = list(places.items()) if place == "everywhere" else [(place, places[place])]
    # Where else careless clients and gateways put what they hold.
    headers += [("cookie", f"token={token}"), ("proxy-authorization", f"Bearer {token}")]
    body = api.body(shape)
    answer = await raw_exchange(gateway.server.url, f"{api.path}?beta=true", headers, body)
    assert answer.startswith(b"HTTP/1.1 200 ")
    entry, seen = seen_by(gateway.upstream)
    assert token not in json.dumps(entry)
    assert (entry["body_length"], entry["body_sha256"]) == (len(body), hashlib.sha256(body).hexdigest())
    credentials = [field for field in seen if field[0] in places]
    assert credentials == [api.credential]
    assert not {"cookie", "proxy-authorization"} & {name for name, _ in seen}


async def test_other_credentials_of_the_client_are_stripped(gateway: Deployment, token: str) -> None:
    headers = [("Authorization", "Basic dXNlcjpwYXNzd29yZA=="), ("X-Api-Key", token), ("Cookie", "session=1")]
    await raw_exchange(gateway.server.url, OPENAI.path, headers, chat_body())
    _, seen = seen_by(gateway.upstream)
    assert "dXNlcjpwYXNzd29yZA==" not in json.dumps(seen)


async def test_organisation_headers_of_the_client_are_stripped(gateway: Deployment, token: str) -> None:
    chosen = ["OpenAI-Organization", "OpenAI-Project", "anthropic-organization-id", "anthropic-workspace-id"]
    headers = [("Authorization", f"Bearer {token}"), *((name, "another") for name in chosen)]
    await raw_exchange(gateway.server.url, OPENAI.path, headers, chat_body())
    _, seen = seen_by(gateway.upstream)
    assert not {name.lower() for name in chosen} & {name for name, _ in seen}


async def test_the_client_address_is_not_sent_upstream(gateway: Deployment, token: str) -> None:
    names = ["Forwarded", "X-Forwarded-For", "X-Forwarded-Host", "X-Real-IP", "Via", "CF-Connecting-IP"]
    headers = [("Authorization", f"Bearer {token}"), *((name, "192.0.2.77") for name in names)]
    await raw_exchange(gateway.server.url, OPENAI.path, headers, chat_body())
    entry, seen = seen_by(gateway.upstream)
    assert "192.0.2.77" not in json.dumps(entry)
    assert dict(seen)["host"] == f"{gateway.upstream.host}:{gateway.upstream.port}"


async def test_hop_by_hop_request_headers_are_stripped(gateway: Deployment, token: str) -> None:
    headers = [
        ("Authorization", f"Bearer {token}"),
        ("X-Private", "1"),
        ("X-Public", "1"),
        # Naming the credential must not take away the key, which is put in afterwards.
        ("Connection", "X-Private, Authorization, keep-alive"),
        ("Keep-Alive", "timeout=5"),
        ("Proxy-Connection", "keep-alive"),
        ("TE", "trailers"),
        ("Trailer", "X-Checksum"),
    ]
    async with client.connect(gateway.server.url) as connection:
        await connection.request("POST", OPENAI.path, headers, chat_body())
        assert (await connection.response("POST")).status == 200
    _, seen = seen_by(gateway.upstream)
    names = {name for name, _ in seen}
    assert not names & {"x-private", "keep-alive", "proxy-connection", "te", "trailer", "connection"}
    assert "x-public" in names
    assert OPENAI.credential in seen


@pytest.mark.parametrize("framing", ["length", "chunked"])
async def test_all_other_headers_are_forwarded_byte_for_byte_and_in_order(
    gateway: Deployment, token: str, framing: str
) -> None:
    body = random.Random(3).randbytes(300_000)
    odd = [
        ("X-B", "2"),
        ("x-a", "1"),
        ("X-B", "1"),
        ("X-Empty", ""),
        ("X-Inside", "a \t  b"),
        ("X-Latin", "caf\xe9 \x80\xff"),
        ("X-Quoted", '"a, b";c=\\"d\\"'),
        ("Content-Type", "application/x-anything; a=1"),
        ("User-Agent", "odd/1.0 (+x)"),
        ("Accept-Encoding", "gzip, br;q=0"),
        ("If-None-Match", 'W/"x"'),
        ("x-scripted-echo", "1"),
        ("X-Last", "."),
    ]
    target = "/v1/models/a%20b?x=%2F..%2f&x=1&&y=a+b%00c&empty&z=%ff;q"
    payload = body
    framed: list[tuple[str, str]] = []
    if framing == "chunked":
        framed = [("Transfer-Encoding", "chunked")]
        payload = b"%x\r\n%b\r\n1\r\n%b\r\n0\r\n\r\n" % (len(body) - 1, body[:-1], body[-1:])
    async with client.connect(gateway.server.url) as connection:
        headers = [("Authorization", f"Bearer {token}"), *odd, *framed]
        await connection.request("POST", target, headers, payload)
        answer = await connection.response("POST")
    entry, seen = seen_by(gateway.upstream)
    assert (entry["method"], entry["target"]) == ("POST", target)
    ours = {"host", "content-length", "transfer-encoding", "authorization"}
    assert [field for field in seen if field[0] not in ours] == [(name.lower(), value) for name, value in odd]
    assert (entry["body_length"], entry["body_sha256"]) == (len(body), hashlib.sha256(body).hexdigest())
    # And back.
    assert answer.body == body
    assert answer.header("content-type") == "application/x-anything; a=1"


# Towards the client.


def assert_no_key(answer: bytes) -> None:
    assert UPSTREAM_KEY.encode() not in answer
    assert base64.b64encode(UPSTREAM_KEY.encode())[:-4] not in answer
    assert UPSTREAM_KEY[:16].encode() not in answer


@APIS
@SHAPES
async def test_the_client_never_sees_the_key(gateway: Deployment, told: list[str], api: Api, shape: str) -> None:
    token = new_token(gateway, told, api)
    for directions in (
        [],
        [("x-scripted-status", "401")],
        [("x-scripted-status", "500")],
        [("x-scripted-abort", "0")],
        [("x-scripted-abort", "2")],
        [("x-scripted-no-such-direction", "1")],
        [("x-upstream-fault", "garbage")],
    ):
        headers = [("Authorization", f"Bearer {token}"), *directions]
        answer = await raw_exchange(gateway.server.url, api.path, headers, api.body(shape))
        assert answer
        assert_no_key(answer)


async def test_no_error_contains_a_secret(gateway: Deployment, told: list[str]) -> None:
    project = gateway.new_project(provider="openai-absent")
    token = gateway.new_secret(project["id"])
    spent = gateway.new_token(project["id"], max_requests=1)
    told += [token, spent["token"]]
    gateway.server.manage("DELETE", f"/tokens/{spent['id']}")
    for target, secret in (
        (OPENAI.path, token),
        (OPENAI.path, spent["token"]),
        (OPENAI.path, token[:-1] + "_"),
        (OPENAI.path, token[:-1]),
        ("/v1/models/%2e%2e", token),
        ("/openai/v1/models", token),
    ):
        answer = await raw_exchange(gateway.server.url, target, [("Authorization", f"Bearer {secret}")], chat_body())
        assert not answer.startswith(b"HTTP/1.1 200")
        assert_no_key(answer)
        assert secret.encode() not in answer


@APIS
@SHAPES
async def test_the_server_header_of_the_provider_is_stripped(
    gateway: Deployment, told: list[str], api: Api, shape: str
) -> None:
    token = new_token(gateway, told, api)
    received: list[list[tuple[str, str]]] = []
    for url, secret in ((gateway.server.url, token), (gateway.upstream.url, UPSTREAM_KEY)):
        name, value = api.credential
        credential = (name, value.replace(UPSTREAM_KEY, secret))
        answer = await client.exchange(url, "POST", api.path, [credential], api.body(shape))
        assert (answer.status, answer.complete) == (200, True)
        received.append(list(answer.headers))
    proxied, direct = received
    assert {"server", "set-cookie", "alt-svc"} < {name for name, _ in direct} & NOT_PASSED_ON
    added = {*OURS, "x-accel-buffering", "date"} | ({"x-request-id"} if api is ANTHROPIC else set())
    framing = {"content-length", "transfer-encoding"}
    kept = [field for field in proxied if field[0] not in added | framing]
    assert kept == [field for field in direct if field[0] not in NOT_PASSED_ON | framing]
    assert {name for name, _ in proxied} >= OURS
    assert dict(proxied).get("x-accel-buffering") == ("no" if shape == STREAMED else None)


# Where people look.


async def test_no_secret_is_in_the_log_or_the_database(gateway: Deployment, told: list[str]) -> None:
    for api in (OPENAI, ANTHROPIC):
        token = new_token(gateway, told, api)
        for target, directions in (
            (api.path, []),
            (f"{api.path}?api_key={token}", []),
            (f"/v1/nowhere/{token}", []),
            (f"/v1/models/{token}", []),
            (f"/v1/models/%73%6B%2d{token[3:]}", []),
            (f"/v1/models/%2e%2e/{token}", []),
            (api.path, [("x-upstream-fault", "reset-early")]),
            (api.path, [("x-scripted-delay", token)]),
        ):
            headers = [("Authorization", f"Bearer {token}"), *directions]
            await raw_exchange(gateway.server.url, target, headers, api.body(PLAIN))
    manage = gateway.server.manage
    database = Path(gateway.server.settings["DATABASE_PATH"])
    places = {
        "log": gateway.server.output,
        "metrics": str(gateway.server.call("GET", "/metrics").content),
        "list of projects": json.dumps(manage("GET", "/projects?limit=500")),
        "list of tokens": json.dumps(manage("GET", "/tokens?limit=500")),
        "ledger": json.dumps(manage("GET", "/requests?limit=500")),
        "database": "".join(path.read_bytes().decode("latin-1") for path in database.parent.iterdir()),
    }
    assert '"outcome":"refused"' in places["log"]
    assert "/v1/nowhere/" in places["log"]
    assert places["ledger"].count("/v1/models/[redacted]") == 2
    for place, text in places.items():
        for secret in (*told, UPSTREAM_KEY, MANAGEMENT_TOKEN, ENCRYPTION_KEY):
            # The prefix of a token may be percent-encoded.
            assert secret.removeprefix("sk-") not in text, f"a secret is in the {place}"
