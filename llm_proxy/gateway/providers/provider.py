"""The providers that requests can go to, and which of them a path names.

URL, endpoints and limits of a provider come only from configuration (`provider_file.py`), never from a client.
Everything is compiled at the start, so a request costs a few look-ups.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple
from urllib.parse import urlsplit

from attrs import field, frozen

from db.records import Account
from llm_proxy.config.kinds import BASE_URL, InvalidValue
from llm_proxy.errors import (
    EndpointNotAllowed,
    HeaderRequired,
    InvalidPath,
    MethodNotAllowed,
    OriginNotAllowed,
    ParameterNotAllowed,
    ProxyError,
    Shape,
)
from llm_proxy.gateway.http import paths
from llm_proxy.gateway.http.headers import Headers
from llm_proxy.gateway.http.parameters import ParameterRules, Parameters
from llm_proxy.gateway.providers.endpoints import Endpoints, has_name_escape
from llm_proxy.gateway.providers.rewriting import Rewriting, UrlField
from llm_proxy.gateway.upstream.connector import Origin, Timeouts
from llm_proxy.logging.redaction import quoted

Auth = Literal[
    "bearer",
    "x-api-key",
    "api-key",
    "x-goog-api-key",
    "query",
    "sigv4",
    "google",
    "azure-ad",
    "openai-wif",
    "anthropic-wif",
]

#: Whether streams of chats are asked for their usage, see `stream_usage.py`.
StreamUsage = Literal["ask", "off"]

_KEY = re.compile(r"[\x21-\x7e]+")
#: Number of endpoints that an error lists.
_EXAMPLES = 4
#: Longer segments are omitted from errors: they are ids or secrets.
_LONGEST_SEGMENT = 24
_LONGEST_PATH = 100
_ANTHROPIC = "anthropic"
#: Paths of Anthropic's API; DeepSeek and Bedrock have it under `/anthropic`, Vertex under the publisher.
_ANTHROPIC_PATH = re.compile(rb"(?:/anthropic)?/v1/(?:messages|complete)(?:/|\Z)|/publishers/anthropic/")
#: Paths of OpenAI's API at providers that have another one of their own: Gemini, Bedrock and Vertex.
_OPENAI_PATH = re.compile(rb"(?:/v1beta)?/openai/|/endpoints/openapi/")


@frozen(eq=False, kw_only=True)
class Provider:
    """An API that requests are forwarded to.

    Attributes:
        name: also the prefix `/<name>/…`.
        base_path: is put before the client's path; empty, or begins with a slash and does not end with one.
        auth: how the project's API key is sent.
        auth_parameter: the parameter of the query that has it, for `auth` query.
        shape: the shape of errors that the provider's clients expect.
        allowed_endpoints: patterns of paths, see `endpoints.py`.
        param_whitelist: globs per body parameter, see `parameters.py`.
        models: where endpoints name their models, if neither their path nor `model` does, see `models_of`.
        stream_usage: of projects that do not set it.
        allowed_origins: values of `Origin` that browsers may send; empty allows all.
        required_headers: in lower case.
        headers: that are sent to the provider, instead of the client's of these names; names in lower case.
        rewrite_urls: fields of answers that have URLs of the provider, by patterns of paths, see `rewriting.py`.
        public_url: what these URLs begin with instead.
        keep_alive: seconds for which an idle connection is kept open.
        max_idle_conns_per_host: maximum number of idle connections.
        needs_body: the body must be read whole before a request can be admitted.
    """

    name: str
    origin: Origin
    base_path: bytes
    auth: Auth
    auth_parameter: str = "key"
    shape: Shape
    allowed_endpoints: tuple[str, ...]
    allowed_methods: frozenset[str]
    param_whitelist: Mapping[str, tuple[str, ...]] = field(factory=dict)
    models: Mapping[str, tuple[str, ...]] = field(factory=dict)
    stream_usage: StreamUsage = "off"
    allowed_origins: frozenset[bytes] = frozenset()
    required_headers: frozenset[bytes] = frozenset()
    headers: Mapping[bytes, bytes] = field(factory=dict)
    rewrite_urls: Mapping[str, tuple[UrlField, ...]] = field(factory=dict)
    public_url: str | None = None
    timeouts: Timeouts
    keep_alive: float
    max_idle_conns_per_host: int
    endpoints: Endpoints = field(init=False, repr=False)
    needs_body: bool = field(init=False, repr=False)
    rewriting: Rewriting | None = field(init=False, repr=False)
    _rules: ParameterRules = field(init=False, repr=False)
    _models: Sequence[tuple[Endpoints, tuple[str, ...]]] = field(init=False, repr=False)
    #: The answers of `models_of` for literal paths.
    _members: dict[bytes, tuple[tuple[str, ...], bool]] = field(init=False, repr=False, factory=dict)

    @endpoints.default
    def _compile_endpoints(self) -> Endpoints:
        return Endpoints(self.allowed_endpoints)

    @needs_body.default
    def _has_rules(self) -> bool:
        return bool(self.param_whitelist)

    @rewriting.default
    def _compile_rewriting(self) -> Rewriting | None:
        rules = self.rewrite_urls
        return Rewriting(rules, self.name, self.origin, self.public_url) if rules else None

    @_rules.default
    def _compile_rules(self) -> ParameterRules:
        return ParameterRules(self.param_whitelist)

    @_models.default
    def _compile_models(self) -> Sequence[tuple[Endpoints, tuple[str, ...]]]:
        return [(Endpoints([pattern]), members) for pattern, members in self.models.items()]

    @property
    def base_url(self) -> str:
        return f"{self.origin.scheme}://{self.origin.authority.decode('ascii')}{self.base_path.decode('ascii')}"

    @property
    def connection_settings(self) -> tuple[object, ...]:
        """What its connections are made with."""
        return self.origin, self.timeouts, self.keep_alive, self.max_idle_conns_per_host

    @property
    def holds_body(self) -> bool:
        """Whether the body must be held until it is complete, because its digest is in the head of the request."""
        return self.auth == "sigv4"

    def credential(self, api_key: str, path: bytes) -> list[tuple[bytes, bytes]]:
        """The headers with the API key, or with the token for it. Raises `ProxyError` if it cannot be sent."""
        if self.auth == "sigv4":  # it is not sent: the whole request is signed with it
            return []
        if not _KEY.fullmatch(api_key):
            raise ProxyError(
                "The API key of this project cannot be sent to the provider. Ask the operator to set it again."
            )
        key = api_key.encode("ascii")
        if self.auth == "query":
            return []
        # Gemini takes its key as Bearer on the paths of OpenAI's API: https://ai.google.dev/gemini-api/docs/openai
        as_bearer = self.auth == "x-goog-api-key" and _OPENAI_PATH.match(path)
        if self.auth in {"x-api-key", "api-key", "x-goog-api-key"} and not as_bearer:
            return [(self.auth.encode("ascii"), key)]
        headers = [(b"authorization", b"Bearer " + key)]
        if self.auth == "anthropic-wif":  # as Anthropic's SDKs do; the client may have a line of its own
            headers.append((b"anthropic-beta", b"oauth-2025-04-20"))
        return headers

    def target(self, path: bytes, query: bytes, api_key: str) -> bytes:
        """The request target for the provider: `base_path`, the route's path and the query, byte for byte.

        The parameters of a token are removed from the query, and that of the API key is added if `auth` is query.
        """
        if name := self._token_parameter:
            query, _ = paths.split_query(query, name)
            if self.auth == "query":
                query = b"%b&%b=%b" % (query, name, paths.query_value(api_key))
                query = query.removeprefix(b"&")
        if self.rewriting is not None:
            query = self.rewriting.without_session(path, query)
        return self.base_path + path + b"?" + query if query else self.base_path + path

    @property
    def _token_parameter(self) -> bytes:
        """The parameter of the query in which clients may send their token; empty if there is none."""
        if self.auth == "query":
            return self.auth_parameter.encode("ascii")
        return b"key" if self.auth == "x-goog-api-key" else b""

    def tokens_in(self, query: bytes) -> list[bytes]:
        """What a client sent as its token in the query."""
        return paths.split_query(query, self._token_parameter)[1] if query and self._token_parameter else []

    def refusal(
        self, method: str, path: bytes, headers: Headers, parameters: Parameters | None = None
    ) -> ProxyError | None:
        """Check a request; None if it is allowed. `parameters` are not checked if the body is not read yet."""
        if path not in self.endpoints:
            refused: ProxyError | None = self._endpoint_refusal(method, path)
        else:
            refused = None if self.rewriting is None else self.rewriting.refusal(path)
        if refused is not None:
            return refused
        if method not in self.allowed_methods:
            allowed = tuple(sorted(self.allowed_methods))
            message = f"{_shown(path, method)} is not allowed here (allowed methods: {', '.join(allowed)})"
            return MethodNotAllowed(message, allow=allowed)
        if (origins := self.allowed_origins) and not all(
            value in origins for name, value in headers if name == b"origin"
        ):
            return OriginNotAllowed()
        if self.required_headers:
            missing = self.required_headers.difference(name for name, value in headers if value)
            if missing:
                name = min(missing).decode("ascii")
                return HeaderRequired(f"The header '{name}' is required here.", param=name)
        if self.param_whitelist and method == "POST" and (refused := self._model_refusal(path)) is not None:
            return refused
        return None if parameters is None else self._rules.refusal(parameters)

    def models_of(self, path: bytes) -> tuple[str, ...]:
        """Where a request names its models: `{model}` of the path, or members of the JSON body or fields of the form.

        After a dot, it is a member of each object in the value, or in each line of the file that the value names.
        """
        return self._members_of(path)[0]

    def says_models_of(self, path: bytes) -> bool:
        """Whether the entry itself says where this endpoint names its models."""
        return self._members_of(path)[1]

    def _members_of(self, path: bytes) -> tuple[tuple[str, ...], bool]:
        if (found := self._members.get(path)) is None:
            said = next((members for endpoints, members in self._models if path in endpoints), None)
            members = ("{model}",) if self.endpoints.model(path) is not None else said or ("model",)
            found = members, said is not None
            if path in self.endpoints.literal:
                self._members[path] = found
        return found

    def _model_refusal(self, path: bytes) -> ProxyError | None:
        """Check the model in a path, and that the whitelist can be applied to those in the body."""
        if (model := self.endpoints.model(path)) is not None:
            return self._rules.refusal({"model": [model]})
        allowed = self.param_whitelist.get("model", ("*",))
        inner = [member for member in self.models_of(path) if "." in member]
        if "*" in allowed or not inner:
            return None
        return ParameterNotAllowed(
            f"{inner[0]} is not checked by this proxy, so this endpoint is not available while models are limited"
            f" (allowed: {', '.join(allowed)}). Send the requests one by one",
            param="model",
        )

    def _endpoint_refusal(self, method: str, path: bytes) -> ProxyError:
        if has_name_escape(path):
            return InvalidPath(
                "The escapes %2F and %3A are only allowed in the name of a model, where allowed_endpoints has {model},"
                " and only if the path with '/' in place of %2F is no other endpoint."
            )
        if path.startswith(b"/v1/v1/"):
            fix = "/v1 is there twice; leave it off the base URL of the client"
        elif b"/v1" + path in self.endpoints:
            fix = "the base URL of the client must end in /v1"
        else:
            literal = [endpoint for endpoint in self.allowed_endpoints if not re.search(r"[{*]", endpoint)]
            examples = (literal or self.allowed_endpoints)[:_EXAMPLES]
            fix = f"it takes {', '.join(examples)}{', ...' if len(self.allowed_endpoints) > len(examples) else ''}"
        return EndpointNotAllowed(
            f"{_shown(path, method)} is not available with this token, whose project uses the provider"
            f' "{self.name}": {fix}'
        )

    def shape_for(self, path: bytes) -> Shape:
        """The shape of errors for a path: some providers have the API of another one too."""
        if _ANTHROPIC_PATH.match(path):
            return "anthropic"
        return "openai" if _OPENAI_PATH.match(path) else self.shape


class Route(NamedTuple):
    """What a path means.

    Attributes:
        provider: None for `/v1/…`, which goes to the provider of the token's project.
        path: without the provider's prefix; it is checked and forwarded.
        shape: the shape of errors that the client probably expects.
    """

    provider: Provider | None
    path: bytes
    shape: Shape


@frozen
class Providers:
    """All providers by name, and the default of projects.

    Attributes:
        unconfigured: names of built-in providers that are not among them.
        needs_body: whether one of them does.
    """

    by_name: Mapping[str, Provider]
    default: Provider
    unconfigured: frozenset[str] = frozenset()
    needs_body: bool = field(init=False, repr=False)
    _prefixes: Mapping[bytes, Provider] = field(init=False, repr=False)

    @needs_body.default
    def _find_rules(self) -> bool:
        return any(provider.needs_body for provider in self.by_name.values())

    @_prefixes.default
    def _encode_names(self) -> Mapping[bytes, Provider]:
        return {name.encode("ascii"): provider for name, provider in self.by_name.items()}

    def choose(self, route: Route, shape: Shape, account: Account) -> str:
        """The name of the provider that a request means.

        A path under `/v1/` is one of the project's default provider. Requests of Anthropic's API, known by path or
        header, are meant for `anthropic`, unless the default provider has that API itself.
        """
        if route.provider is not None:
            return route.provider.name
        default = account.project.provider
        if shape == "anthropic" and _ANTHROPIC in self.by_name:
            usual = self.by_name.get(default)
            if usual is None or usual.shape == shape:
                return _ANTHROPIC if usual is None else default
            other_api = usual.shape_for(route.path) != shape and _ANTHROPIC in account.keys
            if other_api or route.path not in usual.endpoints:
                return _ANTHROPIC
        return default

    def unknown(self, raw_path: bytes) -> ProxyError:
        """The error for a path that belongs neither to a provider nor to the control plane."""
        if b"%" in raw_path:
            # A reader that decodes it could find a path of the control plane.
            return InvalidPath("This path must not contain percent escapes.")
        if not paths.is_clear(raw_path):
            return InvalidPath()
        name = raw_path[1:].partition(b"/")[0].decode("latin-1")
        if name in self.unconfigured:
            return EndpointNotAllowed(
                f"The provider '{name}' is not configured here; the operator can add apis.{name} to the provider file"
            )
        known = any(b"/v1" + raw_path in provider.endpoints for provider in self.by_name.values())
        fix = (
            "the base URL of the client must end in /v1"
            if known
            else "paths to a provider begin with /v1/ or /<provider>/v1/, as in /v1/chat/completions"
        )
        return EndpointNotAllowed(f"The path {_shown(raw_path)} is unknown; {fix}")

    def route(self, raw_path: bytes) -> Route | None:
        """Find the provider of `raw_path`, which is not checked; None if it is not a path of a provider."""
        end = raw_path.find(b"/", 1)
        if end < 0:
            return None
        prefix = raw_path[1:end]
        if prefix == b"v1":
            return Route(None, raw_path, "anthropic" if _ANTHROPIC_PATH.match(raw_path) else "openai")
        provider = self._prefixes.get(prefix)
        if provider is None:
            return None
        path = raw_path[end:]
        if (base := provider.base_path) and path.startswith(base + b"/"):
            # The path as the provider documents it: /groq/openai/v1/models means the same as /groq/v1/models.
            path = path[len(base) :]
        return Route(provider, path, provider.shape_for(path))


def _shown(path: bytes, method: str = "") -> str:
    """Quote a request in an error, shortened and without possible secrets."""
    segments = [text if len(text) <= _LONGEST_SEGMENT else "..." for text in path.decode("latin-1").split("/")]
    return quoted(f"{method[:_LONGEST_SEGMENT]} {'/'.join(segments)}".strip(), _LONGEST_PATH)


def split_base_url(url: str) -> tuple[Origin, bytes]:
    parts = urlsplit(BASE_URL.read(url))
    base_path = parts.path.encode("ascii")
    if not paths.is_clear(base_path or b"/"):
        raise InvalidValue("its path is ambiguous: no //, dot segments, ';' or encoded separators")
    return Origin(parts.scheme, parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80)), base_path
