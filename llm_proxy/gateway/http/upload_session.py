"""The token of requests that have nothing but the URL of an upload session.

Google's resumable uploads begin with a request that gets the URL of a session (`X-Goog-Upload-URL`). SDKs send the
content to that URL without a key: its `upload_id` is secret enough. So the proxy adds a parameter to the URL with
the digest of the token that began the session, encrypted together with provider and `upload_id`. It is valid for this
upload only, and only while the token is. It is removed before a request is forwarded.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final
from urllib.parse import unquote

from llm_proxy.errors import TokenInvalid
from llm_proxy.gateway.http import paths
from llm_proxy.secrets.encryption import SealError

if TYPE_CHECKING:
    from llm_proxy.secrets.encryption import KeyRing

PARAMETER: Final = b"llm-proxy-session"
_ID: Final = b"upload_id"


def add(keyring: KeyRing, token_digest: bytes, provider: str, url: str) -> str:
    """Add the parameter to a URL with an `upload_id`; others, and all if API keys are not encrypted, stay as is."""
    query = url.partition("#")[0].partition("?")[2].encode("latin-1")
    _, ids = paths.split_query(query, _ID)
    if len(ids) != 1 or not keyring.key_ids:
        return url
    sealed = keyring.seal(token_digest.hex(), _purpose(provider, ids[0]))
    return f"{url}&{PARAMETER.decode('ascii')}={paths.query_value(sealed).decode('ascii')}"


def token_digest(keyring: KeyRing, provider: str, query: bytes) -> bytes | None:
    """The digest of the token that began the session; None if there is no parameter. Raises `TokenInvalid`."""
    _, found = paths.split_query(query, PARAMETER)
    if not found:
        return None
    _, ids = paths.split_query(query, _ID)
    sealed = unquote(found[0].decode("latin-1"))
    # Text in the clear is accepted for API keys in the database, which nobody outside can write.
    if len(found) == len(ids) == 1 and keyring.key_ids and keyring.is_current(sealed):
        try:
            return bytes.fromhex(keyring.open(sealed, _purpose(provider, ids[0])))
        except (SealError, ValueError):
            pass
    raise TokenInvalid(
        "The URL of this upload was not made by this proxy, or its key was rotated. Begin the upload again."
    )


def _purpose(provider: str, upload_id: bytes) -> str:
    return f"upload session {provider} {upload_id.decode('latin-1')}"
