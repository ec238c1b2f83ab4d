from __future__ import annotations

import hashlib

import pytest

from llm_proxy import tokens

TOKEN = b"sk-" + b"a1_-" * 10 + b"xyz"


def test_a_new_secret_is_sk_and_43_url_safe_characters() -> None:
    secrets = {tokens.new_secret() for _ in range(100)}
    assert len(secrets) == 100
    for secret in secrets:
        assert tokens.digest_of(secret.encode()) == tokens.digest(secret)


def test_the_digest_of_a_secret_is_its_sha256() -> None:
    assert tokens.digest("sk-é") == hashlib.sha256(b"sk-\xc3\xa9").digest()
    assert tokens.digest_of(TOKEN) == hashlib.sha256(TOKEN).digest()


@pytest.mark.parametrize(
    "candidate",
    [
        TOKEN[:-1],
        TOKEN + b"b",
        TOKEN[:-1] + b"\n",
        TOKEN + b"\n",
        b"sk-" + b"+" * 43,
        b"SK-" + b"b" * 43,
        b"",
    ],
)
def test_what_does_not_have_the_format_of_a_token_has_no_digest(candidate: bytes) -> None:
    assert tokens.digest_of(candidate) is None
