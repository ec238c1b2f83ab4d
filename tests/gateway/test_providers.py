from __future__ import annotations

import attrs
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from db.records import Account, SealedKey
from llm_proxy.config import Settings
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
from llm_proxy.gateway.providers import provider_file
from llm_proxy.gateway.providers.provider import Auth, Provider, Providers, split_base_url
from llm_proxy.gateway.upstream.connector import Origin
from tests.db.queries.factories import a_project

BUILT_IN = provider_file.load(Settings()).by_name
OPENAI, ANTHROPIC, GEMINI = BUILT_IN["openai"], BUILT_IN["anthropic"], BUILT_IN["gemini"]
PROVIDERS = Providers(BUILT_IN, OPENAI)

STRICT = attrs.evolve(
    OPENAI,
    name="strict",
    base_path=b"/base",
    allowed_endpoints=("/v1/chat/completions", "/v1/files/{id}", "/v1/x/**"),
    allowed_methods=frozenset({"POST", "GET"}),
    param_whitelist={"model": ("gpt-4o",)},
    allowed_origins=frozenset({b"https://app.example"}),
    required_headers=frozenset({b"x-team", b"x-cost-centre"}),
)
TEAM = [(b"x-team", b"a"), (b"x-cost-centre", b"7")]


class TestRoute:
    def test_v1_goes_to_the_projects_provider(self) -> None:
        route = PROVIDERS.route(b"/v1/chat/completions")
        assert route == (None, b"/v1/chat/completions", "openai")

    @pytest.mark.parametrize(
        ("path", "shape", "default", "others", "chosen"),
        [
            (b"/v1/chat/completions", "openai", "openai", ("anthropic",), "openai"),
            (b"/v1/chat/completions", "openai", "anthropic", ("openai",), "anthropic"),
            (b"/v1/messages", "anthropic", "openai", ("anthropic",), "anthropic"),
            (b"/v1/messages", "anthropic", "openai", (), "anthropic"),
            (b"/v1/messages", "anthropic", "anthropic", ("openai",), "anthropic"),
            (b"/v1/models", "anthropic", "openai", ("anthropic",), "anthropic"),
            (b"/v1/models", "anthropic", "openai", (), "openai"),
            (b"/v1/models", "openai", "openai", ("anthropic",), "openai"),
            (b"/v1/messages", "anthropic", "both", ("anthropic",), "both"),
            (b"/v1/models", "anthropic", "both", ("anthropic",), "anthropic"),
            (b"/v1/messages", "anthropic", "removed", ("anthropic",), "anthropic"),
            (b"/anthropic/v1/models", "anthropic", "openai", (), "anthropic"),
            (b"/openai/v1/models", "anthropic", "anthropic", (), "openai"),
        ],
    )
    def test_a_request_goes_to_the_provider_that_its_path_and_headers_mean(
        self, path: bytes, shape: Shape, default: str, others: tuple[str, ...], chosen: str
    ) -> None:
        both = attrs.evolve(OPENAI, name="both", allowed_endpoints=("/v1/messages", "/v1/models"))
        providers = Providers({**BUILT_IN, "both": both}, OPENAI)
        keys = {name: SealedKey(name, "sealed", active=True) for name in (default, *others)}
        route = providers.route(path)
        assert route is not None
        assert providers.choose(route, shape, Account(a_project(provider=default), keys)) == chosen

    def test_the_prefix_of_a_provider_is_removed(self) -> None:
        route = PROVIDERS.route(b"/anthropic/v1/models")
        assert route == (ANTHROPIC, b"/v1/models", "anthropic")

    @pytest.mark.parametrize("path", [b"/groq/v1/models", b"/groq/openai/v1/models"])
    def test_the_path_of_the_base_url_may_be_in_the_path(self, path: bytes) -> None:
        route = PROVIDERS.route(path)
        assert route is not None
        assert route.provider is not None
        assert route.provider.target(route.path, b"", "gsk") == b"/openai/v1/models"

    @pytest.mark.parametrize(
        ("path", "shape"),
        [
            (b"/v1/messages", "anthropic"),
            (b"/v1/messages/count_tokens", "anthropic"),
            (b"/v1/complete", "anthropic"),
            (b"/v1/completions", "openai"),
            (b"/v1/messagesX", "openai"),
            (b"/v1/threads/t/messages", "openai"),
            (b"/openai/v1/messages", "anthropic"),
            (b"/openai/v1/models", "openai"),
            (b"/anthropic/", "anthropic"),
            (b"/gemini/v1beta/models/m:generateContent", "google"),
            (b"/gemini/v1beta/openai/chat/completions", "openai"),
            (b"/deepseek/anthropic/v1/messages", "anthropic"),
            (b"/groq/openai/v1/models", "openai"),
        ],
    )
    def test_the_path_decides_the_shape_of_errors(self, path: bytes, shape: Shape) -> None:
        route = PROVIDERS.route(path)
        assert route is not None
        assert route.shape == shape

    @pytest.mark.parametrize(
        "path",
        [
            b"",
            b"/",
            b"/v1",
            b"/openai",
            b"/openaiX",
            b"/v1X",
            b"/health",
            b"/manage/projects",
            b"/openaiX/v1/models",
            b"/OpenAI/v1/models",
            b"/%6fpenai/v1/models",
            b"//v1/models",
            b"/x/openai/v1",
            b"openai/v1",
            b"*",
        ],
    )
    def test_a_path_without_a_providers_prefix_has_no_route(self, path: bytes) -> None:
        assert PROVIDERS.route(path) is None


class TestUnknown:
    @pytest.mark.parametrize(
        "path",
        [
            b"/chat/completions",
            b"/messages",
            b"/responses",
            b"/embeddings",
            b"/models",
            b"/models/gpt-4o",
            b"/audio/speech",
        ],
    )
    def test_the_error_for_a_path_without_v1_says_so(self, path: bytes) -> None:
        refusal = PROVIDERS.unknown(path)
        assert isinstance(refusal, EndpointNotAllowed)
        assert refusal.message == (f'The path "{path.decode()}" is unknown; the base URL of the client must end in /v1')

    def test_the_error_for_a_provider_without_an_entry_says_so(self) -> None:
        refusal = attrs.evolve(PROVIDERS, unconfigured=frozenset({"azure"})).unknown(b"/azure/v1/models")
        assert refusal.message == (
            "The provider 'azure' is not configured here; the operator can add apis.azure to the provider file"
        )

    @pytest.mark.parametrize("path", [b"/", b"/wp-login.php", b"/openaiX/v1/models", b"/v1"])
    def test_the_error_for_an_unknown_path_names_the_prefixes_of_providers(self, path: bytes) -> None:
        refusal = PROVIDERS.unknown(path)
        assert isinstance(refusal, EndpointNotAllowed)
        assert f'"{path.decode()}" is unknown; paths to a provider begin with /v1/' in refusal.message

    @pytest.mark.parametrize(
        "path", [b"/%6danage/projects", b"/manage%2Fprojects", b"/manage/../x", b"//x", b"*", b"", b"/%6detrics"]
    )
    def test_an_unknown_path_with_escapes_is_ambiguous(self, path: bytes) -> None:
        refusal = PROVIDERS.unknown(path)
        assert isinstance(refusal, InvalidPath)
        assert ("percent escapes" in str(refusal)) == (b"%" in path)


class TestRefusal:
    def test_an_allowed_request_has_no_refusal(self) -> None:
        headers = [*TEAM, (b"origin", b"https://app.example")]
        assert STRICT.refusal("POST", b"/v1/chat/completions", headers, {"model": ("gpt-4o",)}) is None

    @pytest.mark.parametrize(
        ("method", "path", "headers", "model", "error"),
        [
            ("PUT", b"/v1/other", [(b"origin", b"https://evil")], "x", EndpointNotAllowed),
            ("PUT", b"/v1/chat/completions", [(b"origin", b"https://evil")], "x", MethodNotAllowed),
            ("POST", b"/v1/chat/completions", [(b"origin", b"https://evil")], "x", OriginNotAllowed),
            ("POST", b"/v1/chat/completions", [], "x", HeaderRequired),
            ("POST", b"/v1/chat/completions", TEAM, "x", ParameterNotAllowed),
        ],
    )
    def test_the_lists_are_checked_in_order(
        self, method: str, path: bytes, headers: list[tuple[bytes, bytes]], model: str, error: type[ProxyError]
    ) -> None:
        assert type(STRICT.refusal(method, path, headers, {"model": (model,)})) is error

    def test_a_405_names_method_and_path_and_the_allowed_methods(self) -> None:
        refusal = STRICT.refusal("PUT", b"/v1/files/x", TEAM)
        assert refusal is not None
        assert refusal.allow == ("GET", "POST")
        assert refusal.message == '"PUT /v1/files/x" is not allowed here (allowed methods: GET, POST)'

    @pytest.mark.parametrize(
        ("provider", "method", "path", "shown", "takes"),
        [
            (
                ANTHROPIC,
                "POST",
                b"/v1/chat/completions",
                "POST /v1/chat/completions",
                "/v1/messages, /v1/messages/count_tokens, /v1/messages/batches, /v1/complete, ...",
            ),
            (
                attrs.evolve(OPENAI, name="one", allowed_endpoints=("/v1/{a}/b",)),
                "GET",
                b"/v1/x",
                "GET /v1/x",
                "/v1/{a}/b",
            ),
            (
                OPENAI,
                "G\u20acT" * 100,
                b"/v1/" + b"sk-" + b"a" * 43 + b"/sk-canary1/x",
                r"G\u20acT" * 8 + " /v1/.../[redacted]/x",
                "/v1/chat/completions, /v1/completions, /v1/responses, /v1/responses/compact, ...",
            ),
        ],
    )
    def test_a_404_names_method_path_provider_and_allowed_endpoints(
        self, provider: Provider, method: str, path: bytes, shown: str, takes: str
    ) -> None:
        refusal = provider.refusal(method, path, [])
        assert isinstance(refusal, EndpointNotAllowed)
        assert refusal.message == (
            f'"{shown}" is not available with this token, whose project uses the provider'
            f' "{provider.name}": it takes {takes}'
        )

    @pytest.mark.parametrize("path", [b"/v1/files/a%2Fb", b"/v1/files/a%3Ab", b"/v1/chat%2fcompletions", b"/v1/%2F"])
    def test_an_escape_that_only_a_model_may_have_is_a_400_elsewhere(self, path: bytes) -> None:
        refusal = STRICT.refusal("GET", path, TEAM)
        assert isinstance(refusal, InvalidPath)
        assert "{model}" in refusal.message

    def test_an_empty_or_missing_header_is_named(self) -> None:
        refusal = STRICT.refusal("GET", b"/v1/files/x", [(b"x-team", b""), (b"x-cost-centre", b"7")])
        assert isinstance(refusal, HeaderRequired)
        assert refusal.param == "x-team"

    def test_every_origin_header_is_checked_and_none_is_allowed(self) -> None:
        good, evil = (b"origin", b"https://app.example"), (b"origin", b"null")
        assert STRICT.refusal("GET", b"/v1/files/x", TEAM) is None
        assert isinstance(STRICT.refusal("GET", b"/v1/files/x", [*TEAM, good, evil]), OriginNotAllowed)

    def test_parameters_are_not_checked_before_the_body_is_read(self) -> None:
        assert STRICT.needs_body
        assert STRICT.refusal("POST", b"/v1/chat/completions", TEAM) is None
        assert not OPENAI.needs_body


@pytest.mark.parametrize(
    ("auth", "expected"),
    [
        ("bearer", [(b"authorization", b"Bearer sk-1")]),
        ("x-api-key", [(b"x-api-key", b"sk-1")]),
        ("api-key", [(b"api-key", b"sk-1")]),
        ("x-goog-api-key", [(b"x-goog-api-key", b"sk-1")]),
        ("query", []),
        ("sigv4", []),
    ],
)
def test_the_key_is_sent_in_the_providers_header(auth: Auth, expected: list[tuple[bytes, bytes]]) -> None:
    assert attrs.evolve(OPENAI, auth=auth).credential("sk-1", b"/v1/models") == expected


def test_gemini_takes_the_key_as_bearer_on_the_paths_of_openais_api() -> None:
    assert GEMINI.credential("AIza-1", b"/v1beta/openai/models") == [(b"authorization", b"Bearer AIza-1")]
    assert GEMINI.credential("AIza-1", b"/v1beta/models") == [(b"x-goog-api-key", b"AIza-1")]


class TestQuery:
    QUERY = attrs.evolve(OPENAI, auth="query", auth_parameter="api_key")

    @pytest.mark.parametrize(
        ("query", "target"),
        [
            (b"", b"/v1/models?api_key=s%2Fk%261"),
            (b"a=b%20c&&d", b"/v1/models?a=b%20c&&d&api_key=s%2Fk%261"),
            (b"api_key=sk-1", b"/v1/models?api_key=s%2Fk%261"),
            (b"a&api_key=sk-1&b&api%5Fkey=sk-1&api_keys=1", b"/v1/models?a&b&api_keys=1&api_key=s%2Fk%261"),
        ],
    )
    def test_the_key_replaces_the_token_in_the_query(self, query: bytes, target: bytes) -> None:
        assert self.QUERY.credential("s/k&1", b"/v1/models") == []
        assert self.QUERY.target(b"/v1/models", query, "s/k&1") == target

    def test_a_token_in_the_query_of_gemini_is_removed(self) -> None:
        target = GEMINI.target(b"/v1/models", b"%6Bey=sk-1&alt=sse&key=sk-1&k=%20", "AIza-1")
        assert target == b"/v1/models?alt=sse&k=%20"

    def test_the_query_of_other_providers_is_unchanged(self) -> None:
        assert OPENAI.target(b"/v1/models", b"key=1", "sk-1") == b"/v1/models?key=1"
        assert OPENAI.tokens_in(b"key=1") == []

    def test_tokens_in_the_query_are_found(self) -> None:
        assert GEMINI.tokens_in(b"a=b&key=sk-1&%6bey=sk-2") == [b"sk-1", b"sk-2"]
        assert self.QUERY.tokens_in(b"key=sk-1&api_key=sk-2") == [b"sk-2"]


@pytest.mark.parametrize("key", ["", "a b", "a\r\nx: y", "ä", "a\n"])
def test_a_key_that_a_header_cannot_contain_is_not_sent_and_not_shown(key: str) -> None:
    with pytest.raises(ProxyError) as caught:
        OPENAI.credential(key, b"/v1/models")
    assert not key or key not in caught.value.message


def test_the_target_is_base_path_path_and_query_unchanged() -> None:
    assert STRICT.target(b"/v1/files/%41", b"a=b%20c&d", "sk-1") == b"/base/v1/files/%41?a=b%20c&d"
    assert OPENAI.target(b"/v1/models", b"", "sk-1") == b"/v1/models"


SEGMENTS = st.sampled_from(
    [b"v1", b"files", b"x", b"chat", b"completions", b"a", b"..", b".", b"%2e%2e", b"%2f", b"", b"a;b", b"%41", b"a:b"]
)


@given(st.lists(SEGMENTS, max_size=6), st.sampled_from([b"", b"strict", b"openai"]))
def test_what_is_checked_and_allowed_is_forwarded_byte_for_byte(segments: list[bytes], prefix: bytes) -> None:
    raw_path = (b"/" + prefix if prefix else b"") + b"/" + b"/".join(segments)
    providers = Providers({"strict": STRICT, "openai": OPENAI}, STRICT)
    try:
        paths.check(raw_path)
    except InvalidPath:
        return
    route = providers.route(raw_path)
    assume(route is not None)
    assert route is not None
    provider: Provider = route.provider or providers.default
    if provider.refusal("GET", route.path, TEAM) is not None:
        return
    target = provider.target(route.path, b"", "sk-1")
    assert target == provider.base_path + raw_path.removeprefix(b"/" + prefix if prefix else b"")
    if provider is STRICT:
        inner = target.removeprefix(b"/base").split(b"/")
        matches = [
            inner == [b"", b"v1", b"chat", b"completions"],
            inner[:3] == [b"", b"v1", b"files"] and len(inner) == 4 and inner[3] != b"",
            inner[:3] == [b"", b"v1", b"x"] and len(inner) > 3 and inner[3] != b"",
        ]
        assert any(matches)


@pytest.mark.parametrize(
    ("url", "origin", "base_path", "authority"),
    [
        ("https://api.example", Origin("https", "api.example", 443), b"", b"api.example"),
        ("https://API.Example:443/", Origin("https", "api.example", 443), b"", b"api.example"),
        ("http://localhost:8080/openai/", Origin("http", "localhost", 8080), b"/openai", b"localhost:8080"),
        ("http://10.0.0.1:443", Origin("http", "10.0.0.1", 443), b"", b"10.0.0.1:443"),
        ("https://[::1]:8443/a/b", Origin("https", "::1", 8443), b"/a/b", b"[::1]:8443"),
        ("http://vllm_1:80", Origin("http", "vllm_1", 80), b"", b"vllm_1"),
    ],
)
def test_a_base_url_is_split_into_origin_and_path(url: str, origin: Origin, base_path: bytes, authority: bytes) -> None:
    assert split_base_url(url) == (origin, base_path)
    assert origin.authority == authority


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("api.example", "begins with https"),
        ("ftp://api.example", "begins with https"),
        ("//api.example", "begins with https"),
        ("https://user:pw@api.example", "no user"),
        ("https://@api.example", "no user"),
        ("https://api.example?x=1", "no query"),
        ("https://api.example/#", "no query"),
        ("https://", "host or port"),
        ("https:///v1", "host or port"),
        ("https://api.example:0", "host or port"),
        ("https://api.example:99999", "host or port"),
        ("https://api.example:x", "host or port"),
        ("https://[::1", "host or port"),
        ("https://a,b", "host or port"),
        ("https://api.example/a/../b", "ambiguous"),
        ("https://api.example//a", "ambiguous"),
        ("https://api.example/%2e", "ambiguous"),
        ("https://äpi.example", "visible ASCII"),
        ("https://api.example/a b", "visible ASCII"),
        ("https://api.example\\@evil", "visible ASCII"),
        ("https://api.example\n", "visible ASCII"),
    ],
)
def test_a_base_url_that_is_not_plain_is_refused(url: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        split_base_url(url)
