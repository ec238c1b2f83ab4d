"""Google's access tokens, through google-auth: it signs with keys, and knows where each cloud has its identity tokens.

https://cloud.google.com/docs/authentication (service accounts, and workload identity federation)
"""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import msgspec
from attrs import define

from llm_proxy.gateway.auth import documents
from llm_proxy.gateway.auth.oauth import TIMEOUT, refusal
from llm_proxy.gateway.auth.token_source import AccessToken, ExchangeFailed
from llm_proxy.net.tls import client_context

_SCOPES: Final = ["https://www.googleapis.com/auth/cloud-platform"]
_AWS: Final = "urn:ietf:params:aws:token-type:aws4_request"


@define
class _Reply:
    """An answer, with the names that google-auth expects."""

    status: int
    headers: Any
    data: bytes


@define(eq=False)
class _Transport:
    """Makes the requests of google-auth, and remembers how the last one was refused."""

    client: Any
    refusal: str = ""

    def __call__(self, url: str, method: str = "GET", body: Any = None, headers: Any = None, **_: Any) -> _Reply:
        response = self.client.request(method, url, content=body, headers=headers)
        self.refusal = "" if response.is_success else refusal(response.status_code, response.content)
        return _Reply(response.status_code, response.headers, response.content)


def exchange(secret: str) -> AccessToken:
    """Get a token for a service account, or for an identity of another cloud; it blocks."""
    import httpx
    from google.auth import aws, exceptions, identity_pool
    from google.oauth2 import service_account

    document = documents.read("google", secret)
    info: dict[str, Any] = msgspec.json.decode(secret)
    credentials: Any
    kind: Any
    with httpx.Client(verify=client_context(), timeout=TIMEOUT) as client:
        transport = _Transport(client)
        try:
            if isinstance(document, documents.GoogleServiceAccount):
                kind = service_account.Credentials
                credentials = kind.from_service_account_info(info, scopes=_SCOPES)
            else:
                file = document.credential_source.file
                if file and not Path(file).is_file():
                    raise ExchangeFailed("the token file cannot be read: there is no such file")
                kind = aws if document.subject_token_type == _AWS else identity_pool
                credentials = kind.Credentials.from_info(info, scopes=_SCOPES)
            credentials.refresh(transport)
        except httpx.TimeoutException:
            raise ExchangeFailed(f"the token endpoint did not answer within {TIMEOUT:.0f} s") from None
        except httpx.HTTPError as error:
            raise ExchangeFailed(f"the token endpoint could not be reached ({type(error).__name__})") from None
        except (exceptions.GoogleAuthError, ValueError, OSError) as error:
            # Messages of google-auth may repeat an answer, or a file.
            why = transport.refusal or f"google-auth cannot use its document ({type(error).__name__})"
            raise ExchangeFailed(why) from None
    lifetime = credentials.expiry.replace(tzinfo=UTC) - datetime.now(UTC)
    return AccessToken(credentials.token, lifetime.total_seconds())
