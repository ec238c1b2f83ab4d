from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from google.auth import jwt

from llm_proxy.gateway.auth import token_sources
from tests.gateway.auth.endpoint import JWT, TOKEN, Endpoint, pem, private_key, token_endpoint, token_file
from tests.gateway.auth.test_oauth import exchanged, failure


def external(url: str, source: dict[str, Any]) -> dict[str, Any]:
    return {
        "type": "external_account",
        "audience": "//iam.googleapis.com/projects/1/locations/global/workloadIdentityPools/pool/providers/cluster",
        "subject_token_type": "urn:ietf:params:oauth:token-type:jwt",
        "token_url": f"{url}/v1/token",
        "credential_source": source,
    }


async def token_of(document: dict[str, Any]) -> str:
    return await token_sources()["google"].token(json.dumps(document))


async def test_a_service_account_signs_an_assertion_with_its_key(tmp_path: Path) -> None:
    key = private_key()
    async with token_endpoint() as endpoint:
        assert await exchanged(endpoint, "google", tmp_path, private_key=pem(key)) == TOKEN
        form = endpoint.form()
        public = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
        decode: Any = jwt.decode
        claims = decode(form["assertion"], certs=public)
    assert form["grant_type"] == "urn:ietf:params:oauth:grant-type:jwt-bearer"
    assert claims["iss"] == "proxy@project-1.iam.gserviceaccount.com"
    assert claims["scope"] == "https://www.googleapis.com/auth/cloud-platform"


async def test_an_external_account_exchanges_the_token_of_a_file(tmp_path: Path) -> None:
    async with token_endpoint() as endpoint:
        assert await token_of(external(endpoint.url, {"file": str(token_file(tmp_path))})) == TOKEN
        form = endpoint.form()
    assert form["grant_type"] == "urn:ietf:params:oauth:grant-type:token-exchange"
    assert form["subject_token"].strip() == JWT
    assert form["subject_token_type"] == "urn:ietf:params:oauth:token-type:jwt"
    assert form["scope"] == "https://www.googleapis.com/auth/cloud-platform"


async def test_an_external_account_exchanges_the_token_of_a_metadata_server() -> None:
    async with token_endpoint() as endpoint, token_endpoint() as metadata:
        metadata.body = {"jwt": JWT}
        source = {
            "url": f"{metadata.url}/identity",
            "headers": {"Metadata": "True"},
            "format": {"type": "json", "subject_token_field_name": "jwt"},
        }
        assert await token_of(external(endpoint.url, source)) == TOKEN
        assert endpoint.form()["subject_token"] == JWT
        assert metadata.asked[0].values(b"metadata") == [b"True"]


async def test_an_external_account_can_act_as_a_service_account(tmp_path: Path) -> None:
    async with token_endpoint() as endpoint, token_endpoint() as impersonation:
        impersonation.body = {"accessToken": "impersonated", "expireTime": "2099-01-01T00:00:00Z"}
        document = external(endpoint.url, {"file": str(token_file(tmp_path))})
        document["service_account_impersonation_url"] = f"{impersonation.url}/v1/x:generateAccessToken"
        assert await token_of(document) == "impersonated"
        assert impersonation.asked[0].values(b"authorization") == [f"Bearer {TOKEN}".encode()]


async def test_a_refused_assertion_says_why_without_secrets(tmp_path: Path) -> None:
    async with token_endpoint() as endpoint:
        endpoint.status = 400
        endpoint.body = {"error": "invalid_grant", "error_description": f"Invalid JWT Signature {TOKEN}"}
        assert await failure(endpoint, "google", tmp_path) == "the token endpoint answered 400 (invalid_grant)"


async def test_a_token_endpoint_that_nobody_serves_is_unreachable(tmp_path: Path) -> None:
    why = await failure(Endpoint("http://127.0.0.1:9"), "google", tmp_path)
    assert why == "the token endpoint could not be reached (ConnectError)"


@pytest.mark.parametrize("body", ["canary", "MIIC" * 10])
async def test_a_key_that_is_none_fails_without_being_shown(tmp_path: Path, body: str) -> None:
    key = f"-----BEGIN PRIVATE KEY-----\n{body}\n-----END PRIVATE KEY-----\n"
    async with token_endpoint() as endpoint:
        why = await failure(endpoint, "google", tmp_path, private_key=key)
    assert why.startswith("google-auth cannot use its document (")
    assert body not in why


async def test_a_missing_token_file_is_reported(tmp_path: Path) -> None:
    async with token_endpoint() as endpoint:
        document = external(endpoint.url, {"file": str(tmp_path / "absent")})
        with pytest.raises(Exception, match="the token file cannot be read: there is no such file"):
            await token_of(document)
        assert endpoint.asked == []
