from __future__ import annotations

from pathlib import Path

import pytest

from llm_proxy.gateway.providers.provider import Timeouts
from llm_proxy.gateway.upstream.origin import Origin
from tests.gateway.apis_yaml import load, mistakes


class TestWithoutFile:
    def test_openai_and_anthropic_are_there(self, tmp_path: Path) -> None:
        providers = load(tmp_path, None)
        assert list(providers.by_name) == ["openai", "anthropic"]
        assert providers.default.name == "openai"
        assert providers.default.timeouts == Timeouts(connect=10, response_header=600, idle=90, request=600)

    def test_settings_choose_default_address_and_timeout(self, tmp_path: Path) -> None:
        environ = {
            "DEFAULT_API_PROVIDER": "anthropic",
            "OPENAI_API_URL": "http://127.0.0.1:9/x",
            "REQUEST_TIMEOUT": "7s",
        }
        providers = load(tmp_path, None, **environ)
        openai = providers.by_name["openai"]
        assert providers.default.name == "anthropic"
        assert (openai.origin, openai.base_path) == (Origin("http", "127.0.0.1", 9), b"/x")
        assert openai.timeouts.response_header == openai.timeouts.request == 7

    def test_wrong_ones_are_reported_together(self, tmp_path: Path) -> None:
        assert mistakes(tmp_path, None, DEFAULT_API_PROVIDER="antropic", OPENAI_API_URL="https://x.example/v1") == [
            (
                "DEFAULT_API_PROVIDER='antropic': there is no such provider; did you mean anthropic?; "
                "allowed: openai, anthropic"
            ),
            (
                "OPENAI_API_URL='https://x.example/v1': it ends in /v1, and the endpoints begin with /v1, so that "
                "requests would go to /v1/v1/…; leave /v1 off"
            ),
        ]


FULL = """
    default_api: groq
    apis:
      groq:
        base_url: https://api.groq.com/openai
        auth: api-key
        allowed_endpoints:
          - /v1/chat/completions
          - /v1/models/{id}
        allowed_methods: [get, POST]
        param_whitelist:
          model: [gpt-4o, "gpt-4.1-*", 7]
          stream: no
        allowed_origins: [https://App.example.com, http://localhost:3000]
        required_headers: [X-Team]
        timeouts: {connect: 2s, response_header: 1m30s, idle: 45, request: 500ms}
        connection: {max_idle_conns_per_host: 12}
      claude:
        base_url: https://claude.example:8443
        allowed_endpoints: [/v1/messages]
      openai: {}
"""


class TestFile:
    @pytest.mark.parametrize(
        ("endpoints", "shape"),
        [
            ("[/v1/messages]", "anthropic"),
            ("[/v1/chat/completions]", "openai"),
            ("[/v1/messages, /v1/chat/completions]", "openai"),
            ("[/v1/messages, /v1/responses]", "openai"),
            ("[/generate]", "openai"),
        ],
    )
    def test_the_endpoints_tell_whose_api_it_is(self, tmp_path: Path, endpoints: str, shape: str) -> None:
        text = f"apis: {{x: {{base_url: 'https://x.example', allowed_endpoints: {endpoints}}}}}"
        assert load(tmp_path, text).default.shape == shape

    def test_every_key_arrives(self, tmp_path: Path) -> None:
        providers = load(tmp_path, FULL)
        groq = providers.default
        assert list(providers.by_name) == ["groq", "claude", "openai"]
        assert groq.name == "groq"
        assert (groq.origin, groq.base_path) == (Origin("https", "api.groq.com", 443), b"/openai")
        assert groq.auth == "api-key"
        assert groq.shape == "openai"
        assert groq.allowed_endpoints == ("/v1/chat/completions", "/v1/models/{id}")
        assert groq.allowed_methods == {"GET", "POST"}
        assert groq.param_whitelist == {"model": ("gpt-4o", "gpt-4.1-*", "7"), "stream": ("false",)}
        assert groq.allowed_origins == {"https://app.example.com", "http://localhost:3000"}
        assert groq.required_headers == {"x-team"}
        assert groq.timeouts == Timeouts(connect=2, response_header=90, idle=45, request=0.5)
        assert groq.max_idle_conns_per_host == 12

    def test_missing_keys_have_defaults(self, tmp_path: Path) -> None:
        claude = load(tmp_path, FULL, REQUEST_TIMEOUT="20s").by_name["claude"]
        assert claude.auth == "bearer"
        assert claude.shape == "anthropic"
        assert claude.allowed_methods == {"GET", "POST", "PUT", "PATCH", "DELETE"}
        assert not claude.needs_body
        assert claude.timeouts == Timeouts(connect=10, response_header=20, idle=90, request=20)
        assert claude.max_idle_conns_per_host == 1000

    def test_a_built_in_name_starts_from_the_built_in(self, tmp_path: Path) -> None:
        openai = load(tmp_path, FULL).by_name["openai"]
        assert openai.origin.host == "api.openai.com"
        assert "/v1/responses" in openai.allowed_endpoints
        anthropic = load(tmp_path, "apis: {anthropic: {timeouts: {request: 9s}}}").default
        assert (anthropic.auth, anthropic.shape) == ("x-api-key", "anthropic")
        assert anthropic.timeouts == Timeouts(connect=10, response_header=9, idle=90, request=9)

    def test_the_openai_address_of_the_settings_goes_before_the_files(self, tmp_path: Path) -> None:
        text = "apis: {openai: {base_url: 'https://file.example'}}"
        assert load(tmp_path, text).default.origin.host == "file.example"
        assert load(tmp_path, text, OPENAI_API_URL="http://env.example").default.origin.host == "env.example"

    def test_the_default_goes_without_saying_where_there_is_one_only(self, tmp_path: Path) -> None:
        one = "apis: {x: {base_url: 'https://x.example', allowed_endpoints: [/a]}}"
        assert load(tmp_path, one).default.name == "x"
        assert load(tmp_path, FULL, DEFAULT_API_PROVIDER="claude").default.name == "claude"

    def test_anchors_share_values(self, tmp_path: Path) -> None:
        text = """
            apis:
              a: {base_url: "https://a.example", allowed_endpoints: &paths [/v1/chat/completions]}
              openai: {allowed_endpoints: *paths}
        """
        assert load(tmp_path, text).by_name["openai"].allowed_endpoints == ("/v1/chat/completions",)
