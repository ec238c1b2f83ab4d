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

from msgspec import Struct, structs

from llm_proxy.config import Settings, SettingsError, kinds
from llm_proxy.config.checks import metrics_segment, reserved
from llm_proxy.config.kinds import InvalidValue, Kind, assignment, did_you_mean
from llm_proxy.errors import Shape
from llm_proxy.gateway.providers.document import Document
from llm_proxy.gateway.providers.endpoints import Endpoints
from llm_proxy.gateway.providers.provider import Auth, Provider, Providers, split_base_url
from llm_proxy.gateway.upstream.origin import Origin, Timeouts

_BUILT_IN: Final = Path(__file__).with_name("builtin.yaml")
_NAME: Final = re.compile(r"[a-z][a-z0-9_-]{0,31}")
_METHODS: Final = frozenset({"GET", "POST", "PUT", "PATCH", "DELETE"})
#: The default of MAX_CONCURRENT_REQUESTS: with fewer, a busy proxy opens and closes connections all the time.
_IDLE_CONNECTIONS: Final = 1000


def _endpoint(text: str) -> str:
    Endpoints([text])
    return text


_Text = Annotated[str, kinds.TEXT]
_Pattern = Annotated[str, Kind("pattern", "a value such as gpt-4o, or a pattern such as gpt-4.1-*", str)]
_Duration = Annotated[float, kinds.duration()]
_BaseUrl = Annotated[tuple[Origin, bytes], Kind("URL", kinds.BASE_URL.allowed, split_base_url)]
_Endpoint = Annotated[str, Kind("endpoint", "a path such as /v1/chat/completions or /v1/models/{id}", _endpoint)]
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
    allowed_endpoints: tuple[_Endpoint, ...] | None = None
    allowed_methods: tuple[_Method, ...] | None = None
    param_whitelist: dict[str, tuple[_Pattern, ...]] | None = None
    allowed_origins: tuple[Annotated[str, kinds.ORIGIN], ...] | None = None
    required_headers: tuple[Annotated[str, kinds.HEADER_NAME], ...] | None = None
    timeouts: _Timeouts | None = None
    connection: _Connection | None = None


class _File(Struct, frozen=True):
    default_api: _Text | None = None
    apis: dict[str, Api | None] | None = None


class _BuiltIn(Api, frozen=True):
    """More keys, which only `builtin.yaml` can have."""

    shape: Annotated[Shape, kinds.choice(Shape)] | None = None
    denied_endpoints: dict[str, _Text] | None = None


class _BuiltInFile(Struct, frozen=True):
    default_api: _Text
    apis: dict[str, _BuiltIn]


@cache
def _built_in() -> _BuiltInFile:
    document = Document(str(_BUILT_IN))
    content = document.read(_BuiltInFile)
    if content is None or document.mistakes:
        raise SettingsError(document.mistakes)
    return content


def load(settings: Settings) -> Providers:
    if settings.api_config_path is None:
        apis, default, mistakes = dict(_built_in().apis), _built_in().default_api, []
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
            mistakes.append(f"DEFAULT_API_PROVIDER={default!r}: {_no_such(default, apis)}")
    if settings.openai_api_url is not None:
        try:
            openai = structs.replace(apis.get("openai", _BuiltIn()), base_url=split_base_url(settings.openai_api_url))
            _check_v1(openai)
        except InvalidValue as error:
            mistakes.append(f"{assignment('OPENAI_API_URL', settings.openai_api_url)}: {error}")
        else:
            apis = {name: openai if name == "openai" else api for name, api in apis.items()}
    if mistakes:
        raise SettingsError(mistakes)
    by_name = {name: _provider(name, api, api.base_url, settings) for name, api in apis.items() if api.base_url}
    return Providers(by_name, by_name[default])


def _read(document: Document, settings: Settings) -> tuple[dict[str, _BuiltIn], str]:
    """Read the provider file; returns the providers, also those with mistakes, and the name of the default."""
    content = document.read(_File)
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
        document.report(("default_api",), f"default_api={default!r}: {_no_such(default, names)}")
    elif default is None and "openai" in names:
        default = "openai"
    elif default is None and len(names) == 1:
        default = names[0]
    elif default is None and settings.default_api_provider is None:
        document.report(("apis",), f"default_api is missing; set it to one of {', '.join(names)}")
    return apis, default or ""


def _no_such(name: str, names: Collection[str]) -> str:
    return f"there is no such provider{did_you_mean(name, names)}; allowed: {', '.join(names)}"


def _check_name(document: Document, name: str, settings: Settings) -> None:
    if name in reserved(settings):
        document.report(("apis", name), f"apis.{name}: the server itself uses /{name}; choose another name")
    elif not _NAME.fullmatch(name):
        rule = "1 to 32 lower-case letters, digits, - and _, with a letter first"
        document.report(("apis", name), f"apis.{name}: this is not a valid name; allowed: {rule}")


def _check_api(document: Document, name: str, api: _BuiltIn, settings: Settings) -> None:
    given = document.data["apis"][name]
    for key, example in (("base_url", "https://api.example.com"), ("allowed_endpoints", "[/v1/chat/completions]")):
        if getattr(api, key) is None and key not in given:
            document.report(("apis", name), f"apis.{name}.{key} is missing; set it, e.g. {key}: {example}")
    if "base_url" in given and not (name == "openai" and settings.openai_api_url):
        try:
            _check_v1(api)
        except InvalidValue as error:
            document.report(("apis", name, "base_url"), f"apis.{name}.base_url: {error}")
    names: dict[str, str] = {}
    for parameter in api.param_whitelist or {}:
        twin = names.setdefault(parameter.casefold(), parameter)
        if twin != parameter:
            place = ("apis", name, "param_whitelist", parameter)
            document.report(place, f"{'.'.join(place)} and {twin} differ only in case; remove one")


def _check_v1(api: Api) -> None:
    """Refuse a base URL and endpoints that both contain the version, which is nearly always a mistake."""
    doubled = api.base_url is not None and api.base_url[1].endswith(b"/v1")
    if doubled and any(path.startswith("/v1/") for path in api.allowed_endpoints or ()):
        raise InvalidValue(
            "it ends in /v1, and the endpoints begin with /v1, so requests would go to /v1/v1/…; remove /v1 from it"
        )


def _provider(name: str, api: _BuiltIn, base_url: tuple[Origin, bytes], settings: Settings) -> Provider:
    endpoints, origins = api.allowed_endpoints or (), api.allowed_origins or ()
    times = api.timeouts or _Timeouts()
    idle_connections = (api.connection or _Connection()).max_idle_conns_per_host
    read = times.request or settings.request_timeout
    return Provider(
        name=name,
        origin=base_url[0],
        base_path=base_url[1],
        auth=api.auth or "bearer",
        shape=api.shape or _shape(endpoints),
        allowed_endpoints=endpoints,
        denied_endpoints=api.denied_endpoints or {},
        allowed_methods=frozenset(api.allowed_methods or _METHODS),
        param_whitelist=api.param_whitelist or {},
        allowed_origins=frozenset(() if "*" in origins else (origin.encode("ascii") for origin in origins)),
        required_headers=frozenset(name.lower().encode("ascii") for name in api.required_headers or ()),
        timeouts=Timeouts(connect=times.connect or 10.0, response_header=times.response_header or read, read=read),
        keep_alive=times.idle or 90.0,
        max_idle_conns_per_host=_IDLE_CONNECTIONS if idle_connections is None else idle_connections,
    )


def _shape(endpoints: Iterable[str]) -> Shape:
    """Whose API a provider has; OpenAI's, unless the endpoints are clearly Anthropic's."""
    last = {endpoint.rpartition("/")[2] for endpoint in endpoints}
    return "anthropic" if "messages" in last and not last & {"completions", "responses"} else "openai"
