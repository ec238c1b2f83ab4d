"""Loads the providers from the provider file (`API_CONFIG_PATH`), or from `builtin.yaml` if there is no file.

`docs/guides/providers.md` explains the keys. The file replaces the built-in providers; a provider with the name of a
built-in one has its values as defaults. Unknown keys are refused, because a misspelt limit would be no limit.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from functools import cache
from pathlib import Path
from typing import Annotated, Final, Literal
from urllib.parse import urlsplit

from msgspec import Struct, structs

from llm_proxy.config import Settings, SettingsError, kinds
from llm_proxy.config.checks import metrics_segment, reserved
from llm_proxy.config.document import Document
from llm_proxy.config.kinds import InvalidValue, Kind, assignment, did_you_mean, matching
from llm_proxy.errors import Shape
from llm_proxy.gateway.http import headers
from llm_proxy.gateway.providers import endpoints
from llm_proxy.gateway.providers.provider import Auth, Provider, Providers, StreamUsage, split_base_url
from llm_proxy.gateway.providers.rewriting import UrlField
from llm_proxy.gateway.upstream.connector import Origin, Timeouts

_BUILT_IN: Final = Path(__file__).with_name("builtin.yaml")
_NAME: Final = re.compile(r"[a-z][a-z0-9_-]{0,31}")
_NEEDS: Final = "apis, with at least one provider"
_METHODS: Final = frozenset({"GET", "POST", "PUT", "PATCH", "DELETE"})
#: The default of MAX_CONCURRENT_REQUESTS: with fewer, a busy proxy opens and closes connections all the time.
_IDLE_CONNECTIONS: Final = 1000
#: Headers that an entry cannot set: of one connection, of the framing, of the body, and credentials.
_NOT_STATIC: Final = headers.HOP_BY_HOP | headers.REQUEST_ONLY | headers.CREDENTIALS | headers.READ


def _endpoint(text: str) -> str:
    endpoints.check(text)
    return text


_Text = Annotated[str, kinds.TEXT]
_Pattern = Annotated[str, Kind("pattern", "a value such as gpt-4o, or a pattern such as gpt-4.1-*", str)]
_Duration = Annotated[float, kinds.duration()]
_BaseUrl = Annotated[tuple[Origin, bytes], Kind("URL", kinds.BASE_URL.allowed, split_base_url)]
_Endpoint = Annotated[str, Kind("endpoint", "a path such as /v1/chat/completions or /v1/models/{id}", _endpoint)]
_HeaderValue = Annotated[
    str, Kind("text", "1 to 1024 printable ASCII characters", matching(r"[!-~](?:[ -~]{0,1022}[!-~])?"), secret=True)
]
_Parameter = Annotated[
    str, Kind("parameter", "a name of letters, digits, - and _, such as key", matching(r"[A-Za-z0-9_-]{1,64}"))
]
_UrlField = Annotated[
    UrlField, Kind("field", "a place in JSON such as data.results_url, or header:NAME", UrlField.parse)
]
_Method = Annotated[str, kinds.choice(Literal["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"])]


class _Timeouts(Struct, frozen=True):
    connect: _Duration | None = None
    response_header: _Duration | None = None
    idle: _Duration | None = None
    request: _Duration | None = None


class _Connection(Struct, frozen=True):
    max_idle_conns_per_host: Annotated[int, kinds.integer(0, 10_000)] | None = None


class Api(Struct, frozen=True):
    """The keys of one provider; None if not set."""

    base_url: _BaseUrl | None = None
    auth: Annotated[Auth, kinds.choice(Auth)] | None = None
    auth_parameter: _Parameter | None = None
    headers: dict[str, _HeaderValue] | None = None
    allowed_endpoints: tuple[_Endpoint, ...] | None = None
    extra_endpoints: tuple[_Endpoint, ...] | None = None
    allowed_methods: tuple[_Method, ...] | None = None
    param_whitelist: dict[str, tuple[_Pattern, ...]] | None = None
    stream_usage: Annotated[StreamUsage, kinds.choice(StreamUsage)] | None = None
    allowed_origins: tuple[Annotated[str, kinds.ORIGIN], ...] | None = None
    required_headers: tuple[Annotated[str, kinds.HEADER_NAME], ...] | None = None
    rewrite_urls: dict[str, tuple[_UrlField, ...]] | None = None
    timeouts: _Timeouts | None = None
    connection: _Connection | None = None


class _File(Struct, frozen=True):
    default_api: _Text | None = None
    apis: dict[str, Api | None] | None = None


class _BuiltIn(Api, frozen=True):
    """More keys, which only `builtin.yaml` can have.

    Attributes:
        example: of `base_url`, for a provider whose customers each have their own.
        models: where an endpoint names its models, if neither its path nor `model` does, see `Provider.models_of`.
    """

    shape: Annotated[Shape, kinds.choice(Shape)] | None = None
    example: Annotated[str, kinds.BASE_URL] | None = None
    models: dict[str, tuple[_Text, ...]] | None = None


class _BuiltInFile(Struct, frozen=True):
    default_api: _Text
    apis: dict[str, _BuiltIn]


@cache
def _built_in() -> _BuiltInFile:
    document = Document(str(_BUILT_IN))
    content = document.read(_BuiltInFile, _NEEDS)
    if content is None or document.mistakes:
        raise SettingsError(document.mistakes)
    return content


def load(settings: Settings) -> Providers:
    if settings.api_config_path is None:
        apis = {name: api for name, api in _built_in().apis.items() if api.base_url}
        default, mistakes = _built_in().default_api, []
        if (segment := metrics_segment(settings)) in apis:
            reason = f"/{segment} is the path of a provider; choose another path"
            mistakes.append(f"METRICS_PATH={settings.metrics_path!r}: {reason}")
    else:
        document = Document(str(settings.api_config_path))
        apis, default = _read(document, settings)
        mistakes = document.mistakes
    if settings.default_api_provider is not None:
        default = settings.default_api_provider
        if apis and default not in apis:
            mistakes.append(f"{assignment('DEFAULT_API_PROVIDER', default)}: {_no_such(default, apis)}")
    if settings.openai_api_url is not None:
        try:
            openai = structs.replace(apis.get("openai", _BuiltIn()), base_url=split_base_url(settings.openai_api_url))
            _check_base_path(openai)
        except InvalidValue as error:
            mistakes.append(f"{assignment('OPENAI_API_URL', settings.openai_api_url)}: {error}")
        else:
            apis = {name: openai if name == "openai" else api for name, api in apis.items()}
    if mistakes:
        raise SettingsError(mistakes)
    by_name = {name: _provider(name, api, api.base_url, settings) for name, api in apis.items() if api.base_url}
    return Providers(by_name, by_name[default], frozenset(_built_in().apis) - frozenset(by_name))


def _read(document: Document, settings: Settings) -> tuple[dict[str, _BuiltIn], str]:
    """Read the provider file; returns the providers, also those with mistakes, and the name of the default."""
    content = document.read(_File, _NEEDS)
    if content is None:
        return {}, ""
    apis: dict[str, _BuiltIn] = {}
    for name, api in (content.apis or {}).items():
        given = {} if api is None else {key: value for key, value in structs.asdict(api).items() if value is not None}
        apis[name] = structs.replace(_built_in().apis.get(name, _BuiltIn()), **given)
        _check_name(document, name, settings)
        if api is not None:
            _check_api(document, name, apis[name], settings)
    names, default = list(apis), content.default_api
    if not names:
        if "apis" not in document.data:
            document.report((), "apis is missing; it must contain at least one provider")
        elif content.apis is not None:
            document.report(("apis",), "apis contains no provider; add at least one")
    elif default is not None and default not in names:
        document.report(("default_api",), f"{assignment('default_api', default)}: {_no_such(default, names)}")
    elif default is None and "openai" in names:
        default = "openai"
    elif default is None and len(names) == 1:
        default = names[0]
    elif default is None and settings.default_api_provider is None:
        document.report(("apis",), f"default_api is missing; set it to one of {', '.join(names)}")
    return apis, default or ""


def _no_such(name: str, names: Collection[str]) -> str:
    if name in _built_in().apis:
        example = _built_in().apis[name].example
        entry = "{}" if example is None else f"{{base_url: {example}}}"
        return f"this provider is not configured; add apis: {{{name}: {entry}}} to the provider file (API_CONFIG_PATH)"
    return f"there is no such provider{did_you_mean(name, names)}; allowed: {', '.join(names)}"


def _check_name(document: Document, name: str, settings: Settings) -> None:
    if name in reserved(settings):
        document.report(("apis", name), f"apis.{name}: the server itself uses /{name}; choose another name")
    elif not _NAME.fullmatch(name):
        rule = "1 to 32 lower-case letters, digits, - and _, with a letter first"
        document.report(("apis", name), f"apis.{name}: this is not a valid name; allowed: {rule}")


def _check_api(document: Document, name: str, api: _BuiltIn, settings: Settings) -> None:
    given = document.data["apis"][name]
    base_url = api.example or "https://api.example.com"
    for key, example in (("base_url", base_url), ("allowed_endpoints", "[/v1/chat/completions]")):
        if getattr(api, key) is None and key not in given:
            document.report(("apis", name), f"apis.{name}.{key} is missing; set it, e.g. {key}: {example}")
    if "base_url" in given and not (name == "openai" and settings.openai_api_url):
        try:
            _check_base_path(api, built_in="allowed_endpoints" not in given)
        except InvalidValue as error:
            document.report(("apis", name, "base_url"), f"apis.{name}.base_url: {error}")
    if api.auth_parameter is not None and api.auth != "query":
        place = ("apis", name, "auth_parameter")
        document.report(place, f"{'.'.join(place)} has no effect without auth: query; remove it")
    _check_headers(document, name, api)
    for pattern in api.rewrite_urls or {}:
        try:
            endpoints.check(pattern)
        except InvalidValue as error:
            document.report(("apis", name, "rewrite_urls", pattern), f"apis.{name}.rewrite_urls.{pattern}: {error}")
    names: dict[str, str] = {}
    for parameter in api.param_whitelist or {}:
        twin = names.setdefault(parameter.casefold(), parameter)
        if twin != parameter:
            where = ("apis", name, "param_whitelist", parameter)
            document.report(where, f"{'.'.join(where)} and {twin} differ only in case; remove one")


def _check_headers(document: Document, name: str, api: Api) -> None:
    seen: set[str] = set()
    for header in api.headers or {}:
        lower, reason = header.lower(), ""
        if not re.fullmatch(r"[a-z][a-z0-9-]*", lower):
            reason = f"allowed: {kinds.HEADER_NAME.allowed}"
        elif lower.encode("ascii") in _NOT_STATIC:
            reason = "this header cannot be set, because the connection, the credential or the body determines it"
        elif lower in seen:
            reason = "this header is set twice; remove one"
        if reason:
            document.report(("apis", name, "headers", header), f"apis.{name}.headers.{header}: {reason}")
        seen.add(lower)


def _check_base_path(api: _BuiltIn, *, built_in: bool = True) -> None:
    """Refuse a base URL whose path is in the endpoints too, or lacks the part that built-in ones need."""
    if api.base_url is None:
        return
    base, paths = api.base_url[1].decode("ascii"), (*(api.allowed_endpoints or ()), *(api.extra_endpoints or ()))
    if base.endswith("/v1") and any(path.startswith("/v1/") for path in paths):
        raise InvalidValue(
            "it ends in /v1, and the endpoints begin with /v1, so requests would go to /v1/v1/…; remove /v1 from it"
        )
    if base and (doubled := next((path for path in paths if path.startswith(f"{base}/")), None)):
        raise InvalidValue(f"it ends in {base}, and the endpoint {doubled} begins with it; remove it from one of them")
    if built_in and not base and api.example and urlsplit(api.example).path:
        raise InvalidValue(f"the URL has no path; write it like {api.example}")


def _provider(name: str, api: _BuiltIn, base_url: tuple[Origin, bytes], settings: Settings) -> Provider:
    paths, origins = api.allowed_endpoints or (), api.allowed_origins or ()
    times = api.timeouts or _Timeouts()
    idle_connections = (api.connection or _Connection()).max_idle_conns_per_host
    read = times.request or settings.request_timeout
    whitelist = dict(api.param_whitelist or {})
    if "model" in whitelist:
        others = {member for members in (api.models or {}).values() for member in members if "." not in member}
        whitelist = {**dict.fromkeys(sorted(others), whitelist["model"]), **whitelist}
    return Provider(
        name=name,
        origin=base_url[0],
        base_path=base_url[1],
        auth=api.auth or "bearer",
        auth_parameter=api.auth_parameter or "key",
        shape=api.shape or _shape(paths),
        allowed_endpoints=(*paths, *(api.extra_endpoints or ())),
        allowed_methods=frozenset(api.allowed_methods or _METHODS),
        param_whitelist=whitelist,
        models=api.models or {},
        stream_usage=api.stream_usage or "off",
        allowed_origins=frozenset(() if "*" in origins else (origin.encode("ascii") for origin in origins)),
        required_headers=frozenset(name.lower().encode("ascii") for name in api.required_headers or ()),
        rewrite_urls=api.rewrite_urls or {},
        public_url=settings.public_url,
        headers={name.lower().encode("ascii"): value.encode("ascii") for name, value in (api.headers or {}).items()},
        timeouts=Timeouts(connect=times.connect or 10.0, response_header=times.response_header or read, read=read),
        keep_alive=times.idle or 90.0,
        max_idle_conns_per_host=_IDLE_CONNECTIONS if idle_connections is None else idle_connections,
    )


def _shape(endpoints: Iterable[str]) -> Shape:
    """Whose API a provider has; OpenAI's, unless the endpoints are clearly Anthropic's."""
    last = {endpoint.rpartition("/")[2] for endpoint in endpoints}
    return "anthropic" if "messages" in last and not last & {"completions", "responses"} else "openai"
