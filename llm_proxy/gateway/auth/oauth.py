"""The token endpoints of Microsoft Entra ID, OpenAI and Anthropic, each in its documented form.

All answer as OAuth 2.0 (RFC 6749 sections 5.1 and 5.2) says. The functions block, and raise `ExchangeFailed`.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, Final
from urllib.parse import quote

import msgspec
from msgspec import Meta, Struct

from llm_proxy.gateway.auth import documents
from llm_proxy.gateway.auth.token_source import AccessToken, ExchangeFailed
from llm_proxy.net.tls import client_context

#: Seconds for each of connecting, sending and receiving.
TIMEOUT: Final = 10.0
#: Bytes of the longest token file that is sent; Anthropic accepts no longer ones.
_LONGEST_JWT: Final = 16 * 1024
#: Characters of the longest access token; providers accept no longer headers.
_LONGEST_TOKEN: Final = 16 * 1024
_JWT: Final = re.compile(r"[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]*")
#: Error codes are shown, descriptions are not: these may repeat what was sent.
_CODE: Final = re.compile(r"[A-Za-z][A-Za-z0-9_.-]{0,63}")


class _Answer(Struct):
    # Text that no header can carry would be kept for its lifetime, and fail every request.
    access_token: Annotated[str, Meta(pattern=rf"^[!-~]{{1,{_LONGEST_TOKEN}}}\Z")]
    expires_in: float


def azure_ad(secret: str) -> AccessToken:
    """The client credentials flow, with a secret or a federated token.

    https://learn.microsoft.com/en-us/entra/identity-platform/v2-oauth2-client-creds-grant-flow
    """
    document: documents.AzureAd = documents.read("azure-ad", secret)
    form = {"client_id": document.client_id, "scope": document.scope, "grant_type": "client_credentials"}
    if document.federated_token_file:
        form["client_assertion_type"] = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"
        form["client_assertion"] = _jwt(document.federated_token_file)
    else:
        form["client_secret"] = document.client_secret
    url = f"{document.authority.rstrip('/')}/{quote(document.tenant_id, safe='')}/oauth2/v2.0/token"
    return _exchange(url, data=form)


def openai(secret: str) -> AccessToken:
    """The token exchange of RFC 8693.

    https://developers.openai.com/api/reference/workload-identity-federation
    """
    document: documents.OpenAI = documents.read("openai-wif", secret)
    body = {
        "grant_type": "urn:ietf:params:oauth:grant-type:token-exchange",
        "subject_token_type": f"urn:ietf:params:oauth:token-type:{document.subject_token_type}",
        "subject_token": _jwt(document.token_file),
        "identity_provider_id": document.identity_provider_id,
        "service_account_id": document.service_account_id,
    }
    return _exchange(document.token_url, json=body)


def anthropic(secret: str) -> AccessToken:
    """The JWT bearer grant of RFC 7523.

    https://platform.claude.com/docs/en/manage-claude/wif-reference; Anthropic's SDKs send the header.
    """
    document: documents.Anthropic = documents.read("anthropic-wif", secret)
    body = {
        "grant_type": "urn:ietf:params:oauth:grant-type:jwt-bearer",
        "assertion": _jwt(document.token_file),
        "federation_rule_id": document.federation_rule_id,
        "organization_id": document.organization_id,
        "service_account_id": document.service_account_id,
        "workspace_id": document.workspace_id,
    }
    given = {name: value for name, value in body.items() if value}
    betas = "oauth-2025-04-20,oidc-federation-2026-04-01"
    return _exchange(document.token_url, json=given, headers={"anthropic-beta": betas})


def _jwt(path: str) -> str:
    """Read a token file. It is replaced before its token ends, so nothing of it is kept."""
    try:
        with Path(path).open(encoding="ascii") as file:
            token = file.read(_LONGEST_JWT + 1).strip()
    except OSError as error:
        raise ExchangeFailed(f"the token file cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        token = ""
    if len(token) > _LONGEST_JWT or not _JWT.fullmatch(token):
        raise ExchangeFailed("the token file does not contain a JSON Web Token")
    return token


def _exchange(url: str, **request: Any) -> AccessToken:
    import httpx

    try:
        with httpx.Client(verify=client_context(), timeout=TIMEOUT) as client:
            response = client.post(url, **request)
    except httpx.TimeoutException:
        raise ExchangeFailed(f"the token endpoint did not answer within {TIMEOUT:.0f} s") from None
    except httpx.HTTPError as error:
        raise ExchangeFailed(f"the token endpoint could not be reached ({type(error).__name__})") from None
    if response.status_code != 200:
        raise ExchangeFailed(refusal(response.status_code, response.content))
    try:
        answer = msgspec.json.decode(response.content, type=_Answer, strict=False)
    except msgspec.MsgspecError:
        raise ExchangeFailed("the answer of the token endpoint has no valid access_token and expires_in") from None
    return AccessToken(answer.access_token, answer.expires_in)


def refusal(status: int, content: bytes) -> str:
    """Say how a token endpoint has refused an exchange, without anything that it may repeat of the request.

    The error code is that of RFC 6749 section 5.2, or of an error in the form of OpenAI's, Anthropic's and Google's
    APIs.
    """
    try:
        body = msgspec.json.decode(content)
        error = body["error"]
        code = error if isinstance(error, str) else error.get("status") or error.get("code") or error["type"]
        # The numbers by which Microsoft's documentation explains the error.
        numbers = [f"AADSTS{number}" for number in body.get("error_codes", ()) if isinstance(number, int)]
        codes = ", ".join(found for found in (code, *numbers) if _CODE.fullmatch(found))
    except (msgspec.DecodeError, LookupError, TypeError, AttributeError):
        codes = ""
    return f"the token endpoint answered {status}{f' ({codes})' if codes else ''}"
