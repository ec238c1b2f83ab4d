from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_proxy.errors import InvalidPath
from llm_proxy.gateway.http import paths
from llm_proxy.gateway.providers.endpoints import Endpoints

PATTERNS = [
    "/v1/models",
    "/v1/models/{id}",
    "/v1/files/*/content",
    "/v1/threads/runs",
    "/v1/threads/{id}/runs/{run}",
    "/v1beta/models/{model}:generateContent",
    "/v1beta/models/{model}:{verb}/x",
    "/all/**",
    "/a/{x}/c",
    "/a/b/d",
]


@pytest.mark.parametrize(
    ("path", "allowed"),
    [
        (b"/v1/models", True),
        (b"/v1/modelsX", False),
        (b"/v1/models/", False),
        (b"/V1/models", False),
        (b"/v1/%6dodels", False),
        (b"/x/v1/models", False),
        (b"/v1/models/gpt-4o", True),
        (b"/v1/models/gpt%2D4o", True),
        (b"/v1/models/gpt-4o/x", False),
        (b"/v1/files/f/content", True),
        (b"/v1/files//content", False),
        (b"/v1/files/f/contents", False),
        (b"/v1/threads/runs", True),
        (b"/v1/threads/t/runs/r", True),
        (b"/v1/threads/t/runs/", False),
        (b"/v1beta/models/gemini:generateContent", True),
        (b"/v1beta/models/:generateContent", False),
        (b"/v1beta/models/gemini:generateContentX", False),
        (b"/v1beta/models/a:b/x", True),
        (b"/all", False),
        (b"/all/", False),
        (b"/all/x", True),
        (b"/all/x/y/", True),
        (b"/a/b/c", True),
        (b"/a/b/d", True),
        (b"/a/x/d", False),
        (b"/", False),
        (b"", False),
    ],
)
def test_patterns_match_whole_segments(path: bytes, allowed: bool) -> None:
    assert (path in Endpoints(PATTERNS)) is allowed


MODELS = [
    "/v1/models",
    "/v1/models/{model}",
    "/v1/models/{model}/endpoints",
    "/v1/files/{id}",
    "/v1/all/**",
    "/v1beta/models/{model}:{verb}",
    "/model/{model}/invoke",
    "/model/{model}/versions/**",
    "/v1/x/{model}",
    "/v1/x/{id}/{part}",
    "/v1/y/{model}",
    "/v1/y/known/one",
    "/v1/z/{model}",
    "/v1/z/{id}/results",
]
ARN = b"arn%3Aaws%3Abedrock%3Aus-east-1%3A123%3Ainference-profile%2Fus.claude"


@pytest.mark.parametrize(
    ("path", "allowed"),
    [
        (b"/v1/models/openai%2Fgpt-oss-120b", True),
        (b"/v1/models/openai%2fgpt-oss-120b", True),
        (b"/v1/models/openrouter%2Fauto%3Afree", True),
        (b"/v1/models/a%2Fb%2Fc", True),
        (b"/v1/models/a%2Fb/endpoints", True),
        (b"/model/" + ARN + b"/invoke", True),
        (b"/model/" + ARN + b"/versions/1/x", True),
        (b"/v1beta/models/a%2Fb:generateContent", True),
        # Only the segment of a model.
        (b"/v1/files/a%2Fb", False),
        (b"/v1/files/a%3Ab", False),
        (b"/v1/all/a%2Fb", False),
        (b"/v1/all/a%3ab", False),
        (b"/v1/all/a%20b", True),
        (b"/v1beta/models/a:b%2Fc", False),
        (b"/v1beta/models/a%3Ab", False),
        (b"/model/m/versions/a%2Fb", False),
        (b"/v1%2Fmodels", False),
        # With a slash in its place, another endpoint.
        (b"/v1/models/a%2Fendpoints", False),
        (b"/model/a%2Finvoke/invoke", True),
        (b"/model/a%2Fversions/versions/b", False),
        (b"/v1/x/a%2Fb", False),
        (b"/v1/x/a%2Fb%2Fc", True),
        (b"/v1/y/known%2Fone", False),
        (b"/v1/y/known%2Ftwo", True),
        (b"/v1/z/a%2Fresults", False),
        (b"/v1/z/a%2Fother", True),
    ],
)
def test_only_the_name_of_a_model_may_contain_an_escaped_slash_or_colon(path: bytes, allowed: bool) -> None:
    assert (path in Endpoints(MODELS)) is allowed


def as_one_expression(pattern: str) -> str:
    """A pattern as the documentation describes it, in the simplest form."""
    text = re.escape(pattern.replace("**", "\0"))
    return re.sub(r"\\\{\w+\\\}|\\\*", "[^/]+", text).replace("\0", ".+")


SEGMENTS = st.sampled_from(["v1", "models", "files", "a", "b", "x:y", "x", "%41", ""])
PATTERN_SEGMENTS = st.sampled_from(["v1", "models", "files", "a", "*", "{id}", "x:{y}", "*:y", "{a}{b}"])


@given(
    st.lists(st.lists(PATTERN_SEGMENTS, min_size=1, max_size=4).map(lambda parts: "/" + "/".join(parts)), max_size=5),
    st.booleans(),
    st.lists(SEGMENTS, max_size=5).map(lambda parts: "/" + "/".join(parts)),
)
def test_all_patterns_together_match_what_each_matches(patterns: list[str], rest: bool, path: str) -> None:
    try:
        paths.check(path.encode())
    except InvalidPath:
        return
    patterns = [*patterns, "/v1/files/**"] if rest else patterns
    expected = any(re.fullmatch(as_one_expression(pattern), path) for pattern in patterns)
    assert (path.encode() in Endpoints(patterns)) is expected


@pytest.mark.parametrize(
    ("pattern", "words"),
    [
        ("v1/models", "begins with /"),
        ("", "begins with /"),
        ("/v1//models", "plain path"),
        ("/v1/../models", "plain path"),
        ("/v1/models?x=y", "plain path"),
        ("/v1/%2e", "plain path"),
        ("/v1/ä", "plain path"),
        ("/v1/**/x", "last segment"),
        ("/v1/x**", "last segment"),
        ("/v1/{id", "placeholder"),
        ("/v1/{}", "placeholder"),
        ("/v1/{a b}", "placeholder"),
        ("/v1/{model}/{model}", "once"),
        ("/v1/a%2Fb", "plain path"),
    ],
)
def test_a_pattern_that_could_never_match_is_refused(pattern: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Endpoints([pattern])
