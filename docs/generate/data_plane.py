"""The part of the HTTP reference about requests to providers, from the code that decides on them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from http import HTTPStatus
from textwrap import fill

from llm_proxy.config import Settings
from llm_proxy.errors import DATA_PLANE, SERVER_CODES, RequestLimitExceeded
from llm_proxy.gateway.faults import Shape, fault
from llm_proxy.gateway.http import headers
from llm_proxy.gateway.http.codings import DECODERS
from llm_proxy.gateway.providers import provider_file

#: What stands for an id in the examples.
_REQUEST_ID = "01a220b4-1337-7000-a3b3-ef6f71a95071"

_INTRODUCTION = """\
## To a provider

Every request under `/v1/` or `/<provider>/` goes to a provider, if its token and the provider's lists allow it. `/v1/…`
means the provider of the token's project. `/<provider>/…` names it, and everything behind the name is the path there; a
project's key goes to no other provider than its own.

The token stands in one of these headers, or in several of them if it is the same one: `Authorization: Bearer TOKEN`,
`x-api-key`, `api-key`, `x-goog-api-key`.

### Forwarded and stripped headers

Method, path, query, body and all other headers go to the provider as they came, and its status, headers and body come
back as they are: bodies byte for byte, streams piece by piece, compressed ones compressed. Redirects are passed on, and
not followed. Not passed on are:
"""

_PATHS = """\
### Paths

One path decides on the endpoint and is forwarded: the one that was sent. What different readers could take for
different paths gets 400 `invalid_path`, and is never repaired: dot segments (`/../`, `/%2e/`), an empty segment (`//`),
`;`, `\\`, `#`, and escapes that stand for one of `. / \\ % ; # ?` or for a control character.

The target of a request may be a whole URL (`GET http://proxy:8080/v1/models HTTP/1.1`). Its host then takes the place
of the `Host` header, and its path is checked like any other. `CONNECT` is refused.

Endpoints are matched by whole segments: those [without a provider file](#endpoints-without-a-provider-file), or those
that [the file](guides/providers.md) allows. Names of models may have a slash or a colon: only in a segment that the
pattern of the endpoint calls `{model}`, the escapes `%2F` and `%3A` are allowed. Such a path is also read with `/` in
place of `%2F`, and gets 400 if that has an empty, `.` or `..` part or is another endpoint.

A path of the server itself, such as `/manage/projects` or `/metrics`, has no escapes at all: with one it gets 400, so
that a rule of a reverse proxy in front on `/manage` cannot be passed by as `/%6danage`.
"""

_ENDPOINTS = """\
## Endpoints without a provider file

All of them take GET, POST and DELETE. Left out is what administers the account behind the key, what carries long-lived
secrets of its own, what needs a protocol upgrade, and what answers with an address to which SDKs would send the token
of the proxy ([Anthropic's batches](guides/anthropic.md#batches)).
"""

_ERRORS = """\
### Errors of the proxy

They have the form that the client expects of its provider, so that SDKs raise their usual exceptions: Anthropic's under
`/v1/messages` and `/v1/complete`, and for a provider that has only those; OpenAI's everywhere else. An error that comes
from the provider itself is passed on as it is; one of the proxy has an `X-LLM-Proxy-Request-ID` and no
`X-LLM-Proxy-Overhead-Ms`. What to do about each is told in [Errors](guides/errors.md).

A path that is neither a provider's nor the server's own is answered in this form too, with the cause and the fix:
`The path "/chat/completions" is not known here; the base URL of the client must end in /v1`. An `anthropic-version`
header makes it Anthropic's form.
"""

_IMPROPER = """\
What is not proper HTTP is refused before anything looks at its path, in OpenAI's form, and the connection is closed:
both `Content-Length` and `Transfer-Encoding`, no `Host`, a header twice that may stand once, a folded line, a head
that is too long or too slow. The codes are
"""


def sections() -> Iterator[str]:
    """What a client can send, and how it is answered, in Markdown, heading by heading."""
    yield _INTRODUCTION
    yield _crossing()
    yield _PATHS
    yield _ERRORS
    for shape in ("openai", "anthropic"):
        yield _example(shape)
    yield _table()
    yield _below()


def endpoints() -> Iterator[str]:
    """What is allowed where nobody has said anything else; long, and best at the end of a page."""
    yield _ENDPOINTS
    for provider in provider_file.load(Settings()).by_name.values():
        yield f"`{provider.name}`:\n\n```text\n" + "\n".join(provider.allowed_endpoints) + "\n```\n"


def _crossing() -> str:
    def row(what: str, names: frozenset[bytes], why: str) -> str:
        return f"| {what} | {', '.join(f'`{name.decode()}`' for name in sorted(names))} | {why} |"

    prefixes = ", ".join(f"`{prefix.decode()}*`" for prefix in headers.CLIENT_ADDRESS_PREFIXES)
    codings = ", ".join(f"`{coding.decode()}`" for coding in DECODERS)
    return "\n".join(
        [
            "| | headers | because |",
            "|---|---|---|",
            row("both ways", headers.HOP_BY_HOP, "they concern one connection, and so do all that `Connection` names"),
            row("both ways", headers.ACCOUNT, "they tell whose account the key belongs to, or choose another one"),
            row("to the provider", headers.CREDENTIALS, "the provider's key takes the token's place"),
            row("to the provider", headers.REQUEST_ONLY, "they are made anew, or belong to the proxy's own origin"),
            row(
                "to the provider",
                headers.CLIENT_ADDRESS,
                f"client identity and address are not sent to the provider; {prefixes} are stripped too",
            ),
            row("to the provider", headers.OVERRIDES, "they name another method or URL than the one that was checked"),
            row("to the client", headers.ONE_LEG, "they are about the provider's own server (nor to the provider)"),
            row(
                "to the client",
                headers.ORDERS,
                "they give orders to a proxy or content network in front; `x-accel-*` and `x-litespeed-*` too",
            ),
            row("to the client", headers.WHOLE_ORIGIN, "browsers apply them to the whole origin, which is the proxy's"),
            "",
            "A header name with `_` is forwarded, unless it would become one of these, one that the proxy judges or",
            "reads (`content-type`, `content-encoding`, `accept-encoding`, the provider's `required_headers`), or one",
            "that it sets itself, if `_` were read as `-`: then it is stripped.",
            "",
            f"Of `Accept-Encoding` the codings go to the provider that the usage meter can read: {codings}.",
            "Without any of them it is `identity`. An answer in another coding is passed on all the same.",
            "",
            "Added to answers:",
            "",
            "| header | |",
            "|---|---|",
            "| `X-LLM-Proxy-Request-ID` | the id of the request in the ledger and in the log |",
            "| `X-Request-ID` | the same, where the provider sent none |",
            "| `X-LLM-Proxy-Overhead-Ms` | milliseconds until the request was on its way to the provider |",
            "| `X-Accel-Buffering: no` | on event streams, so that nginx passes them on at once |",
            "",
        ]
    )


def _example(shape: Shape) -> str:
    status, fields, body = fault(RequestLimitExceeded(), shape, _REQUEST_ID)
    shown = {"content-type", "x-llm-proxy-request-id", "request-id", "retry-after", "x-should-retry"}
    lines = [f"HTTP/1.1 {status} {HTTPStatus(status).phrase}"]
    lines += [f"{name.decode()}: {value.decode()}" for name, value in fields if name.decode() in shown]
    return "\n".join(["```text", *lines, "", json.dumps(json.loads(body), indent=2), "```", ""])


def _table() -> str:
    rows = ["| status | `code` | `type` (OpenAI) | `type` (Anthropic) | when |", "|---|---|---|---|---|"]
    for kind in DATA_PLANE:
        when = " ".join((kind.__doc__ or "").split("\n\n")[0].split())
        types = f"`{kind.openai_type()}` | `{kind.anthropic_type()}`"
        rows.append(f"| {kind.status} | `{kind.code}` | {types} | {when} |")
    rows += [
        "",
        "Every 503 has `Retry-After: 1`. Every 4xx but 408 has `X-Should-Retry: false`, unless its `Retry-After` is at",
        "most 60 seconds: SDKs and Claude Code then show the error at once. A 405 has `Allow`, a 426",
        "`Upgrade: HTTP/1.1`, a 401 `WWW-Authenticate: Bearer`.",
        "",
    ]
    return "\n".join(rows)


def _below() -> str:
    codes = fill(", ".join(f"{status} `{code}`" for status, code in SERVER_CODES.items()) + ".", 120)
    return f"{_IMPROPER}{codes}\n"
