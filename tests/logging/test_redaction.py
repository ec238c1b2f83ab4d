from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_proxy.logging.redaction import REDACTED, Redactor

KEY = "sk-canary_0123456789-abcdefghijklmnopqrstuvwxyz"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (f"key {KEY}.", f"key {REDACTED}."),
        (f"key{KEY}", f"key{REDACTED}"),
        (f"\n{KEY}\n", f"\n{REDACTED}\n"),
        ("SK-CANARY-123", REDACTED),
        ("sk-ant-api03-aaaa and sk-proj-bbbb", f"{REDACTED} and {REDACTED}"),
        ("AIzaSyA-1234567890", REDACTED),
        ("gsk_1234567890 xai-1234567890", f"{REDACTED} {REDACTED}"),
        ("Authorization: Bearer abc.def/ghi+jkl=", f"Authorization: Bearer {REDACTED}"),
        ("authorization: bearer  abcd", f"authorization: bearer  {REDACTED}"),
        ("Basic dXNlcjpwYXNz", f"Basic {REDACTED}"),
        ("postgres://user:pa%40ss@db:5432/x", f"postgres://user:{REDACTED}@db:5432/x"),
        ("redis://:word@cache/0", f"redis://:{REDACTED}@cache/0"),
        ("api_key='plain:an-odd-key/1', x", f"api_key='plain:{REDACTED}', x"),
        ("enc:v2:0a1b2c3d:AAAA-_==", f"enc:v2:{REDACTED}"),
        ("in plain: words", "in plain: words"),
        ("http://127.0.0.1:8080/v1", "http://127.0.0.1:8080/v1"),
        ("https://api.openai.com/v1/chat", "https://api.openai.com/v1/chat"),
        ("a task-list and a desk-top", "a task-list and a desk-top"),
        ("model gpt-5-mini answered", "model gpt-5-mini answered"),
        ("", ""),
    ],
)
def test_what_has_the_form_of_a_credential_is_cut_out(text: str, shown: str) -> None:
    assert Redactor().text(text) == shown


@pytest.mark.parametrize(
    ("path", "shown"),
    [
        ("/v1/models/gpt-4o", "/v1/models/gpt-4o"),
        ("/v1/models/a%20b%2Fc", "/v1/models/a%20b%2Fc"),
        (f"/v1/{KEY}/chat/completions", f"/v1/{REDACTED}/chat/completions"),
        (f"/v1/models/{KEY}", f"/v1/models/{REDACTED}"),
        ("/v1/models/%73%6B-" + KEY[3:], f"/v1/models/{REDACTED}"),
        ("/v1/models/s%6b%2D" + KEY[3:] + "%20x", f"/v1/models/{REDACTED} x"),
        ("/v1/models/%2573k-" + KEY[3:], f"/v1/models/{REDACTED}"),
        ("/v1/models/the-management-token", f"/v1/models/{REDACTED}"),
        ("/v1/models/the%2Dmanagement%2dtoken", f"/v1/models/{REDACTED}"),
        ("/v1/" + "a" * 500 + "/" + KEY, "/v1/" + "a" * 500 + "/" + REDACTED),
    ],
)
def test_a_credential_in_a_path_is_cut_out_however_it_is_encoded(path: str, shown: str) -> None:
    redactor = Redactor(["the-management-token"])
    assert redactor.path(path) == redactor.path(path) == shown
    assert redactor.path(shown) == shown


def test_the_secrets_of_the_process_are_cut_out_wherever_they_are() -> None:
    redactor = Redactor(["hunter2-management", "first-key,second-key", None, "", "short", "management"])
    assert redactor.text("xxhunter2-managementyy") == f"xx{REDACTED}yy"
    assert redactor.text("second-key then first-key") == f"{REDACTED} then {REDACTED}"
    assert redactor.text("the management") == f"the {REDACTED}"
    assert redactor.text("a short word") == "a short word", "five characters would be found in innocent words"


@pytest.mark.parametrize(
    "name", ["Authorization", "x-api-key", "X_API_KEY", "api_key", "Set-Cookie", "password", "token"]
)
def test_a_value_under_the_name_of_a_credential_is_never_shown(name: str) -> None:
    event: dict[str, Any] = {
        "event": "x",
        name: "Digest 12",
        "headers": [(name.encode(), b"Digest 12"), ("accept", "*/*")],
        "scope": {"deep": {name: ["Digest 12"]}},
    }
    assert Redactor()(None, "info", event) == {
        "event": "x",
        name: REDACTED,
        "headers": [[name, REDACTED], ["accept", "*/*"]],
        "scope": {"deep": {name: REDACTED}},
    }


def test_names_that_only_sound_like_credentials_are_shown() -> None:
    event = {"token_id": "t", "api_key_last4": "cdef", "input_tokens": 3, "token": None}
    assert Redactor()(None, "info", dict(event)) == event


class Awkward:
    def __str__(self) -> str:
        raise RuntimeError(KEY)


def test_any_value_becomes_plain_json() -> None:
    nested: list[object] = []
    nested.append(nested)
    event = {
        "a": {1, "x"},
        "b": Awkward(),
        "c": nested,
        "d": {3: {KEY: ValueError(KEY)}},
        "e": bytearray(b"\xff" + KEY.encode()),
    }
    shown = Redactor()(None, "info", event)
    text = msgspec.json.encode(shown).decode()
    assert KEY not in text
    assert shown["b"] == "<Awkward that cannot be shown: RuntimeError>"
    assert shown["d"] == {"3": {REDACTED: REDACTED}}
    assert shown["e"] == f"\\xff{REDACTED}"


@given(before=st.text(max_size=20), after=st.text(max_size=20))
def test_a_key_is_cut_out_of_any_text(before: str, after: str) -> None:
    assert KEY not in Redactor().text(f"{before}{KEY}{after}")
    assert "hunter2-management" not in Redactor(["hunter2-management"]).text(f"{before}hunter2-management{after}")
