from __future__ import annotations

from pathlib import Path

import attrs
import pytest

from llm_proxy.config import Settings
from llm_proxy.errors import EndpointNotAllowed, ParameterNotAllowed
from llm_proxy.gateway.providers import provider_file
from llm_proxy.gateway.providers.endpoints import Endpoints
from llm_proxy.gateway.upstream.connector import Origin
from tests.gateway.apis_yaml import load

BUILT_IN = provider_file.load(Settings()).by_name
OPENAI, ANTHROPIC = BUILT_IN["openai"], BUILT_IN["anthropic"]


@pytest.mark.parametrize(
    ("name", "method", "path"),
    [
        ("openai", "POST", b"/v1/chat/completions"),
        ("openai", "POST", b"/v1/responses"),
        ("openai", "DELETE", b"/v1/responses/resp_1"),
        ("openai", "POST", b"/v1/embeddings"),
        ("openai", "GET", b"/v1/models"),
        ("openai", "GET", b"/v1/files/file-1/content"),
        ("openai", "POST", b"/v1/uploads/u/parts"),
        ("openai", "POST", b"/v1/images/edits"),
        ("openai", "POST", b"/v1/audio/transcriptions"),
        ("openai", "POST", b"/v1/fine_tuning/jobs"),
        ("openai", "POST", b"/v1/vector_stores/vs/search"),
        ("openai", "GET", b"/v1/threads/t/runs/r/steps/s"),
        ("anthropic", "POST", b"/v1/messages"),
        ("anthropic", "POST", b"/v1/messages/count_tokens"),
        ("openai", "GET", b"/v1/models/openai%2Fgpt-oss-120b"),
        ("openai", "DELETE", b"/v1/models/ft%3Agpt-5.4-mini%3Aacme"),
        ("anthropic", "GET", b"/v1/messages/batches/b/results"),
        ("anthropic", "GET", b"/v1/models/claude"),
    ],
)
def test_endpoints_of_applications_are_allowed(name: str, method: str, path: bytes) -> None:
    assert BUILT_IN[name].refusal(method, path, []) is None


def test_streams_are_asked_for_usage_where_the_vendor_documents_it() -> None:
    entries = provider_file._built_in().apis
    asked = {name for name, entry in entries.items() if entry.stream_usage == "ask"}
    assert asked == {"openai", "azure", "groq", "deepseek", "xai", "ollama", "vllm"}
    assert not {entry.stream_usage for name, entry in entries.items() if name not in asked} - {None}
    assert (OPENAI.stream_usage, ANTHROPIC.stream_usage) == ("ask", "off")


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("gemini", b"/v1beta/auth_tokens"),
        ("openrouter", b"/v1/keys"),
        ("openrouter", b"/v1/credits"),
        ("xai", b"/v1/api-key"),
        ("deepseek", b"/user/balance"),
        ("cohere", b"/v1/connectors"),
        ("openai", b"/v1/organization/projects"),
        ("openai", b"/v1/organization/admin_api_keys"),
        ("openai", b"/v1/organization/usage/completions"),
        ("openai", b"/v1/projects/p/users/u/roles"),
        ("openai", b"/v1/realtime/client_secrets"),
        ("openai", b"/v1/fine_tuning/checkpoints/c/permissions"),
        ("anthropic", b"/v1/organizations/api_keys"),
        ("anthropic", b"/v1/organizations/me"),
        ("anthropic", b"/v1/tunnels/t/reveal_token"),
    ],
)
def test_endpoints_that_administer_the_account_are_refused(name: str, path: bytes) -> None:
    assert isinstance(BUILT_IN[name].refusal("GET", path, []), EndpointNotAllowed)


@pytest.mark.parametrize(
    ("name", "path", "field"),
    [
        ("anthropic", b"/v1/messages/batches", "results_url"),
        ("anthropic", b"/v1/messages/batches/b", "results_url"),
        ("anthropic", b"/v1/messages/batches/b/cancel", "results_url"),
        ("gemini", b"/upload/v1beta/files", "x-goog-upload-url"),
        ("gemini", b"/upload/v1/files", "x-goog-upload-url"),
    ],
)
def test_endpoints_whose_answers_have_urls_need_public_url(name: str, path: bytes, field: str) -> None:
    refusal = BUILT_IN[name].refusal("POST", path, [])
    assert isinstance(refusal, EndpointNotAllowed)
    assert field in refusal.message
    assert "PUBLIC_URL" in refusal.message
    public = attrs.evolve(BUILT_IN[name], public_url="https://llm.example.com")
    assert public.refusal("POST", path, []) is None


def test_results_of_batches_have_no_such_url() -> None:
    assert ANTHROPIC.refusal("GET", b"/v1/messages/batches/b/results", []) is None


def test_origins_and_auth() -> None:
    assert OPENAI.origin == Origin("https", "api.openai.com", 443)
    assert ANTHROPIC.origin == Origin("https", "api.anthropic.com", 443)
    assert OPENAI.base_path == ANTHROPIC.base_path == b""
    assert (OPENAI.auth, ANTHROPIC.auth) == ("bearer", "x-api-key")


def test_models_in_a_path_are_limited_too() -> None:
    provider = attrs.evolve(BUILT_IN["gemini"], param_whitelist={"model": ("gemini-flash*",)})
    path = b"/v1beta/models/%b:generateContent"
    assert provider.refusal("POST", path % b"gemini-flash-3", []) is None
    assert provider.refusal("GET", b"/v1beta/models/gemini-pro", []) is None
    refused = provider.refusal("POST", path % b"gemini%2Dpro", [])
    assert refused is not None
    assert (refused.code, refused.param) == ("parameter_not_allowed", "model")


@pytest.mark.parametrize(
    ("pattern", "path", "model"),
    [
        ("/model/{model}/converse", b"/model/arn%3Aaws%3Abedrock%3A%3Ap%2Fx/converse", "arn:aws:bedrock::p/x"),
        ("/v1/models/{model}", b"/v1/models/ft%3Agpt:x", "ft:gpt:x"),
        ("/v1/files/{id}", b"/v1/files/f", None),
    ],
)
def test_the_model_in_a_path_is_found(pattern: str, path: bytes, model: str | None) -> None:
    assert Endpoints([pattern, "/v1/x"]).model(path) == model
    assert Endpoints([pattern]).model(b"/other") is None


def test_a_whitelist_of_models_holds_for_fallback_models_too(tmp_path: Path) -> None:
    provider = load(tmp_path, "apis: {openrouter: {param_whitelist: {model: [a/b]}}}").default
    path = b"/v1/chat/completions"
    assert provider.refusal("POST", path, [], {"model": ["a/b"]}) is None
    assert isinstance(provider.refusal("POST", path, [], {"model": ["a/b"], "models": [None]}), ParameterNotAllowed)


def test_extra_endpoints_are_added_to_the_built_in_ones(tmp_path: Path) -> None:
    provider = load(tmp_path, "apis: {anthropic: {extra_endpoints: '/v1/new/{id}'}}").default
    assert provider.refusal("GET", b"/v1/new/x", []) is None
    assert provider.refusal("POST", b"/v1/messages", []) is None


def test_only_base_url_has_to_be_set_for_a_provider_of_each_customer(tmp_path: Path) -> None:
    azure = load(tmp_path, "apis: {azure: {base_url: 'https://r.openai.azure.com/openai'}}").default
    assert (azure.auth, azure.base_path) == ("api-key", b"/openai")
    assert azure.refusal("POST", b"/deployments/d/chat/completions", []) is None


@pytest.mark.parametrize(
    ("name", "path", "members"),
    [
        ("openai", b"/v1/responses", ("model",)),
        ("openai", b"/v1/audio/transcriptions", ("model",)),
        ("openai", b"/v1/batches", ("input_file_id.body.model",)),
        ("openai", b"/v1/evals/e/runs", ("data_source.model",)),
        ("openai", b"/v1/models/m", ("{model}",)),
        ("anthropic", b"/v1/messages", ("model",)),
        ("anthropic", b"/v1/messages/batches", ("requests.params.model",)),
        ("gemini", b"/v1beta/models/m:generateContent", ("{model}",)),
        ("openrouter", b"/v1/chat/completions", ("model", "models", "preset")),
        ("openrouter", b"/v1/embeddings", ("model",)),
        ("mistral", b"/v1/conversations", ("model", "agent_id")),
        ("mistral", b"/v1/agents/completions", ("agent_id",)),
        ("together", b"/v1/batches", ("model_id", "input_file_id.body.model")),
    ],
)
def test_it_is_known_where_an_endpoint_names_its_models(name: str, path: bytes, members: tuple[str, ...]) -> None:
    assert BUILT_IN[name].models_of(path) == members


def test_each_place_of_models_belongs_to_an_endpoint() -> None:
    for name, provider in BUILT_IN.items():
        assert set(provider.models) <= set(provider.allowed_endpoints), name


@pytest.mark.parametrize(("name", "path"), [("openai", b"/v1/batches"), ("anthropic", b"/v1/messages/batches")])
@pytest.mark.parametrize(("allowed", "refused"), [(("m-*",), True), (("m-*", "*"), False), (None, False)])
def test_a_whitelist_of_models_refuses_endpoints_whose_models_it_cannot_read(
    name: str, path: bytes, allowed: tuple[str, ...] | None, *, refused: bool
) -> None:
    whitelist = {"service_tier": ("default",)} if allowed is None else {"model": allowed}
    provider = attrs.evolve(BUILT_IN[name], param_whitelist=whitelist, public_url="https://llm.example.com")
    error = provider.refusal("POST", path, [])
    assert (error is not None) == refused
    if error is not None:
        assert (error.code, error.param) == ("parameter_not_allowed", "model")
    assert provider.refusal("GET", path, []) is None


def test_a_whitelist_of_models_holds_for_agents_too(tmp_path: Path) -> None:
    provider = load(tmp_path, "apis: {mistral: {param_whitelist: {model: [m-*]}}}").default
    path = b"/v1/agents/completions"
    assert isinstance(provider.refusal("POST", path, [], {"agent_id": ["ag_1"]}), ParameterNotAllowed)
