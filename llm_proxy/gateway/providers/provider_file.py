"""Reads the provider file (`API_CONFIG_PATH`) and settles which providers there are.

The file is YAML:

    default_api: openai
    apis:
      openai:                                  # also the prefix /openai/…
        base_url: https://api.openai.com
        auth: bearer                           # or x-api-key, api-key
        allowed_endpoints: [/v1/chat/completions, "/v1/models/{model}"]
        allowed_methods: [GET, POST]
        param_whitelist: {model: [gpt-4o, "gpt-4.1-*"]}
        allowed_origins: [https://app.example.com]
        required_headers: [x-team]
        timeouts: {connect: 5s, response_header: 2m, idle: 90s, request: 5m}
        connection: {max_idle_conns_per_host: 50}

It replaces the built-in providers; one that has a built-in's name starts from the built-in's values. Every mistake is
reported, all at once, each with its line and what is allowed: a key that is misspelt and passed over would be a limit
that is not there.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING

from attrs import define, field

from llm_proxy.config import Mistake, SettingsError
from llm_proxy.config.checks import metrics_segment, reserved
from llm_proxy.gateway.providers import builtin
from llm_proxy.gateway.providers.marked_yaml import Document, Member, nearest
from llm_proxy.gateway.providers.provider import Provider, Providers, split_base_url
from llm_proxy.gateway.providers.provider_entry import DOUBLE_V1, doubles_v1, read_entry

if TYPE_CHECKING:
    from llm_proxy.config import Settings

_NAME = re.compile(r"[a-z][a-z0-9_-]{0,31}")


def load(settings: Settings) -> Providers:
    """Settle the providers from the settings: those of the file, or the built-in ones where no file is set.

    Raises `SettingsError` with everything that is wrong.
    """
    problems: list[Mistake] = []
    by_name = builtin.built_in(_openai_url(settings, problems), settings.request_timeout)
    names, default = list(by_name), "openai"
    if settings.api_config_path is not None:
        file = _File(Document(str(settings.api_config_path)), by_name, settings)
        by_name = file.read()
        names, default = file.names, file.default
        problems += file.document.problems
    elif metrics_segment(settings) in by_name:
        reason = f"/{metrics_segment(settings)} is the path of a provider; choose another path"
        problems.append(Mistake(f"METRICS_PATH={settings.metrics_path!r}", reason))
    if settings.default_api_provider is not None:
        default = settings.default_api_provider
        if names and default not in names:
            reason = f"there is no such provider{nearest(default, names)}; allowed: {', '.join(names)}"
            problems.append(Mistake(f"DEFAULT_API_PROVIDER={default!r}", reason))
    openai = by_name.get("openai")
    if settings.openai_api_url is not None and openai is not None and doubles_v1(openai):
        problems.append(_openai_problem(settings.openai_api_url, DOUBLE_V1))
    if problems:
        raise SettingsError(problems)
    return Providers(by_name, by_name[default])


def _openai_url(settings: Settings, problems: list[Mistake]) -> str:
    """The address of OpenAI; a wrong one is reported, and OpenAI's own returned for the sake of further checks."""
    url = settings.openai_api_url or builtin.OPENAI_URL
    try:
        split_base_url(url)
    except ValueError as error:
        problems.append(_openai_problem(url, str(error)))
        return builtin.OPENAI_URL
    return url


def _openai_problem(url: str, reason: str) -> Mistake:
    """A problem with `OPENAI_API_URL`; one that may hold a password is not shown."""
    return Mistake("OPENAI_API_URL (value hidden)" if "@" in url else f"OPENAI_API_URL={url!r}", reason)


@define
class _File:
    """The provider file while it is read."""

    document: Document
    _built_in: Mapping[str, Provider]
    _settings: Settings
    #: The providers that the file tells of, those with mistakes included.
    names: list[str] = field(factory=list)
    #: The name that `default_api` says, or that goes without saying; empty if there is none.
    default: str = ""

    def read(self) -> dict[str, Provider]:
        """The providers that the file sets; every mistake goes into the document's problems."""
        root = self.document.read()
        if root is None:
            return {}
        top = self.document.members(root, "", ("default_api", "apis"))
        if "apis" not in top:
            if top:
                self.document.report(root, "apis is missing; it has to hold at least one provider")
            return {}
        apis = top["apis"]
        members = self.document.members(apis.value, apis.place)
        self.names = list(members)
        if apis.value.value == []:
            self.document.report(apis.key, "apis holds no provider; name at least one")
        self._read_default(top.get("default_api"), apis)
        providers = {name: self._provider(member) for name, member in members.items()}
        return {name: provider for name, provider in providers.items() if provider is not None}

    def _read_default(self, default: Member | None, apis: Member) -> None:
        if default is not None:
            name = self.document.parsed(default, str, "the name of a provider")
            if name is None:
                return
            self.default = name
            if self.names and name not in self.names:
                reason = f"default_api: there is no provider {name!r}{nearest(name, self.names)}"
                self.document.report(default.value, f"{reason}; allowed: {', '.join(self.names)}")
        elif "openai" in self.names:
            self.default = "openai"
        elif len(self.names) == 1:
            self.default = self.names[0]
        elif self.names and self._settings.default_api_provider is None:
            self.document.report(apis.key, f"default_api is missing; choose one of {', '.join(self.names)}")

    def _provider(self, api: Member) -> Provider | None:
        settings = self._settings
        if api.name in reserved(settings):
            self.document.report(api.key, f"{api.place}: the path /{api.name} is the server's own; choose another name")
        elif not _NAME.fullmatch(api.name):
            rule = "1 to 32 lower-case letters, digits, - and _, beginning with a letter"
            self.document.report(api.key, f"{api.place}: this cannot be a provider's name; allowed: {rule}")
        return read_entry(
            self.document,
            api,
            self._built_in.get(api.name),
            settings.request_timeout,
            address_is_set=api.name == "openai" and settings.openai_api_url is not None,
        )
