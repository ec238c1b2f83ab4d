from __future__ import annotations

from pathlib import Path

import pytest

from llm_proxy.gateway.upstream.connector import Origin, Timeouts
from tests.gateway.apis_yaml import load, mistakes

NAMES = "openai, anthropic, gemini, openrouter, groq, mistral, deepseek, xai, together, cohere"


class TestWithoutFile:
    def test_the_providers_are_those_with_one_base_url_for_all(self, tmp_path: Path) -> None:
        providers = load(tmp_path, None)
        assert ", ".join(providers.by_name) == NAMES
        assert providers.unconfigured == {"azure", "bedrock", "ollama", "vertex", "vllm"}
        assert providers.default.name == "openai"
        assert providers.default.timeouts == Timeouts(connect=10, response_header=600, read=600)
        assert providers.default.keep_alive == 90

    def test_a_default_without_base_url_is_reported_with_what_to_write(self, tmp_path: Path) -> None:
        assert mistakes(tmp_path, None, DEFAULT_API_PROVIDER="ollama") == [
            (
                "DEFAULT_API_PROVIDER='ollama': this provider is not configured; add apis: {ollama: {base_url: "
                "http://localhost:11434}} to the provider file (API_CONFIG_PATH)"
            )
        ]

    def test_settings_set_default_url_and_timeout(self, tmp_path: Path) -> None:
        environ = {
            "DEFAULT_API_PROVIDER": "anthropic",
            "OPENAI_API_URL": "http://127.0.0.1:9/x",
            "REQUEST_TIMEOUT": "7s",
        }
        providers = load(tmp_path, None, **environ)
        openai = providers.by_name["openai"]
        assert providers.default.name == "anthropic"
        assert (openai.origin, openai.base_path) == (Origin("http", "127.0.0.1", 9), b"/x")
        assert openai.timeouts.response_header == openai.timeouts.read == 7

    def test_wrong_settings_are_reported_together(self, tmp_path: Path) -> None:
        assert mistakes(tmp_path, None, DEFAULT_API_PROVIDER="antropic", OPENAI_API_URL="https://x.example/v1") == [
            (f"DEFAULT_API_PROVIDER='antropic': there is no such provider; did you mean anthropic?; allowed: {NAMES}"),
            (
                "OPENAI_API_URL='https://x.example/v1': it ends in /v1, and the endpoints begin with /v1, so "
                "requests would go to /v1/v1/…; remove /v1 from it"
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
          user: [on, off]
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
    def test_the_endpoints_decide_the_shape_of_errors(self, tmp_path: Path, endpoints: str, shape: str) -> None:
        text = f"apis: {{x: {{base_url: 'https://x.example', allowed_endpoints: {endpoints}}}}}"
        assert load(tmp_path, text).default.shape == shape

    def test_every_key_sets_its_value(self, tmp_path: Path) -> None:
        providers = load(tmp_path, FULL)
        groq = providers.default
        assert list(providers.by_name) == ["groq", "claude", "openai"]
        assert groq.name == "groq"
        assert (groq.origin, groq.base_path) == (Origin("https", "api.groq.com", 443), b"/openai")
        assert groq.auth == "api-key"
        assert groq.shape == "openai"
        assert groq.allowed_endpoints == ("/v1/chat/completions", "/v1/models/{id}")
        assert groq.allowed_methods == {"GET", "POST"}
        assert groq.param_whitelist == {
            "model": ("gpt-4o", "gpt-4.1-*", "7"),
            "stream": ("false",),
            "user": ("true", "false"),
        }
        assert groq.allowed_origins == {b"https://app.example.com", b"http://localhost:3000"}
        assert groq.required_headers == {b"x-team"}
        assert groq.timeouts == Timeouts(connect=2, response_header=90, read=0.5)
        assert groq.keep_alive == 45
        assert groq.max_idle_conns_per_host == 12

    def test_missing_keys_have_defaults(self, tmp_path: Path) -> None:
        claude = load(tmp_path, FULL, REQUEST_TIMEOUT="20s").by_name["claude"]
        assert claude.auth == "bearer"
        assert claude.shape == "anthropic"
        assert claude.allowed_methods == {"GET", "POST", "PUT", "PATCH", "DELETE"}
        assert not claude.needs_body
        assert claude.timeouts == Timeouts(connect=10, response_header=20, read=20)
        assert claude.keep_alive == 90
        assert claude.max_idle_conns_per_host == 1000

    def test_a_built_in_name_has_the_built_in_values_as_defaults(self, tmp_path: Path) -> None:
        openai = load(tmp_path, FULL).by_name["openai"]
        assert openai.origin.host == "api.openai.com"
        assert "/v1/responses" in openai.allowed_endpoints
        anthropic = load(tmp_path, "apis: {anthropic: {timeouts: {request: 9s}}}").default
        assert (anthropic.auth, anthropic.shape) == ("x-api-key", "anthropic")
        assert anthropic.timeouts == Timeouts(connect=10, response_header=9, read=9)
        assert anthropic.keep_alive == 90

    def test_openai_api_url_overrides_the_file(self, tmp_path: Path) -> None:
        text = "apis: {openai: {base_url: 'https://file.example'}}"
        assert load(tmp_path, text).default.origin.host == "file.example"
        assert load(tmp_path, text, OPENAI_API_URL="http://env.example").default.origin.host == "env.example"

    def test_a_single_provider_is_the_default(self, tmp_path: Path) -> None:
        one = "apis: {x: {base_url: 'https://x.example', allowed_endpoints: [/a]}}"
        assert load(tmp_path, one).default.name == "x"
        assert load(tmp_path, FULL, DEFAULT_API_PROVIDER="claude").default.name == "claude"

    def test_a_star_allows_every_origin(self, tmp_path: Path) -> None:
        provider = load(tmp_path, 'apis: {openai: {allowed_origins: [https://app.example.com, "*"]}}').default
        assert provider.refusal("GET", b"/v1/models", [(b"origin", b"https://evil.example")]) is None

    def test_a_list_of_one_value_needs_no_brackets(self, tmp_path: Path) -> None:
        provider = load(tmp_path, "apis: {openai: {allowed_methods: GET, allowed_endpoints: /v1/models}}").default
        assert provider.allowed_methods == {"GET"}
        assert provider.allowed_endpoints == ("/v1/models",)

    def test_an_alias_repeats_the_value_of_its_anchor(self, tmp_path: Path) -> None:
        text = """
            apis:
              a: {base_url: "https://a.example", allowed_endpoints: &paths [/v1/chat/completions]}
              openai: {allowed_endpoints: *paths}
        """
        assert load(tmp_path, text).by_name["openai"].allowed_endpoints == ("/v1/chat/completions",)
