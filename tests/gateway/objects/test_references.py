"""No spelling of a JSON body hides an id."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_proxy.errors import InvalidJson
from llm_proxy.gateway.objects import references
from llm_proxy.gateway.objects.references import References
from llm_proxy.gateway.objects.table import HINTS, TABLE

PLAIN = [(b"content-type", b"application/json")]
NAMES = ["file_id", "previous_response_id", "vector_store_ids", "container", "input_file_id", "conversation"]

leaves = st.none() | st.booleans() | st.integers() | st.text(max_size=8)
documents = st.recursive(
    leaves, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
)


def read(body: bytes, cut: int = 1 << 20) -> set[str]:
    reader = References()
    for start in range(0, len(body), cut):
        reader.feed(body[start : start + cut])
    reader.end()
    return set(reader.ids)


def escaped(text: str, draw: Any) -> str:
    """A JSON string in which any characters may be escaped."""
    parts = [
        f"\\u{ord(char):04{draw(st.sampled_from('xX'))}}" if draw(st.booleans()) else json.dumps(char)[1:-1]
        for char in text
    ]
    return f'"{"".join(parts)}"'


@given(st.data(), documents, st.sampled_from(NAMES), st.integers(1, 9), st.sampled_from(["", "list", "deep"]))
def test_an_id_is_found_however_it_is_written_and_wherever_it_is(
    data: Any, around: Any, name: str, cut: int, form: str
) -> None:
    value = escaped("id-1", data.draw)
    member = f"{escaped(name, data.draw)}: {f'[1, {value}]' if form == 'list' else value}"
    inner = f'{{"x": {json.dumps(around)}, {member}}}'
    body = (f'{{"a": [{inner}, {json.dumps(around)}]}}' if form == "deep" else inner).encode()
    assert "id-1" in read(body, cut)
    assert references.may_hide(PLAIN, body) or references.has_any(HINTS["items"], body)


@given(st.data(), st.sampled_from(NAMES))
def test_a_second_member_of_the_same_name_is_refused(data: Any, name: str) -> None:
    body = f'{{"a": {{{escaped(name, data.draw)}: "x", {escaped(name, data.draw)}: "y"}}}}'.encode()
    with pytest.raises(InvalidJson):
        read(body)


@pytest.mark.parametrize(
    "body",
    [
        {"metadata": {"thread_id": "mine", "conversation": "mine"}},
        {"tools": [{"parameters": {"properties": {"file_id": {"enum": ["mine"]}}, "file_ids": ["mine"]}}]},
        {"messages": [{"content": [{"type": "tool_use", "input": {"thread_id": "mine"}}]}]},
        {"messages": [{"role": "user", "content": "file_id"}]},
        {"input": [{"type": "message", "id": "msg_1", "role": "user", "content": []}]},
        {"input": [{"type": "function_call", "id": "fc_1", "call_id": "c"}]},
        {"prompt": {"id": "pmpt_1"}},
        {"tools": [{"file_id": "cfile_1"}], "skills": [{"type": "anthropic", "skill_id": "pptx"}]},
        {"contents": [{"parts": [{"functionCall": {"name": "f", "args": {"file_uri": "mine", "run_id": "1"}}}]}]},
        {"contents": [{"parts": [{"function_response": {"name": "f", "response": {"thread_id": "mine"}}}]}]},
        {"contents": [{"parts": [{"fileData": {"fileUri": "https://www.youtube.com/watch?v=1"}}]}]},
    ],
)
def test_what_is_the_clients_own_names_nothing(body: Any) -> None:
    assert read(json.dumps(body).encode()) == set()


@pytest.mark.parametrize(
    ("headers", "body"),
    [
        (PLAIN, b'{"f\\u0069le_id": "x"}'),
        (PLAIN, b'{"file\\U0055ri": "x"}'),
        (PLAIN, '{"file_id": "x"}'.encode("utf-16")),
        ([(b"content-type", b"application/json; charset=utf-7")], b"{}"),
        ([*PLAIN, (b"content-encoding", b"gzip")], b"{}"),
    ],
)
def test_a_body_that_may_hide_an_id_is_read(headers: list[tuple[bytes, bytes]], body: bytes) -> None:
    assert references.may_hide(headers, body)


def test_an_ordinary_body_is_not_read() -> None:
    body = b'{"model": "m", "messages": [{"role": "user", "content": "caf\\u00e9 \\n hello"}]}'
    assert not references.may_hide(PLAIN, body)
    assert not references.has_any(HINTS["chat"], body)


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1beta/openai/chat/completions", {"extra_body": {"google": {"cached_content": "id-1"}}}),
        ("/endpoints/openapi/chat/completions", {"extra_body": {"google": {"cachedContent": "id-1"}}}),
        ("/v1beta/models/g:generateContent", {"cachedContent": "id-1"}),
        ("/v1beta/models/g:generateContent", {"contents": [{"parts": [{"file_data": {"file_uri": "id-1"}}]}]}),
        ("/v1beta/models/g:generateContent", {"tools": [{"fileSearch": {"fileSearchStoreNames": ["id-1"]}}]}),
        ("/v1beta/models/g:generateContent", {"tools": [{"file_search": {"file_search_store_names": ["id-1"]}}]}),
        ("/v1beta/models/v:predictLongRunning", {"instances": [{"video": {"uri": "id-1"}}]}),
        (
            "/v1beta/models/v:predictLongRunning",
            {"instances": [{"video": {"uri": "https://a.example/v1beta/files/id-1:download?alt=media"}}]},
        ),
        *(
            ("/v1beta/models/g:generateContent", {"contents": [{"parts": [{"fileData": {"fileUri": uri}}]}]})
            for uri in (
                "HTTPS://a.example/v1alpha/files/id-1",
                "https://a.example/download/v1beta/files/id-1?alt=media",
            )
        ),
        (
            "/publishers/google/models/g:generateContent",
            {"tools": [{"retrieval": {"vertexRagStore": {"ragResources": [{"ragCorpus": "id-1"}]}}}]},
        ),
        (
            "/publishers/google/models/g:generateContent",
            {"tools": [{"retrieval": {"vertexAiSearch": {"datastore": "id-1"}}}]},
        ),
        *(
            ("/publishers/google/models/g:generateContent", {"tools": [{"retrieval": {"vertexAiSearch": search}}]})
            for search in ({"engine": "id-1"}, {"dataStoreSpecs": [{"dataStore": "id-1"}]})
        ),
        (
            "/publishers/google/models/g:generateContent",
            {"tools": [{"retrieval": {"vertexRagStore": {"ragCorpora": ["id-1"]}}}]},
        ),
        (
            "/publishers/google/models/v:predictLongRunning",
            {"instances": [{"prompt": "x"}], "parameters": {"storageUri": "id-1"}},
        ),
        ("/publishers/google/models/v:predictLongRunning", {"instances": [{"image": {"gcsUri": "id-1"}}]}),
        ("/model/m/converse", {"messages": [{"content": [{"document": {"source": {"s3Location": {"uri": "id-1"}}}}]}]}),
    ],
)
def test_what_a_body_names_at_google_is_searched_for_and_found(path: str, body: Any) -> None:
    text = json.dumps(body).encode()
    endpoint, _ = TABLE.find("POST", path.encode())
    assert references.has_any(endpoint.hints, text)
    assert read(text) == {"id-1"}


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1beta/models/g:generateContent", b"{'cachedContent': 'cachedContents/a'}"),
        ("/v1beta/models/g:generateContent", b'{cachedContent: "cachedContents/a"}'),
        ("/endpoints/openapi/chat/completions", b"{'cachedContent': 'cachedContents/a'}"),
        ("/endpoints/openapi/chat/completions", b'{cachedContent: "cachedContents/a"}'),
        ("/v1beta/models/v:predict", b"{'instances': [{'video': {'uri': 'https://a.example/v1beta/files/a'}}]}"),
    ],
)
def test_a_body_in_googles_own_json_is_read_and_refused(path: str, body: bytes) -> None:
    """Its parser takes other quotes: https://ai.google.dev/gemini-api/docs/files has them in an example."""
    endpoint, _ = TABLE.find("POST", path.encode())
    assert references.has_any(endpoint.hints, body)
    with pytest.raises(InvalidJson):
        read(body)


@pytest.mark.parametrize(
    "uri",
    [
        "https://a.example/v1beta/files/victim?x=/files/mine",
        "https://a.example/v1beta/files/victim:download?alt=media&x=/files/mine",
        "https://a.example/v1beta/files/victim#/files/mine",
        "https://a.example/files/mine/v1beta/files/victim",
        "https://a.example/?x=/v1beta/files/mine",
    ],
)
def test_a_uri_that_could_mean_two_files_is_none_of_them(uri: str) -> None:
    body = {"contents": [{"parts": [{"fileData": {"fileUri": uri}}]}]}
    assert read(json.dumps(body).encode()) == {uri}


def test_what_is_named_like_it_elsewhere_is_no_object() -> None:
    body = {"plugins": [{"engine": "exa"}], "tools": [{"function": {"parameters": {"storageUri": "x"}}}]}
    assert read(json.dumps(body).encode()) == set()


@pytest.mark.parametrize("field", ["file_id", "file_ids[]", "images[0][file_id]", "container[id]", "input.file_id"])
def test_a_field_of_a_form_names_an_object(field: str) -> None:
    assert references.of_form({field: ["file-1", ""]}) == ("file-1",)


@pytest.mark.parametrize("length", [256, 2000, 70_000])
def test_a_text_that_is_too_long_for_an_id_is_an_object_that_nobody_owns(length: int) -> None:
    text = "https://a.example/v1beta/caches/".ljust(length, "x")
    for body in ({"cachedContent": text}, {"fileData": {"fileUri": text}}, {"container": {"id": text}}):
        assert read(json.dumps(body).encode()) == {"…"}
    assert references.of_form({"file_id": [text, None, "file-1"]}) == ("…", "file-1")


def test_a_query_names_objects_like_a_form() -> None:
    query = b"alt=sse&cachedContent=cachedContents%2Fa&file%5Fids=b&file_ids=c&x.file_id=d&key=e"
    assert references.of_query(query) == ("cachedContents/a", "b", "c", "d")


@pytest.mark.parametrize("field", ["file", "purpose", "id", "metadata[id]"])
def test_other_fields_of_a_form_name_nothing(field: str) -> None:
    assert references.of_form({field: ["file-1"]}) == ()
