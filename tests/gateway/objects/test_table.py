"""Every endpoint of the built-in providers with OpenAI's or Anthropic's API has a row, and each row can be reached."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from llm_proxy.gateway.objects.table import TABLE
from tests.gateway.apis_yaml import load

METHODS = ("GET", "POST", "DELETE")

#: Built-in providers that have no endpoint without a row.
COMPLETE = ("openai", "anthropic", "openrouter", "groq", "deepseek", "together", "mistral", "xai", "azure", "bedrock")


def test_each_built_in_endpoint_has_a_row(tmp_path: Path) -> None:
    own = {"azure": "{base_url: 'http://x/openai'}", "bedrock": "{base_url: 'http://x'}"}
    entries = dict.fromkeys(COMPLETE, "{}") | own
    text = "default_api: openai\napis: {" + ", ".join(f"{name}: {entry}" for name, entry in entries.items()) + "}"
    missing = [
        f"{name} {path}"
        for name, provider in load(tmp_path, text).by_name.items()
        for path in provider.allowed_endpoints
        if not any(TABLE.find(one, re.sub(r"\{[a-z]+\}", "x", path).encode())[0].known for one in METHODS)
    ]
    assert missing == []


def test_a_request_finds_its_own_row_and_the_ids_in_its_path() -> None:
    for method, row, endpoint in TABLE.rows:
        kinds = re.findall(r"\{([a-z_]+)\}", row)
        path = re.sub(r"[{}]", "", row).replace("*", "part").encode()
        assert TABLE.find(method, path) == (endpoint, tuple(kinds)), row


@pytest.mark.parametrize(
    ("path", "ids"),
    [
        (b"/openai/v1/files/file-1", ("file-1",)),
        (b"/api/v1/chat/completions", ()),
        (b"/openai/deployments/gpt/chat/completions", ()),
        (b"/openai/files/file-1", ("file-1",)),
        (b"/files/file-1", ("file-1",)),
        (b"/batches/batch_1", ("batch_1",)),
        (b"/responses/resp_1/input_items", ("resp_1",)),
        (b"/deployments/gpt/chat/completions", ()),
        (b"/v1/files/%66ile-1", ("file-1",)),
    ],
)
def test_other_spellings_of_a_path_have_the_same_row(path: bytes, ids: tuple[str, ...]) -> None:
    method = "GET" if ids else "POST"
    endpoint, found = TABLE.find(method, path)
    assert (endpoint.known, found) == (True, ids)
    assert TABLE.find("HEAD", path) == (endpoint, found) or not ids


@pytest.mark.parametrize("colon", [b":", b"%3A", b"%3a"])
def test_a_verb_that_names_objects_is_no_model(colon: bytes) -> None:
    assert TABLE.find("POST", b"/v1beta/models/x%bbatchGenerateContent" % colon)[0].account
    for verb in (b"asyncBatchEmbedContent", b"generateAnswer", b"new"):
        assert not TABLE.find("POST", b"/v1beta/models/x%b%b" % (colon, verb))[0].known
    assert not TABLE.find("POST", b"/v1beta/models/x%bgenerateContent" % colon)[0].account


@pytest.mark.parametrize(("method", "path"), [("PUT", b"/v1/files"), ("GET", b"/v1/new"), ("GET", b"/v1/files/a/b/c")])
def test_any_other_request_may_reach_the_whole_account(method: str, path: bytes) -> None:
    endpoint, _ = TABLE.find(method, path)
    assert endpoint.account
    assert not endpoint.known


@pytest.mark.parametrize(
    "path",
    [
        b"/deployments/d/chat/completions",
        b"/v1beta/openai/chat/completions",
        b"/v1/models/m:generateContent",
        b"/publishers/google/models/m:generateContent",
        b"/compatibility/v1/chat/completions",
        b"/beta/completions",
        b"/chat/completions",
        b"/anthropic/v1/messages",
        b"/endpoints/openapi/chat/completions",
        b"/model/m/count-tokens",
    ],
)
def test_a_call_of_a_model_is_open_to_projects_with_one_credential(path: bytes) -> None:
    endpoint, ids = TABLE.find("POST", path)
    assert (endpoint.known, endpoint.account, ids) == (True, False, ())
