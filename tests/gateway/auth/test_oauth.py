from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import trio

from llm_proxy.errors import CredentialNotExchanged
from llm_proxy.gateway.auth import oauth, token_sources
from llm_proxy.logging import log
from tests.gateway.auth.endpoint import (
    CANARIES,
    CLIENT_SECRET,
    DOCUMENTS,
    JWT,
    TOKEN,
    Endpoint,
    token_endpoint,
    token_file,
)
from tests.gateway.upstream.stage import Peer, stage

WITH_FILE = ["openai-wif", "anthropic-wif"]


async def exchanged(endpoint: Endpoint, auth: str, folder: Path, **changes: Any) -> str:
    document = DOCUMENTS[auth](endpoint.url, folder) | changes
    with trio.fail_after(20):
        return await token_sources()[auth].token(json.dumps(document))


async def failure(endpoint: Endpoint, auth: str, folder: Path, **changes: Any) -> str:
    """Why an exchange failed; neither the error nor the log has a secret."""
    log.configure(level="debug", path=folder / "log")
    with pytest.raises(CredentialNotExchanged) as caught:
        await exchanged(endpoint, auth, folder, **changes)
    seen = (folder / "log").read_text() + caught.value.message
    assert [canary for canary in CANARIES if canary in seen] == []
    assert str(folder) not in seen
    why = caught.value.message.removeprefix("The provider's credential could not be exchanged for a token: ")
    return why.removesuffix(". Nothing was sent to the provider.")


async def test_azure_ad_exchanges_a_client_secret(tmp_path: Path) -> None:
    async with token_endpoint() as endpoint:
        assert await exchanged(endpoint, "azure-ad", tmp_path) == TOKEN
        assert endpoint.form() == {
            "client_id": "app-1",
            "scope": "https://cognitiveservices.azure.com/.default",
            "grant_type": "client_credentials",
            "client_secret": CLIENT_SECRET,
        }
        assert endpoint.asked[0].target == b"/contoso/oauth2/v2.0/token"


async def test_azure_ad_exchanges_a_federated_token(tmp_path: Path) -> None:
    async with token_endpoint() as endpoint:
        document = DOCUMENTS["azure-ad"](endpoint.url, tmp_path)
        del document["client_secret"]
        document |= {"federated_token_file": str(token_file(tmp_path)), "scope": "https://ai.azure.com/.default"}
        assert await token_sources()["azure-ad"].token(json.dumps(document)) == TOKEN
        assert endpoint.form() == {
            "client_id": "app-1",
            "scope": "https://ai.azure.com/.default",
            "grant_type": "client_credentials",
            "client_assertion_type": "urn:ietf:params:oauth:client-assertion-type:jwt-bearer",
            "client_assertion": JWT,
        }


@pytest.mark.parametrize("subject", ["jwt", "id_token"])
async def test_openai_exchanges_the_token_of_a_file(tmp_path: Path, subject: str) -> None:
    async with token_endpoint() as endpoint:
        assert await exchanged(endpoint, "openai-wif", tmp_path, subject_token_type=subject) == TOKEN
        assert endpoint.json() == {
            "grant_type": "urn:ietf:params:oauth:grant-type:token-exchange",
            "subject_token_type": f"urn:ietf:params:oauth:token-type:{subject}",
            "subject_token": JWT,
            "identity_provider_id": "idp-1",
            "service_account_id": "sa-1",
        }


async def test_anthropic_exchanges_the_token_of_a_file(tmp_path: Path) -> None:
    async with token_endpoint() as endpoint:
        assert await exchanged(endpoint, "anthropic-wif", tmp_path, workspace_id="default") == TOKEN
        assert endpoint.json() == {
            "grant_type": "urn:ietf:params:oauth:grant-type:jwt-bearer",
            "assertion": JWT,
            "federation_rule_id": "fdrl_1",
            "organization_id": "00000000-0000-4000-8000-000000000000",
            "service_account_id": "svac_1",
            "workspace_id": "default",
        }
        (betas,) = endpoint.asked[0].values(b"anthropic-beta")
        assert betas == b"oauth-2025-04-20,oidc-federation-2026-04-01"


@pytest.mark.parametrize("auth", WITH_FILE)
async def test_the_token_file_is_read_again_at_each_exchange(tmp_path: Path, auth: str) -> None:
    async with token_endpoint() as endpoint:
        endpoint.body["expires_in"] = 0
        source = token_sources()[auth]
        secret = json.dumps(DOCUMENTS[auth](endpoint.url, tmp_path))
        await source.token(secret)
        token_file(tmp_path, "bmV3.bmV3.bmV3")
        await source.token(secret)
        sent = [json.loads(asked.body) for asked in endpoint.asked]
        assert [body.get("subject_token") or body["assertion"] for body in sent] == [JWT, "bmV3.bmV3.bmV3"]


async def test_a_lifetime_in_a_string_is_read(tmp_path: Path) -> None:
    async with token_endpoint() as endpoint:
        endpoint.body["expires_in"] = "3599"
        assert await exchanged(endpoint, "azure-ad", tmp_path) == TOKEN


@pytest.mark.parametrize(
    ("auth", "status", "body", "why"),
    [
        (
            "azure-ad",
            401,
            {
                "error": "invalid_client",
                "error_description": f"AADSTS7000215: Invalid client secret provided: {CLIENT_SECRET}",
                "error_codes": [7000215],
            },
            "the token endpoint answered 401 (invalid_client, AADSTS7000215)",
        ),
        (
            "openai-wif",
            400,
            {"error": "invalid_grant", "error_description": f"bad token {JWT}"},
            "the token endpoint answered 400 (invalid_grant)",
        ),
        (
            "anthropic-wif",
            401,
            {"type": "error", "error": {"type": "authentication_error", "message": f"bad assertion {JWT}"}},
            "the token endpoint answered 401 (authentication_error)",
        ),
        ("openai-wif", 400, {"error": JWT + " "}, "the token endpoint answered 400"),
        ("openai-wif", 503, b"<html>busy</html>", "the token endpoint answered 503"),
        ("openai-wif", 307, {}, "the token endpoint answered 307"),
        (
            "openai-wif",
            200,
            {"access_token": TOKEN},
            "the answer of the token endpoint has no valid access_token and expires_in",
        ),
        (
            "anthropic-wif",
            200,
            [JWT],
            "the answer of the token endpoint has no valid access_token and expires_in",
        ),
        *(
            (
                "azure-ad",
                200,
                {"access_token": token, "expires_in": 3600},
                "the answer of the token endpoint has no valid access_token and expires_in",
            )
            for token in ("", "a\r\nX-Evil: 1", "a\n", "tok\u00e9n", "a b", "a" * 16_385)
        ),
    ],
)
async def test_a_refused_exchange_says_why_without_secrets(
    tmp_path: Path, auth: str, status: int, body: Any, why: str
) -> None:
    async with token_endpoint() as endpoint:
        endpoint.status, endpoint.body = status, body
        assert await failure(endpoint, auth, tmp_path) == why


async def test_a_token_endpoint_that_nobody_serves_is_unreachable(tmp_path: Path) -> None:
    why = await failure(Endpoint("http://127.0.0.1:9"), "azure-ad", tmp_path)
    assert why == "the token endpoint could not be reached (ConnectError)"


async def test_a_silent_token_endpoint_fails_in_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(oauth, "TIMEOUT", 0.1)

    async def silence(peer: Peer) -> None:
        await trio.sleep_forever()

    async with stage(silence) as silent:
        why = await failure(Endpoint(f"http://{silent.origin}"), "azure-ad", tmp_path)
    assert why == "the token endpoint did not answer within 0 s"


@pytest.mark.parametrize("auth", WITH_FILE)
@pytest.mark.parametrize(
    ("prepare", "why"),
    [
        (lambda path: path.unlink(), "the token file cannot be read: No such file or directory"),
        (lambda path: path.write_text("root:x:0:0"), "the token file does not contain a JSON Web Token"),
        (lambda path: path.write_text(""), "the token file does not contain a JSON Web Token"),
        (lambda path: path.write_text("é.é.é"), "the token file does not contain a JSON Web Token"),
        (lambda path: path.write_text(f"{'a' * 20000}.a.a"), "the token file does not contain a JSON Web Token"),
    ],
    ids=["missing", "other", "empty", "not-ascii", "long"],
)
async def test_nothing_but_a_jwt_is_sent_from_a_token_file(
    tmp_path: Path, auth: str, prepare: Callable[[Path], Any], why: str
) -> None:
    async with token_endpoint() as endpoint:
        other = tmp_path / "other"
        other.write_text(JWT)
        prepare(other)
        assert await failure(endpoint, auth, tmp_path, token_file=str(other)) == why
        assert endpoint.asked == []


async def test_a_document_that_is_not_valid_fails_with_its_mistakes(tmp_path: Path) -> None:
    why = await failure(Endpoint("http://example.com"), "azure-ad", tmp_path)
    assert why.startswith("its document is not valid: 'authority' must be an https URL")
