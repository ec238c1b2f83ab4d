"""AWS: credentials from where a machine has them, and signatures (Signature Version 4), both through botocore.

https://docs.aws.amazon.com/IAM/latest/UserGuide/reference_sigv.html and
https://docs.aws.amazon.com/boto3/latest/guide/credentials.html
"""

from __future__ import annotations

import math
from functools import cache
from typing import Any, Final

import msgspec
from msgspec import structs

from llm_proxy.gateway.auth import documents
from llm_proxy.gateway.auth.token_source import AccessToken, ExchangeFailed
from llm_proxy.gateway.http.headers import HeaderList, Headers
from llm_proxy.gateway.upstream.connector import Origin

#: Seconds for which credentials of the machine are used before botocore is asked again. It refreshes them itself, at
#: least ten minutes before they end.
_LIFETIME: Final = 60.0
#: Set by a signature. A client of AWS's own sends them too, for credentials that mean nothing.
_SIGNATURE: Final = frozenset({b"authorization", b"x-amz-content-sha256", b"x-amz-date", b"x-amz-security-token"})


@cache
def _chain() -> Any:
    """The credentials of this machine: environment, web identity, shared files, container, instance.

    They refresh themselves, and botocore reads the token file of a web identity again each time.
    """
    from botocore.session import Session

    found = Session().get_credentials()
    if found is None:
        raise ExchangeFailed(
            "there are no AWS credentials in the environment, a web identity, the shared files, the container or the"
            " instance"
        )
    return found


def credentials(secret: str) -> AccessToken:
    """The document with the keys that are used now; `sign` reads it. It blocks."""
    import botocore.auth  # noqa: F401 - here in a thread, so that the first signature need not wait for it

    document: documents.Aws = documents.read("sigv4", secret)
    if document.access_key_id:
        return AccessToken(secret, math.inf)
    from botocore.exceptions import BotoCoreError, ClientError

    try:
        found = _chain().get_frozen_credentials()
    except (BotoCoreError, ClientError) as error:
        raise ExchangeFailed(f"the AWS credentials of this machine cannot be read ({type(error).__name__})") from None
    filled = structs.replace(
        document,
        access_key_id=found.access_key,
        secret_access_key=found.secret_key,
        session_token=found.token or "",
    )
    return AccessToken(msgspec.json.encode(filled).decode(), _LIFETIME)


def sign(credential: str, method: str, origin: Origin, target: bytes, headers: Headers, body_sha256: str) -> HeaderList:
    """Add a signature to the headers of a request; takes about 100 µs.

    `Host`, `Content-Type`, and all `X-Amz-…` headers are signed, as AWS requires, with the values that are sent: those
    that a client sent for a signature of its own are removed before. Other headers are not signed, so that an outbound
    proxy may change them.

    Args:
        credential: a document with keys.
        method: the method.
        origin: its authority is the value of `Host`.
        target: path and query, which are signed byte for byte.
        headers: all other headers that are sent.
        body_sha256: the digest of the body, in hexadecimal.
    """
    from botocore.auth import SigV4Auth
    from botocore.awsrequest import AWSRequest
    from botocore.credentials import Credentials

    document = msgspec.json.decode(credential, type=documents.Aws)
    keys = Credentials(document.access_key_id, document.secret_access_key, document.session_token or None)
    kept = [field for field in headers if field[0] not in _SIGNATURE]
    request = AWSRequest(method, f"{origin.scheme}://{origin.authority.decode('ascii')}{target.decode('latin-1')}")
    for name, value in kept:
        if name == b"content-type" or name.startswith(b"x-amz"):
            request.headers[name.decode("latin-1")] = value.decode("latin-1")
    request.headers["x-amz-content-sha256"] = body_sha256
    SigV4Auth(keys, document.service, document.region).add_auth(request)
    signature = [(name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in request.headers.items()]
    return kept + [field for field in signature if field[0] in _SIGNATURE]
