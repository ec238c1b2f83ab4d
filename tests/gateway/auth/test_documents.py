from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from llm_proxy.gateway.auth import documents
from tests.gateway.auth.endpoint import DOCUMENTS

URL = "http://127.0.0.1:9"
EXTERNAL = {
    "type": "external_account",
    "audience": "//iam.googleapis.com/projects/1/locations/global/workloadIdentityPools/pool/providers/cluster",
    "subject_token_type": "urn:ietf:params:oauth:token-type:jwt",
    "token_url": "https://sts.googleapis.com/v1/token",
    "service_account_impersonation_url": (
        "https://iamcredentials.googleapis.com/v1/projects/-/serviceAccounts/proxy@p.iam.gserviceaccount.com"
        ":generateAccessToken"
    ),
    "service_account_impersonation": {"token_lifetime_seconds": 1800},
    "credential_source": {"file": "/var/run/token", "format": {"type": "json", "subject_token_field_name": "jwt"}},
    "universe_domain": "googleapis.com",
}
FROM_AWS = {
    "environment_id": "aws1",
    "region_url": "http://169.254.169.254/latest/meta-data/placement/availability-zone",
    "url": "http://169.254.169.254/latest/meta-data/iam/security-credentials",
    "regional_cred_verification_url": "https://sts.{region}.amazonaws.com?Action=GetCallerIdentity&Version=2011-06-15",
}
FROM_AZURE = {
    "url": "http://169.254.169.254/metadata/identity/oauth2/token?api-version=2018-02-01",
    "headers": {"Metadata": "True"},
    "format": {"type": "json", "subject_token_field_name": "access_token"},
}


def checked(auth: str, document: Any) -> list[str]:
    return documents.check(auth, json.dumps(document))


@pytest.mark.parametrize("auth", DOCUMENTS)
def test_a_document_of_each_kind_is_valid(auth: str, tmp_path: Path) -> None:
    assert checked(auth, DOCUMENTS[auth](URL, tmp_path)) == []


@pytest.mark.parametrize(
    ("auth", "document"),
    [
        ("azure-ad", {"tenant_id": "t", "client_id": "c", "federated_token_file": "/token"}),
        ("sigv4", {"region": "us-gov-west-1"}),
        ("sigv4", {"region": "eu-central-1", "access_key_id": "A", "secret_access_key": "S", "session_token": "T"}),
        ("sigv4", {"region": "us-east-1", "service": "bedrock-mantle"}),
        ("google", EXTERNAL),
        ("google", EXTERNAL | {"credential_source": FROM_AWS}),
        ("google", EXTERNAL | {"credential_source": FROM_AZURE}),
    ],
)
def test_documented_variants_are_valid(auth: str, document: dict[str, Any]) -> None:
    assert checked(auth, document) == []


@pytest.mark.parametrize("auth", ["bearer", "x-api-key", "api-key", "x-goog-api-key", "query"])
def test_an_api_key_is_no_document(auth: str) -> None:
    assert documents.check(auth, "sk-key") == []
    (mistake,) = documents.check(auth, '{"client_secret": "canary"}')
    assert mistake == (
        "the provider needs an API key, which must be 1 to 4096 printable ASCII characters without spaces"
    )


@pytest.mark.parametrize("auth", [*DOCUMENTS, "sigv4"])
@pytest.mark.parametrize("secret", ["sk-canary", "[]", '"canary"', "{", "", "[" * 1500])
def test_what_is_not_a_json_object_is_refused(auth: str, secret: str) -> None:
    (mistake,) = documents.check(auth, secret)
    assert mistake == f"the secret of a credential with auth {auth} must be a JSON object"


def test_all_mistakes_are_reported_at_once_without_values() -> None:
    document = {"tenant_id": "canary a", "client_secret": 5, "scop": "canary b", "authority": "http://canary.example"}
    assert checked("azure-ad", document) == [
        "'tenant_id' must be 1 to 255 letters, digits and . _ : / @ -",
        "'client_id' is missing",
        "'client_secret' must be 1 to 4096 printable ASCII characters without spaces",
        "'authority' must be an https URL without user (http only for this machine)",
        f"'scop' is not a field of this document (fields: {', '.join(documents.AzureAd.__struct_fields__)})",
    ]


@pytest.mark.parametrize(
    ("auth", "change", "mistake"),
    [
        ("azure-ad", {"federated_token_file": "/t"}, "exactly one of 'client_secret' and 'federated_token_file'"),
        ("azure-ad", {"authority": "http://login.example"}, "'authority' must be an https URL"),
        ("azure-ad", {"authority": "https://a@login.example"}, "'authority' must be an https URL"),
        ("openai-wif", {"token_url": "http://auth.example/token"}, "'token_url' must be an https URL"),
        ("openai-wif", {"token_url": "file:///etc/passwd"}, "'token_url' must be an https URL"),
        ("openai-wif", {"token_file": "token"}, "'token_file' must be the absolute path of a file"),
        ("openai-wif", {"subject_token_type": "saml"}, "'subject_token_type' must be one of jwt, id_token"),
        ("anthropic-wif", {"token_url": "http://127.0.0.1.example.com/"}, "'token_url' must be an https URL"),
        ("google", {"type": "authorized_user"}, "'type' must be one of service_account, external_account"),
        ("google", {"token_uri": "https://googleapis.com.example/token"}, "'token_uri' must be an https URL of google"),
        ("google", {"private_key": "secret"}, "'private_key' must be a private key in PEM form"),
    ],
)
def test_a_wrong_value_is_refused(auth: str, change: dict[str, Any], mistake: str, tmp_path: Path) -> None:
    (found,) = checked(auth, DOCUMENTS[auth](URL, tmp_path) | change)
    assert mistake in found


@pytest.mark.parametrize(
    ("document", "mistake"),
    [
        ({"access_key_id": "A"}, "'access_key_id' and 'secret_access_key' are needed together"),
        ({"session_token": "T"}, "'session_token' needs 'access_key_id' and 'secret_access_key'"),
        ({"region": "moon"}, "'region' must be a region such as us-east-1"),
        ({"service": "s3"}, "'service' must be one of bedrock, bedrock-mantle"),
    ],
)
def test_wrong_aws_values_are_refused(document: dict[str, Any], mistake: str) -> None:
    (found,) = checked("sigv4", {"region": "us-east-1"} | document)
    assert mistake in found


@pytest.mark.parametrize(
    ("change", "mistake"),
    [
        ({"credential_source": {"executable": {"command": "id"}}}, "'credential_source.executable' is not a field"),
        ({"credential_source": {"url": "http://internal.example/"}}, "'credential_source.url' must be an https URL"),
        ({"credential_source": {}}, "'credential_source' needs exactly one of"),
        ({"credential_source": "/token"}, "'credential_source' must be a JSON object"),
        ({"credential_source": FROM_AZURE | {"headers": {"a": 1}}}, "'credential_source.headers' must be"),
        ({"service_account_impersonation": {"token_lifetime_seconds": 1}}, "token_lifetime_seconds' must be a whole"),
        ({"service_account_impersonation_url": "https://example.com"}, "must be an https URL of sts.googleapis.com"),
        ({"token_url": "https://storage.googleapis.com/upload?name=x"}, "must be an https URL of sts.googleapis.com"),
        ({"token_url": "http://sts.googleapis.com/v1/token"}, "'token_url' must be an https URL of sts.googleapis.com"),
    ],
)
def test_a_google_configuration_that_reaches_elsewhere_is_refused(change: dict[str, Any], mistake: str) -> None:
    found = checked("google", EXTERNAL | change)
    assert [clause for clause in found if mistake in clause] == found
    assert found
