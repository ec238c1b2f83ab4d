"""The scripted provider: it speaks enough of OpenAI's and Anthropic's APIs for their SDKs, without a model.

`benchmarks.upstream` serves it, and tests use that to prove what the proxy does to a request on its way.

    message     what a handler is given (Request) and what it returns (Reply): plain values, no I/O
    directions  `x-scripted-…` request headers: delays, gaps, statuses, echoes and aborts on demand
    answers     the script: deterministic texts, token counts and examples of JSON schemas
    chat        OpenAI: chat completions and completions
    responses   OpenAI: responses
    assets      OpenAI: models, embeddings, files, images, audio
    anthropic   Anthropic: messages, token counts, models

The same request always gets the same bytes back, except that files remember what was uploaded.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import re
from collections.abc import Callable
from typing import Final

import msgspec
from attrs import define, evolve, field

from tests.scripted import anthropic, assets, chat, responses
from tests.scripted.answers import slices
from tests.scripted.directions import PREFIX, BadDirection, read_directions
from tests.scripted.message import Dialect, Headers, Reply, Request, ScriptedError, refuse

Handler = Callable[[Request], Reply]

#: Where clients and gateways put credentials, and the scheme that precedes them there.
_CREDENTIALS: Final = {
    b"authorization": b"bearer ",
    b"x-api-key": b"",
    b"api-key": b"",
    b"x-goog-api-key": b"",
}
#: What real providers add and a gateway must not hand on, beside what it must.
_COMMON_HEADERS: Final[Headers] = (
    (b"server", b"scripted-edge"),
    (b"set-cookie", b"__scripted=1; path=/; HttpOnly"),
    (b"alt-svc", b'h3=":443"; ma=86400'),
)
_DIALECT_HEADERS: Final[dict[Dialect, Headers]] = {
    "openai": (
        (b"openai-organization", b"org-scripted"),
        (b"openai-project", b"proj_scripted"),
        (b"openai-version", b"2020-10-01"),
        (b"access-control-expose-headers", b"X-Request-ID"),
        (b"openai-processing-ms", b"1"),
        (b"x-ratelimit-limit-requests", b"10000"),
        (b"x-ratelimit-remaining-requests", b"9999"),
    ),
    "anthropic": (
        (b"anthropic-organization-id", b"00000000-0000-4000-8000-000000000000"),
        (b"anthropic-workspace-id", b"wrkspc_scripted"),
        (b"anthropic-ratelimit-requests-limit", b"4000"),
        (b"anthropic-ratelimit-requests-remaining", b"3999"),
    ),
}
_REQUEST_ID_HEADER: Final[dict[Dialect, bytes]] = {"openai": b"x-request-id", "anthropic": b"request-id"}


@define
class ScriptedProvider:
    """A provider of OpenAI's and Anthropic's APIs: a function from requests to replies.

    It answers 401 in the provider's shape unless every credential header that is present holds `api_key`, and at
    least one is: a caller's own token that slipped through beside the right key is refused like a wrong key.
    """

    api_key: str = field(repr=False)
    _routes: tuple[tuple[str, re.Pattern[str], Dialect | None, Handler], ...] = field(init=False, repr=False)

    def __attrs_post_init__(self) -> None:
        """Draw up the routes; the file store belongs to this instance."""
        files = assets.FileStore()
        table: tuple[tuple[str, str, Dialect | None, Handler], ...] = (
            ("POST", "/v1/chat/completions", None, chat.chat_completions),
            ("POST", "/v1/completions", None, chat.completions),
            ("POST", "/v1/responses", None, responses.create_response),
            ("POST", "/v1/embeddings", None, assets.embeddings),
            ("POST", "/v1/images/generations", None, assets.images),
            ("POST", "/v1/audio/speech", None, assets.speech),
            ("POST", "/v1/audio/transcriptions", None, assets.transcription),
            ("POST", "/v1/messages", "anthropic", anthropic.create_message),
            ("POST", "/v1/messages/count_tokens", "anthropic", anthropic.count_tokens),
            ("GET", "/v1/models", "openai", assets.list_models),
            ("GET", "/v1/models", "anthropic", anthropic.list_models),
            ("GET", "/v1/models/[^/]+", "openai", assets.get_model),
            ("GET", "/v1/models/[^/]+", "anthropic", anthropic.get_model),
            ("POST", "/v1/files", None, files.upload),
            ("GET", "/v1/files", None, files.listing),
            ("GET", "/v1/files/[^/]+", None, files.about),
            ("GET", "/v1/files/[^/]+/content", None, files.content),
            ("DELETE", "/v1/files/[^/]+", None, files.delete),
        )
        self._routes = tuple((method, re.compile(path), dialect, handler) for method, path, dialect, handler in table)

    def respond(self, request: Request) -> Reply:
        """Return the reply to a request, refusals included, with all its headers but the framing. No I/O."""
        dialect = _dialect(request)
        try:
            request = evolve(request, directions=read_directions(request.headers))
            reply = self._answer(request, dialect)
        except BadDirection as error:
            reply = refuse(ScriptedError(400, str(error)), dialect)
        except ScriptedError as refusal:
            reply = refuse(refusal, dialect)
        except (AttributeError, KeyError, OverflowError, TypeError, ValueError):
            # The handlers look into the body without checking each type on the way, as a script may.
            reply = refuse(ScriptedError(400, "A field of the request has an unexpected type."), dialect)
        digest = hashlib.sha256(b"".join(reply.chunks)).hexdigest()[:32]
        headers = [(b"content-type", reply.content_type), *reply.headers, *_COMMON_HEADERS, *_DIALECT_HEADERS[dialect]]
        headers.append((_REQUEST_ID_HEADER[dialect], b"req_" + digest.encode()))
        if reply.streamed:
            headers.append((b"cache-control", b"no-cache"))
        return evolve(reply, headers=tuple(headers), directions=request.directions)

    def _answer(self, request: Request, dialect: Dialect) -> Reply:
        self._authenticate(request)
        directions = request.directions
        if directions.echo:
            return _echo(request)
        status = directions.status
        if status is not None and status >= 400:
            raise ScriptedError(status, f"The script answers with status {status}.", code="scripted")
        reply = self._find(request, dialect)(request)
        return reply if status is None else evolve(reply, status=status)

    def _authenticate(self, request: Request) -> None:
        seen = False
        for name, value in request.headers:
            scheme = _CREDENTIALS.get(name)
            if scheme is None:
                continue
            seen = True
            named = value[: len(scheme)].lower() == scheme
            if not named or not hmac.compare_digest(value[len(scheme) :], self.api_key.encode()):
                raise ScriptedError(401, "Incorrect API key provided.", code="invalid_api_key")
        if not seen:
            raise ScriptedError(401, "You didn't provide an API key.", code="invalid_api_key")

    def _find(self, request: Request, dialect: Dialect) -> Handler:
        known = False
        for method, path, spoken, handler in self._routes:
            if spoken not in {None, dialect} or path.fullmatch(request.path) is None:
                continue
            if method == request.method:
                return handler
            known = True
        if known:
            raise ScriptedError(405, f"Not allowed to {request.method} on {request.path}.")
        raise ScriptedError(404, f"Unknown request URL: {request.method} {request.path}.", code="unknown_url")


def _dialect(request: Request) -> Dialect:
    """Say whose API a request speaks: Anthropic's clients always send `anthropic-version`."""
    if request.path == "/v1/messages" or request.path.startswith("/v1/messages/"):
        return "anthropic"
    return "openai" if request.header(b"anthropic-version") is None else "anthropic"


def _echo(request: Request) -> Reply:
    target = request.raw_path + (b"?" + request.query if request.query else b"")
    received = {
        "method": request.method,
        "target": target.decode("latin-1"),
        "headers": [[name.decode("latin-1"), value.decode("latin-1")] for name, value in request.headers],
    }
    encoded = base64.b64encode(msgspec.json.encode(received))
    chunks: tuple[bytes, ...] = (request.body,) if request.body else ()
    count = request.directions.chunks
    if count is not None:
        text = request.body.decode("latin-1")
        chunks = tuple(piece.encode("latin-1") for piece in slices(text, count))
    return Reply(
        chunks,
        request.directions.status or 200,
        (request.header(b"content-type") or "application/octet-stream").encode("latin-1"),
        ((PREFIX + b"received", encoded),),
        streamed=count is not None,
    )
