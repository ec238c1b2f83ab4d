"""Reads one provider of the provider file: each key's form, what it may hold, and what holds where it is missing."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import attrs
from yaml.nodes import MappingNode, SequenceNode

from llm_proxy.config import parse_duration
from llm_proxy.gateway.faults import Shape
from llm_proxy.gateway.providers import builtin
from llm_proxy.gateway.providers.endpoints import Endpoints
from llm_proxy.gateway.providers.marked_yaml import Document, Member
from llm_proxy.gateway.providers.provider import Provider, split_base_url

DOUBLE_V1 = "it ends in /v1, and the endpoints begin with /v1, so that requests would go to /v1/v1/…; leave /v1 off"

#: What a provider without `allowed_methods` allows.
_DEFAULT_METHODS = frozenset({"GET", "POST", "PUT", "PATCH", "DELETE"})

_AUTHS = ("bearer", "x-api-key", "api-key")
_METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")
_HEADER_NAME = re.compile(r"[A-Za-z][A-Za-z0-9-]*")
_ORIGIN = re.compile(r"https?://(?:\[[0-9a-f:.]+\]|[a-z0-9._-]+)(?::[0-9]{1,5})?")

Values = dict[str, Any]


def read_entry(
    document: Document, api: Member, start: Provider | None, request_timeout: float, *, address_is_set: bool
) -> Provider | None:
    """Put one provider together; mistakes go into the document's problems.

    Args:
        document: the file.
        api: the provider's member of `apis`.
        start: the built-in provider of the same name, whose values hold where the file has none.
        request_timeout: the setting of that name, in seconds.
        address_is_set: whether the address of `start` comes from the settings, which go before the file.
    """
    members = document.members(api.value, api.place, tuple(READERS))
    values: Values = {}
    for name, member in members.items():
        values |= READERS[name](document, member)
    if start is None and isinstance(api.value, MappingNode):
        for name, example in (("base_url", "https://api.example.com"), ("allowed_endpoints", "[/v1/chat/completions]")):
            if name not in members:
                document.report(api.key, f"{api.place}.{name} is missing; set it, such as {name}: {example}")
    if address_is_set:
        values = {name: value for name, value in values.items() if name not in ("origin", "base_path")}
    deadlines = values.pop("timeouts", {})
    timeouts = builtin.default_timeouts(deadlines.get("request", request_timeout))
    values["timeouts"] = attrs.evolve(timeouts, **deadlines)
    if start is not None:
        provider = attrs.evolve(start, **values)
    elif "origin" in values and "allowed_endpoints" in values:
        values.setdefault("auth", "bearer")
        values.setdefault("allowed_methods", _DEFAULT_METHODS)
        values.setdefault("max_idle_conns_per_host", builtin.MAX_IDLE_CONNECTIONS)
        provider = Provider(name=api.name, shape=_shape(values["allowed_endpoints"]), **values)
    else:
        return None
    if "base_path" in values and doubles_v1(provider):
        document.report(members["base_url"].value, f"{members['base_url'].place}: {DOUBLE_V1}")
    return provider


def doubles_v1(provider: Provider) -> bool:
    """Whether base URL and endpoints both name the version, which is nearly always one time too many."""
    return provider.base_path.endswith(b"/v1") and any(path.startswith("/v1/") for path in provider.allowed_endpoints)


def _shape(endpoints: tuple[str, ...]) -> Shape:
    """Whose API a provider speaks, to judge by its endpoints; OpenAI's unless it is clearly Anthropic's."""
    last = {endpoint.rpartition("/")[2] for endpoint in endpoints}
    return "anthropic" if "messages" in last and "completions" not in last and "responses" not in last else "openai"


def _base_url(document: Document, member: Member) -> Values:
    found = document.parsed(member, split_base_url, "a URL such as https://api.example.com")
    return {} if found is None else {"origin": found[0], "base_path": found[1]}


def _auth(document: Document, member: Member) -> Values:
    found = document.parsed(member, _one_of(_AUTHS), ", ".join(_AUTHS))
    return {} if found is None else {"auth": found}


def _endpoints(document: Document, member: Member) -> Values:
    found = document.parsed_list(member, _endpoint, "paths such as /v1/chat/completions or /v1/models/{id}")
    return {"allowed_endpoints": found} if found else {}


def _endpoint(text: str) -> str:
    Endpoints([text])
    return text


def _methods(document: Document, member: Member) -> Values:
    found = document.parsed_list(member, lambda text: _one_of(_METHODS)(text.upper()), ", ".join(_METHODS))
    return {"allowed_methods": frozenset(found)} if found else {}


def _whitelist(document: Document, member: Member) -> Values:
    whitelist: dict[str, tuple[str, ...]] = {}
    folded: dict[str, str] = {}
    for name, globs in document.members(member.value, member.place).items():
        twin = folded.setdefault(name.casefold(), name)
        if twin != name:
            document.report(globs.key, f"{globs.place} differs from {twin} by its case only; keep one")
        allowed = "values, with * for any text, such as [gpt-4o, gpt-4.1-*]"
        if isinstance(globs.value, (MappingNode, SequenceNode)):
            whitelist[name] = document.parsed_list(globs, str, allowed)
        elif (value := document.parsed(globs, str, allowed)) is not None:
            whitelist[name] = (value,)
    return {"param_whitelist": whitelist}


def _origins(document: Document, member: Member) -> Values:
    found = document.parsed_list(member, _origin, "* or origins such as https://app.example.com")
    return {"allowed_origins": frozenset(found)}


def _origin(text: str) -> str:
    origin = text.lower()
    if origin != "*" and not _ORIGIN.fullmatch(origin):
        raise ValueError
    return origin


def _headers(document: Document, member: Member) -> Values:
    found = document.parsed_list(member, _header, "names of headers such as x-team")
    return {"required_headers": frozenset(found)}


def _header(text: str) -> str:
    if not _HEADER_NAME.fullmatch(text):
        raise ValueError
    return text.lower()


def _timeouts(document: Document, member: Member) -> Values:
    deadlines = {
        name: document.parsed(
            deadline, _duration, "a duration above zero such as 1h30m, 90s, 500ms, or a number of seconds"
        )
        for name, deadline in document.members(
            member.value, member.place, ("connect", "response_header", "idle", "request")
        ).items()
    }
    return {"timeouts": {name: seconds for name, seconds in deadlines.items() if seconds is not None}}


def _duration(text: str) -> float:
    try:
        seconds = parse_duration(text)
    except ValueError:
        seconds = 0.0
    if seconds == 0:
        raise ValueError
    return seconds


def _connection(document: Document, member: Member) -> Values:
    members = document.members(member.value, member.place, ("max_idle_conns_per_host",))
    found = {
        name: document.parsed(number, _connections, "a whole number from 0 to 10000")
        for name, number in members.items()
    }
    return {name: number for name, number in found.items() if number is not None}


def _connections(text: str) -> int:
    if not re.fullmatch(r"[0-9]{1,5}", text) or int(text) > 10_000:
        raise ValueError
    return int(text)


def _one_of(words: tuple[str, ...]) -> Callable[[str], str]:
    def parse(text: str) -> str:
        if text not in words:
            raise ValueError
        return text

    return parse


#: What reads each key.
READERS: dict[str, Callable[[Document, Member], Values]] = {
    "base_url": _base_url,
    "auth": _auth,
    "allowed_endpoints": _endpoints,
    "allowed_methods": _methods,
    "param_whitelist": _whitelist,
    "allowed_origins": _origins,
    "required_headers": _headers,
    "timeouts": _timeouts,
    "connection": _connection,
}
