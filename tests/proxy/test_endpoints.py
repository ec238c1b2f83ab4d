from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_proxy.errors import InvalidPath
from llm_proxy.proxy import paths
from llm_proxy.proxy.endpoints import Endpoints

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


def as_one_expression(pattern: str) -> str:
    """The reading of a pattern that the documentation gives, in the plainest form."""
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
    ],
)
def test_a_pattern_that_could_never_match_is_refused(pattern: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Endpoints([pattern])
