"""The HTTP response of a refusal: the error body of the provider whose API the client uses.

OpenAI's is `{"error": {"message", "type", "param", "code"}}`, Anthropic's `{"type": "error", "error": {"type",
"message", "details": {"error_code"}}, "request_id"}`, and our `code` is a further member of its `error`, so that it
is in one place for both. The SDKs choose the exception by the status, and take what they show from the body: OpenAI's
has the code as `error.code`, Anthropic's as `error.error_code`. Both retry 408, 409, 429 and every 5xx unless the
response has `x-should-retry: false`, and wait for `Retry-After` seconds if it is sent. Claude Code also retries a 401,
for minutes, and obeys that header.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from llm_proxy.errors import ProxyError, anthropic_body, openai_body

Shape = Literal["openai", "anthropic"]

#: Longest `Retry-After` in seconds that the SDKs obey; if it is longer, they try again much earlier.
_PATIENCE = 60

_encode = msgspec.json.Encoder().encode


def fault(error: ProxyError, shape: Shape, request_id: str) -> tuple[int, list[tuple[bytes, bytes]], bytes]:
    """Turn `error` into a response: status, headers and JSON body.

    The headers say what the client can do: `Retry-After` if waiting helps, `X-Should-Retry: false` on a 4xx that
    neither a short wait nor a retry fixes, `Allow` on a 405 (RFC 9110 §15.5.6), `WWW-Authenticate` on a
    401 (§15.5.2), `Upgrade` on a 426 (§15.5.22), and the request's id under each name by which an SDK looks for it.
    """
    body = anthropic_body(error, request_id) if shape == "anthropic" else openai_body(error)
    content = _encode(body)
    identifier = request_id.encode("ascii")
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", b"%d" % len(content)),
        (b"cache-control", b"no-store"),
        (b"x-request-id", identifier),
        (b"x-llm-proxy-request-id", identifier),
    ]
    if shape == "anthropic":
        headers.append((b"request-id", identifier))
    if error.retry_after is not None:
        headers.append((b"retry-after", b"%d" % error.retry_after))
    if error.status < 500 and error.status != 408 and (error.retry_after is None or error.retry_after > _PATIENCE):
        headers.append((b"x-should-retry", b"false"))
    if error.status == 405:
        headers.append((b"allow", ", ".join(error.allow).encode("ascii")))
    if error.status == 426:
        headers += [(b"upgrade", b"HTTP/1.1"), (b"connection", b"upgrade")]
    if error.status == 401:
        headers.append((b"www-authenticate", b"Bearer"))
    return error.status, headers, content
