from __future__ import annotations

import json
from urllib.parse import urlencode

import httpx2
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_proxy.errors import BadRequest, InvalidJson, ParameterNotAllowed
from llm_proxy.proxy import parameters
from llm_proxy.proxy.parameters import ParameterRules

JSON = [(b"content-type", b"application/json")]
FORM = [(b"content-type", b"application/x-www-form-urlencoded")]
MULTIPART = [(b"content-type", b"multipart/form-data; boundary=XX")]


def part(name: str, value: str, more: str = "") -> bytes:
    return f'--XX\r\nContent-Disposition: form-data; name="{name}"{more}\r\n\r\n{value}\r\n'.encode()


class TestJson:
    def test_values_are_text(self) -> None:
        body = b'{"model":"gpt-4o","n":2,"stream":true,"t":0.5,"user":null,"messages":[],"o":{"model":"x"}}'
        assert parameters.read(body, JSON) == {
            "model": ("gpt-4o",),
            "n": ("2",),
            "stream": ("true",),
            "t": ("0.5",),
            "user": ("null",),
            "messages": (None,),
            "o": (None,),
        }

    def test_an_empty_body_has_none(self) -> None:
        assert parameters.read(b"", JSON) == {}

    @pytest.mark.parametrize("headers", [[], [(b"content-type", b"text/plain")], [(b"content-type", b"")]])
    def test_it_is_json_whatever_it_is_called(self, headers: list[tuple[bytes, bytes]]) -> None:
        assert parameters.read(b'{"model":"x"}', headers) == {"model": ("x",)}

    @pytest.mark.parametrize(
        "body",
        [
            b"{",
            b"[]",
            b'"x"',
            b"null",
            b'{"model":"a","model":"b"}',
            b'{"model":"a","\\u006dodel":"b"}',
            b'{"o":{"a":1,"a":2}}',
            b'{"model":NaN}',
            b'{"model":"\xff"}',
            '{"model":"x"}'.encode("utf-16"),
            b'\xef\xbb\xbf{"model":"x"}',
            b'{"model":"x"} {"model":"y"}',
            b'{"x":' + b"[" * 100_000,
            b'{"x":' + b"9" * 5000 + b"}",
        ],
    )
    def test_what_readers_could_understand_differently_is_refused(self, body: bytes) -> None:
        with pytest.raises(InvalidJson):
            parameters.read(body, JSON)

    def test_two_content_types_are_refused(self) -> None:
        with pytest.raises(InvalidJson):
            parameters.read(b"{}", [*JSON, *FORM])

    def test_a_compressed_body_is_refused(self) -> None:
        with pytest.raises(ParameterNotAllowed):
            parameters.read(b"{}", [*JSON, (b"content-encoding", b"gzip")])
        assert parameters.read(b"{}", [*JSON, (b"content-encoding", b"identity")]) == {}


class TestForms:
    def test_every_value_counts(self) -> None:
        assert parameters.read(b"model=a&model=b%20c&x=", FORM) == {"model": ["a", "b c"], "x": [""]}

    @pytest.mark.parametrize("body", [b"model", b"model=%ff", "model=ä".encode(), b"a=1&" * 2000 + b"b=1"])
    def test_a_form_that_is_not_plain_is_refused(self, body: bytes) -> None:
        with pytest.raises(ParameterNotAllowed):
            parameters.read(body, FORM)

    def test_multipart_has_values_and_files(self) -> None:
        body = (
            part("model", "whisper-1") + part("file", "RIFF", '; filename="a b.wav"') + part("model", "x") + b"--XX--"
        )
        assert parameters.read(body, MULTIPART) == {"model": ["whisper-1", "x"], "file": [None]}

    def test_multipart_of_the_sdks_client_is_read(self) -> None:
        files = {"file": ("a.wav", b"\r\n--\x00\xff", "audio/wav")}
        request = httpx2.Request("POST", "http://x/", data={"model": "whisper-1", "language": "de"}, files=files)
        fields = [(b"content-type", request.headers["content-type"].encode())]
        assert parameters.read(request.read(), fields) == {"model": ["whisper-1"], "language": ["de"], "file": [None]}

    @pytest.mark.parametrize(
        "body",
        [
            b"",
            b"preamble\r\n" + part("model", "a") + b"--XX--",
            part("model", "a"),
            part("model", "a") + b"--XX--trailing",
            part("model", "a") + b"--XX--\r\nepilogue",
            part("file", 'x\n--XX\nContent-Disposition: form-data; name="model"\n\nb', '; filename="f"') + b"--XX--",
            b'--XX \r\nContent-Disposition: form-data; name="model"\r\n\r\na\r\n--XX--',
            b"--XX\r\nContent-Disposition: form-data; name=model\r\n\r\na\r\n--XX--",
            b'--XX\r\nContent-Disposition: form-data; name="a"; name="model"\r\n\r\na\r\n--XX--',
            b'--XX\r\nContent-Disposition: form-data; name="a\\"b"\r\n\r\na\r\n--XX--',
            b'--XX\r\nContent-Disposition: form-data;\r\n name="model"\r\n\r\na\r\n--XX--',
            b"--XX\r\nContent-Transfer-Encoding: base64\r\n" + part("model", "YQ==")[6:] + b"--XX--",
            b"--XX\r\n" + part("model", "a")[6:].replace(b"\r\n\r\n", b"\r\n" + part("x", "y")[6:]) + b"--XX--",
            b'--XX\r\nContent-Disposition: form-data; name="model"\r\na\r\n--XX--',
            b'--XX\r\nContent-Disposition: form-data; name="model"\r\n\r\n\xff\r\n--XX--',
            b"--XX\r\n\r\na\r\n--XX--",
        ],
    )
    def test_multipart_that_readers_could_understand_differently_is_refused(self, body: bytes) -> None:
        if not body:
            assert parameters.read(body, MULTIPART) == {}
            return
        with pytest.raises(ParameterNotAllowed):
            parameters.read(body, MULTIPART)

    @pytest.mark.parametrize("kind", [b"multipart/form-data", b"multipart/form-data; boundary=XX; boundary=YY"])
    def test_multipart_needs_one_boundary(self, kind: bytes) -> None:
        with pytest.raises(ParameterNotAllowed):
            parameters.read(part("model", "a") + b"--XX--", [(b"content-type", kind)])


class TestRules:
    RULES = ParameterRules.compile({"model": ("gpt-4o", "gpt-4.1-*", "o[13]"), "stream": ("false",), "tools": ("*",)})

    @pytest.mark.parametrize(
        ("document", "allowed"),
        [
            ({}, True),
            ({"other": "x"}, True),
            ({"model": "gpt-4o"}, True),
            ({"model": "gpt-4o-mini"}, False),
            ({"model": "xgpt-4o"}, False),
            ({"model": "GPT-4o"}, False),
            ({"model": "gpt-4o\n"}, False),
            ({"model": "gpt-4.1-nano"}, True),
            ({"model": "gpt-4.1-a\nb"}, True),
            ({"model": "o3"}, True),
            ({"model": "o2"}, False),
            ({"model": None}, False),
            ({"model": ["gpt-4o"]}, False),
            ({"stream": False}, True),
            ({"stream": True}, False),
            ({"stream": "false"}, True),
            ({"tools": [{"a": 1}]}, True),
            ({"Model": "gpt-4o"}, False),
            ({"model": "gpt-4o", "MODEL": "gpt-4o"}, False),
            ({"\u017ftream": False}, False),
        ],
    )
    def test_values_are_judged(self, document: dict[str, object], allowed: bool) -> None:
        found = parameters.read(json.dumps(document).encode(), JSON)
        assert (self.RULES.refusal(found) is None) is allowed

    @pytest.mark.parametrize(
        ("value", "shown"),
        [
            ("o9", '"o9"'),
            (None, "as a list, an object or a file"),
            ("x" * 1000, '"' + "x" * 64 + '..."'),
            ('a"\n\u202eb', r'"a\"\n\u202eb"'),
            ("sk-" + "a" * 43, '"[redacted]"'),
        ],
    )
    def test_the_refusal_names_the_value_without_secrets_and_what_is_allowed(
        self, value: str | None, shown: str
    ) -> None:
        refusal = self.RULES.refusal({"model": ("gpt-4o", value)})
        assert refusal is not None
        assert refusal.param == "model"
        assert refusal.message == f"model {shown} is not allowed here (allowed: gpt-4o, gpt-4.1-*, o[13])"

    def test_each_of_several_values_counts(self) -> None:
        assert self.RULES.refusal({"model": ("gpt-4o", "gpt-5")}) is not None


@given(st.dictionaries(st.sampled_from(["model", "x"]), st.text(max_size=5), max_size=2))
def test_json_and_forms_say_the_same(values: dict[str, str]) -> None:
    try:
        form = parameters.read(urlencode(values).encode(), FORM)
    except BadRequest:
        return
    assert {name: list(found) for name, found in form.items()} == {
        name: list(found) for name, found in parameters.read(json.dumps(values).encode(), JSON).items()
    }


@given(st.sampled_from([JSON, FORM, MULTIPART]), st.binary(max_size=60))
def test_any_body_is_read_or_refused(headers: list[tuple[bytes, bytes]], body: bytes) -> None:
    for candidate in (body, part("model", "a") + body, b"--XX\r\n" + body + b"\r\n--XX--"):
        try:
            parameters.read(candidate, headers)
        except BadRequest:
            continue
