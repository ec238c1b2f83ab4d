from __future__ import annotations

import hashlib
import hmac
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from llm_proxy.errors import CredentialNotExchanged
from llm_proxy.gateway.auth import aws, token_sources
from llm_proxy.gateway.upstream.connector import Origin
from tests.gateway.auth.endpoint import token_endpoint

KEYS = {"access_key_id": "AKIDEXAMPLE", "secret_access_key": "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY"}
DOCUMENT = {"region": "us-east-1", **KEYS}
ORIGIN = Origin("https", "bedrock-runtime.us-east-1.amazonaws.com", 443)
PATH = b"/model/anthropic.claude-sonnet-4-v1%3A0/invoke"
EMPTY = hashlib.sha256(b"").hexdigest()


def expected_signature(
    method: str, path: str, query: str, headers: list[tuple[str, str]], body_sha256: str, scope: str
) -> str:
    """The signature as AWS documents it ("Create a signed AWS API request"), for `headers` in order of their names."""
    canonical = "".join(f"{name}:{value.strip()}\n" for name, value in headers)
    names = ";".join(name for name, _ in headers)
    request = "\n".join([method, quote(path, safe="/~-_."), query, canonical, names, body_sha256])
    date = dict(headers)["x-amz-date"]
    text = "\n".join(["AWS4-HMAC-SHA256", date, scope, hashlib.sha256(request.encode()).hexdigest()])
    key = f"AWS4{KEYS['secret_access_key']}".encode()
    for part in (*scope.split("/"), text):
        key = hmac.new(key, part.encode(), hashlib.sha256).digest()
    return key.hex()


def test_the_expected_signature_is_that_of_awss_test_suite() -> None:
    headers = [("host", "example.amazonaws.com"), ("x-amz-date", "20150830T123600Z")]
    found = expected_signature("GET", "/", "", headers, EMPTY, "20150830/us-east-1/service/aws4_request")
    assert found == "5fa00fa31553b73ebf1942676e86291e8372ff2a2260956d9b8aae1d763fbf31"


def signed(document: dict[str, Any], headers: list[tuple[bytes, bytes]], **other: Any) -> dict[bytes, bytes]:
    call: dict[str, Any] = {"method": "POST", "origin": ORIGIN, "target": PATH, "body_sha256": EMPTY} | other
    return dict(aws.sign(json.dumps(document), headers=headers, **call))


@pytest.mark.parametrize("port", [443, 8443])
@pytest.mark.parametrize("token", ["", "canary-session-token"])
@pytest.mark.parametrize("query", ["", "a=1&b=2"])
@pytest.mark.parametrize("service", ["bedrock", "bedrock-mantle"])
def test_the_signature_is_right_for_what_is_sent(port: int, token: str, query: str, service: str) -> None:
    origin = Origin("https", ORIGIN.host, port)
    body = hashlib.sha256(b'{"a": 1}').hexdigest()
    sent = signed(
        DOCUMENT | {"session_token": token, "service": service},
        [(b"user-agent", b"x"), (b"content-type", b"application/json"), (b"x-amzn-bedrock-trace", b"ENABLED")],
        target=PATH + (f"?{query}".encode() if query else b""),
        body_sha256=body,
        origin=origin,
    )
    assert sent[b"x-amz-content-sha256"].decode() == body
    assert sent.get(b"x-amz-security-token", b"").decode() == token
    signed_names = ["content-type", "host", "x-amz-content-sha256", "x-amz-date", "x-amz-security-token"]
    names = [name for name in [*signed_names, "x-amzn-bedrock-trace"] if token or name != "x-amz-security-token"]
    values = {name.decode(): value.decode() for name, value in sent.items()} | {"host": origin.authority.decode()}
    scope = f"{values['x-amz-date'][:8]}/us-east-1/{service}/aws4_request"
    signature = expected_signature("POST", PATH.decode(), query, [(name, values[name]) for name in names], body, scope)
    assert values["authorization"] == (
        f"AWS4-HMAC-SHA256 Credential=AKIDEXAMPLE/{scope}, SignedHeaders={';'.join(names)}, Signature={signature}"
    )


def test_the_signature_of_a_client_is_removed() -> None:
    theirs = [
        (b"x-amz-date", b"20000101T000000Z"),
        (b"x-amz-security-token", b"theirs"),
        (b"x-amz-content-sha256", b"theirs"),
    ]
    headers = aws.sign(json.dumps(DOCUMENT), "POST", ORIGIN, PATH, theirs, EMPTY)
    assert [name for name, _ in headers].count(b"x-amz-date") == 1
    assert dict(headers)[b"x-amz-content-sha256"] == EMPTY.encode()
    assert b"x-amz-security-token" not in dict(headers)


@pytest.fixture(autouse=True)
def _no_credentials(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """A machine without AWS credentials, and a chain that is read again."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    aws._chain.cache_clear()
    yield
    aws._chain.cache_clear()


async def resolved(document: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(await token_sources()["sigv4"].token(json.dumps(document)))
    return found


async def test_keys_in_the_document_are_used_as_they_are() -> None:
    assert await resolved(DOCUMENT) == DOCUMENT


async def test_keys_of_the_environment_are_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKENV")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret-env")
    monkeypatch.setenv("AWS_SESSION_TOKEN", "session-env")
    found = await resolved({"region": "us-east-1"})
    assert (found["access_key_id"], found["secret_access_key"], found["session_token"]) == (
        "AKENV",
        "secret-env",
        "session-env",
    )


async def test_keys_of_a_container_are_used(monkeypatch: pytest.MonkeyPatch) -> None:
    async with token_endpoint() as endpoint:
        endpoint.body = {
            "AccessKeyId": "AKCONTAINER",
            "SecretAccessKey": "secret-container",
            "Token": "session-container",
            "Expiration": "2099-01-01T00:00:00Z",
        }
        monkeypatch.setenv("AWS_CONTAINER_CREDENTIALS_FULL_URI", f"{endpoint.url}/credentials")
        found = await resolved({"region": "us-east-1"})
    assert (found["access_key_id"], found["session_token"]) == ("AKCONTAINER", "session-container")


async def test_a_machine_without_credentials_says_where_they_were_searched() -> None:
    with pytest.raises(CredentialNotExchanged, match="there are no AWS credentials in the environment"):
        await resolved({"region": "us-east-1"})


async def test_credentials_that_cannot_be_read_are_reported(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "token").write_text("canary")
    monkeypatch.setenv("AWS_ROLE_ARN", "arn:aws:iam::123456789012:role/proxy")
    monkeypatch.setenv("AWS_WEB_IDENTITY_TOKEN_FILE", str(tmp_path / "token"))
    monkeypatch.setenv("AWS_ENDPOINT_URL_STS", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    with pytest.raises(CredentialNotExchanged) as caught:
        await resolved({"region": "us-east-1"})
    assert "the AWS credentials of this machine cannot be read (EndpointConnectionError)" in caught.value.message
    assert "canary" not in caught.value.message
