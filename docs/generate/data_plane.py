"""The part of the HTTP reference about requests to providers, from the code that decides on them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from http import HTTPStatus
from textwrap import fill

from llm_proxy.config import Settings
from llm_proxy.errors import DATA_PLANE, SERVER_CODES, RequestLimitExceeded, Shape, provider_response
from llm_proxy.gateway import labels
from llm_proxy.gateway.http import headers
from llm_proxy.gateway.http.codings import DECODERS
from llm_proxy.gateway.providers import provider_file

#: The request id of the examples.
_REQUEST_ID = "01a220b4-1337-7000-a3b3-ef6f71a95071"

_INTRODUCTION = """\
## To a provider

Every request under `/v1/` or `/<provider>/` is forwarded to a provider if its token is valid and the provider's
allow-lists permit it. `/<provider>/…` names the provider, and the rest of the path is sent to it. `/v1/…` is the
default provider of the token's project, with one exception: `/v1/messages`, `/v1/complete` and requests with the header
`anthropic-version` go to `anthropic`, unless the default provider has Anthropic's API itself. The request is sent with
the project's credential for that provider; without one, it gets 403 `credential_missing`.

Send the token in one of these headers, or the same token in several of them: `Authorization: Bearer TOKEN`,
`x-api-key`, `api-key`, `x-goog-api-key`. Under `/gemini/`, and for a provider with `auth: query`, it may also be in the
query: `?key=TOKEN`. It is removed before the request is forwarded, and no log or ledger row has it.

### Forwarded and stripped headers

Method, path, query, body and all other headers are forwarded unchanged, and so are the status, headers and body of the
response: bodies byte for byte, streams chunk by chunk, compressed bodies compressed. Redirects are relayed, never
followed. The only edits are those of [URLs in answers](guides/providers.md#urls-in-answers) and of [streams that are
asked for their usage](guides/streaming.md#token-usage). These headers are stripped:
"""

_PATHS = """\
### Paths

The path is checked and forwarded exactly as it was sent. A path that two readers could understand differently gets 400
`invalid_path`; it is never repaired. Such paths contain a dot segment (`/../`, `/%2e/`), an empty segment (`//`), `;`,
`\\`, `#`, or an escape of `. / \\ % ; # ?`, of a control character, or of a letter, a digit, `-` or `_`.

The target of a request may be an absolute URL (`GET http://proxy:8080/v1/models HTTP/1.1`). Its host then replaces the
`Host` header, and its path is checked like any other. `CONNECT` is refused.

Endpoints are matched by whole segments: those [without a provider file](#endpoints-without-a-provider-file), or those
that [the file](guides/providers.md) allows. Model names may contain a slash or a colon: the escapes `%2F` and `%3A` are
allowed only in the segment that the endpoint's pattern calls `{model}`. Such a path is also read with `/` in place of
`%2F`; it gets 400 if that path has an empty, `.` or `..` segment, or is another endpoint.

The first two segments of a path of the server itself, such as `/manage/projects` or `/metrics`, must not contain any
escape. Otherwise it gets 400, so that `/%6danage` cannot evade a rule for `/manage` in a reverse proxy. A name after
them, as in `/manage/projects/caf%C3%A9`, may contain escapes.
"""

_ENDPOINTS = """\
## Endpoints without a provider file

They allow GET and POST, and where the provider has more, DELETE and PATCH. Not included are endpoints that administer
the account of the API key, transfer long-lived secrets, or need a protocol upgrade. [Anthropic's
batches](guides/anthropic.md#batches) and uploads to Gemini need [`PUBLIC_URL`](guides/providers.md#urls-in-answers).
The other [built-in providers](guides/providers.md#built-in-providers) need their base URL in a provider file.
"""

_ERRORS = """\
### Errors of the proxy

Errors have the shape of the provider's own errors, so that SDKs raise their usual exceptions: Anthropic's shape under
`/v1/messages` and `/v1/complete`, for requests with the header `anthropic-version` under `/v1/`, and for a provider
that has only these endpoints; Google's shape for Gemini and Vertex and AWS's shape for Bedrock, except on their paths
of OpenAI's API; OpenAI's shape everywhere else.
Errors of the provider are forwarded unchanged. An error of the proxy has the header `X-LLM-Proxy-Request-ID` and no
`X-LLM-Proxy-Overhead-Ms`. [Errors](guides/errors.md) says what to do about each.

A path that belongs neither to a provider nor to the server gets the same shape, with the cause and the fix:
`The path "/chat/completions" is unknown; the base URL of the client must end in /v1`. With an
`anthropic-version` header, the shape is Anthropic's.
"""

_INVALID_HTTP = """\
Invalid HTTP is refused before its path is read, in OpenAI's shape, and the connection is closed: both `Content-Length`
and `Transfer-Encoding`, no `Host`, two headers of which only one is allowed, a folded header line, a head that is too
long or too slow. The codes are
"""


def sections() -> Iterator[str]:
    """What a client can send and gets, in Markdown, heading by heading."""
    yield _INTRODUCTION
    yield _headers()
    yield _PATHS
    yield _ERRORS
    for shape in ("openai", "anthropic", "google", "aws"):
        yield _example(shape)
    yield _table()
    yield _invalid_http()


def endpoints() -> Iterator[str]:
    """The endpoints of the built-in providers."""
    yield _ENDPOINTS
    for provider in provider_file.load(Settings()).by_name.values():
        yield f"`{provider.name}`:\n\n```text\n" + "\n".join(provider.allowed_endpoints) + "\n```\n"


def _headers() -> str:
    def row(what: str, names: frozenset[bytes], why: str) -> str:
        return f"| {what} | {', '.join(f'`{name.decode()}`' for name in sorted(names))} | {why} |"

    prefixes = ", ".join(f"`{prefix.decode()}*`" for prefix in headers.CLIENT_ADDRESS_PREFIXES)
    codings = ", ".join(f"`{coding.decode()}`" for coding in DECODERS)
    return "\n".join(
        [
            "| | headers | because |",
            "|---|---|---|",
            row(
                "both ways",
                headers.HOP_BY_HOP,
                "they are about one connection, like all headers that `Connection` names",
            ),
            row("both ways", headers.ACCOUNT, "they name the account of the API key, or choose another one"),
            row("to the provider", headers.CREDENTIALS, "the API key replaces the token"),
            row("to the provider", headers.REQUEST_ONLY, "the proxy sets its own, or they belong to its origin"),
            row(
                "to the provider",
                headers.CLIENT_ADDRESS,
                f"client identity and address are not sent to the provider; {prefixes} are stripped too",
            ),
            row(
                "to the provider",
                frozenset([labels.HEADER]),
                "it has [labels](guides/labels.md#labels-of-a-request) of the request, such as `user=alice`; the"
                " headers of `LABEL_HEADERS` are stripped too",
            ),
            row("to the provider", headers.OVERRIDES, "they name another method or URL than the one that was checked"),
            row("to the client", headers.ONE_LEG, "they describe one server; stripped from requests too"),
            row(
                "to the client",
                headers.INSTRUCTIONS,
                "they control a reverse proxy or CDN in front; `x-accel-*` and `x-litespeed-*` too",
            ),
            row(
                "to the client", headers.DIGESTS, "only if the response was edited: they are about the provider's bytes"
            ),
            row("to the client", headers.WHOLE_ORIGIN, "browsers would apply them to the whole origin of the proxy"),
            "",
            "A header name with `_` is forwarded, unless it would become one of these, one that the proxy checks or",
            "reads (`content-type`, `content-encoding`, `accept-encoding`, the provider's `required_headers`), or one",
            "that it sets itself, if `_` were read as `-`.",
            "",
            f"Of `Accept-Encoding`, only codings that the usage meter can read are forwarded: {codings}.",
            "Without any of them it becomes `identity`. A response in another coding is forwarded anyway.",
            "",
            "Added to responses:",
            "",
            "| header | |",
            "|---|---|",
            "| `X-LLM-Proxy-Request-ID` | the id of the request in the ledger and in the log |",
            "| `X-Request-ID` | the same, if the provider sent none |",
            "| `X-LLM-Proxy-Edited` | the edits of the exchange, if there are any: `rewrite_urls`, `stream_usage` |",
            "| `X-LLM-Proxy-Overhead-Ms` | milliseconds before the request was sent to the provider |",
            "| `X-Accel-Buffering: no` | on event streams, so that nginx does not buffer them |",
            (
                "| `X-RateLimit-Limit-Requests`, `X-RateLimit-Remaining-Requests`, `X-RateLimit-Reset-Requests`, and"
                " those that end in `-Tokens` | the limit per minute with the least left; they replace the provider's."
                " In Anthropic's API, `Anthropic-RateLimit-Requests-Limit` and so on |"
            ),
            "",
        ]
    )


def _example(shape: Shape) -> str:
    status, fields, body = provider_response(RequestLimitExceeded(), shape, _REQUEST_ID)
    shown = {
        "content-type",
        "x-llm-proxy-request-id",
        "request-id",
        "x-amzn-errortype",
        "retry-after",
        "x-should-retry",
    }
    lines = [f"HTTP/1.1 {status} {HTTPStatus(status).phrase}"]
    lines += [f"{name.decode()}: {value.decode()}" for name, value in fields if name.decode() in shown]
    return "\n".join(["```text", *lines, "", json.dumps(json.loads(body), indent=2), "```", ""])


def _table() -> str:
    rows = [
        (
            "| status | `code` | `type` (OpenAI) | `type` (Anthropic) | `status` (Google) | exception (AWS) "
            "| message, if there is no more specific one |"
        ),
        "|---|---|---|---|---|---|---|",
    ]
    for kind in DATA_PLANE:
        message = kind.message.replace("<", "&lt;")
        types = " | ".join(f"`{word}`" for word in kind.types)
        rows.append(f"| {kind.status} | `{kind.code}` | {types} | {message} |")
    rows += [
        "",
        "Every 503 has `Retry-After: 1`. Every 4xx but 408 has `X-Should-Retry: false`, unless its `Retry-After` is at",
        "most 60 seconds: SDKs and Claude Code then show the error at once. A 405 has `Allow`, a 426",
        "`Upgrade: HTTP/1.1`, a 401 `WWW-Authenticate: Bearer`. If a limit per minute has judged the request, a 429",
        "has `x-ratelimit-*` or `anthropic-ratelimit-*` ([which](guides/budgets.md#what-the-client-gets)).",
        "",
    ]
    return "\n".join(rows)


def _invalid_http() -> str:
    codes = fill(", ".join(f"{status} `{code}`" for status, code in SERVER_CODES.items()) + ".", 120)
    return f"{_INVALID_HTTP}{codes}\n"
