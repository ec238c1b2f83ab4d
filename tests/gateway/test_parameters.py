from __future__ import annotations

import json
import time
import tracemalloc

import httpx2
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_proxy.errors import BadRequest, InvalidJson, ParameterNotAllowed
from llm_proxy.gateway.http import parameters
from llm_proxy.gateway.http.headers import Headers
from llm_proxy.gateway.http.json_members import LONGEST_VALUE
from llm_proxy.gateway.http.parameters import SLICE, ParameterRules

JSON = [(b"content-type", b"application/json")]
FORM = [(b"content-type", b"application/x-www-form-urlencoded")]
CHAT, UPLOAD = b"/v1/chat/completions", b"/v1/audio/transcriptions"
MULTIPART = [(b"content-type", b"multipart/form-data; boundary=XX")]


def read(
    body: bytes, headers: Headers = JSON, *, upload: bool = False, size: int = 1 << 20
) -> dict[str, list[str | None]]:
    """Read a body in pieces of `size` bytes."""
    reader = parameters.reader(headers, UPLOAD if upload else CHAT)
    for start in range(0, len(body), size):
        reader.feed(body[start : start + size])
    return {name: list(values) for name, values in reader.end().items()}


def read_form(body: bytes, *, size: int = 1 << 20) -> dict[str, list[str | None]]:
    return read(body, MULTIPART, upload=True, size=size)


def part(name: str, value: str, more: str = "") -> bytes:
    return f'--XX\r\nContent-Disposition: form-data; name="{name}"{more}\r\n\r\n{value}\r\n'.encode()


NOT_JSON = [
    b"{",
    b"[]",
    b'"x"',
    b"null",
    b"}",
    b'{"a":1,}',
    b'{"a":01}',
    b'{"a":[1}',
    b'{"a":[1,]}',
    b'{"a" 1}',
    b"{'a':1}",
    b"{a:1}",
    b'{"a":"\x01"}',
    b'{"a":"\\x"}',
    b'{"a":"\\u12"}',
    b'{"a":1e999}',
    b'{"model":"a","model":"b"}',
    b'{"model":"a","\\u006dodel":"b"}',
    b'{"o":{"a":1,"a":2}}',
    b'{"model":NaN}',
    b'{"o":[-Infinity]}',
    b'{"model":"\xff"}',
    b'{"model":"\xed\xa0\x80"}',
    '{"model":"x"}'.encode("utf-16"),
    b'\xef\xbb\xbf{"model":"x"}',
    b'{"model":"x"} {"model":"y"}',
    b'{"x":' + b"[" * 100_000,
    b'{"x":' + b"9" * 5000 + b"}",
    b'{"' + b"x" * 5000 + b'":1}',
]

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)
documents = st.dictionaries(st.text(max_size=5), values, max_size=4)


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    if len(dict(pairs)) != len(pairs):
        raise ValueError
    return dict(pairs)


def _refuse(constant: str) -> None:
    raise ValueError(constant)


class TestJson:
    def test_values_are_text(self) -> None:
        body = b'{"model":"gpt-4o","n":2,"stream":true,"t":0.5,"user":null,"messages":[],"o":{"model":"x"}}'
        assert read(body) == {
            "model": ["gpt-4o"],
            "n": ["2"],
            "stream": ["true"],
            "t": ["0.5"],
            "user": ["null"],
            "messages": [None],
            "o": [None],
        }

    @pytest.mark.parametrize("headers", [JSON, MULTIPART])
    def test_an_empty_body_has_none_whatever_its_type(self, headers: Headers) -> None:
        assert read(b"", headers, upload=True) == {}

    @pytest.mark.parametrize("kind", [None, b"application/json", b"Application/JSON; charset=UTF-8"])
    def test_json_is_read_if_it_is_called_so_or_nothing(self, kind: bytes | None) -> None:
        assert read(b'{"model":"x"}', [] if kind is None else [(b"content-type", kind)]) == {"model": ["x"]}

    @pytest.mark.parametrize("size", [1, 2, 3, 7, 1 << 20])
    @pytest.mark.parametrize("body", NOT_JSON)
    def test_what_readers_could_understand_differently_is_refused(self, body: bytes, size: int) -> None:
        if len(body) > 10_000 and size < 100:
            size *= 1000
        with pytest.raises(InvalidJson):
            read(body, size=size)

    @given(documents, st.integers(1, 20), st.booleans())
    def test_any_object_is_read_as_the_standard_library_reads_it(
        self, document: dict[str, object], size: int, ascii_only: bool
    ) -> None:
        body = json.dumps(document, ensure_ascii=ascii_only, indent=None if size % 2 else 1)
        expected = {
            name: [value if isinstance(value, str) else None if isinstance(value, (list, dict)) else json.dumps(value)]
            for name, value in document.items()
        }
        assert read(body.encode("utf-8", "surrogatepass"), size=size) == expected

    @given(st.one_of(st.binary(max_size=60), st.text(st.sampled_from('{}[]:,"\\u0e1.- truefalsn'), max_size=30)))
    def test_any_bytes_are_read_as_the_standard_library_reads_them_or_refused(self, body: bytes | str) -> None:
        data = body if isinstance(body, bytes) else body.encode()
        try:
            strict = json.loads(data.decode("utf-8"), object_pairs_hook=_unique, parse_constant=_refuse)
        except (ValueError, RecursionError):
            strict = None
        try:
            found = read(data, size=3)
        except InvalidJson:
            # An infinite number is the only thing that is refused here and not there.
            assert not isinstance(strict, dict) or "Infinity" in json.dumps(strict)
            return
        assert not data or (isinstance(strict, dict) and set(found) == set(strict))

    def test_a_long_text_cannot_be_compared(self) -> None:
        assert read(b'{"model":"' + b"x" * (LONGEST_VALUE + 1) + b'"}', size=1000) == {"model": [None]}

    def test_more_tokens_than_can_be_checked_are_refused(self) -> None:
        with pytest.raises(InvalidJson, match="more than 1000000 JSON tokens"):
            read(b'{"x":[' + b"[]," * 400_000 + b"[]]}", size=SLICE)

    def test_more_members_than_can_be_judged_are_refused(self) -> None:
        members = [b'"%d":1' % number for number in range(257)]
        assert len(read(b"{" + b",".join(members[:256]) + b"}")) == 256
        with pytest.raises(InvalidJson, match="more than 256 members"):
            read(b"{" + b",".join(members) + b"}")

    def test_a_million_numbers_are_no_burden(self) -> None:
        assert read(b'{"input":[' + b"1234," * 1_000_000 + b"1]}", size=SLICE) == {"input": [None]}

    @pytest.mark.parametrize("size", [SLICE])
    @pytest.mark.parametrize(
        "body",
        [
            b'{"x":[' + b"[]," * 300_000 + b"[]]}",
            b'{"x":"' + b"A" * 20_000_000 + b'"}',
            b'{"x":' + b" " * 5_000_000 + b"1}",
            b'{"x":{' + b",".join(b'"%d":1' % number for number in range(100_000)) + b"}}",
            b'{"x":[' + b'"a",' * 1_000_000 + b'""]}',
            b'{"x":"' + b"\\u0041" * 1_000_000 + b'"}',
        ],
        ids=["empty-lists", "long-text", "blanks", "names", "texts", "escapes"],
    )
    def test_a_slice_takes_less_than_50_ms_of_cpu(self, body: bytes, size: int) -> None:
        reader = parameters.reader(JSON, CHAT)
        longest = 0.0
        for start in range(0, len(body), size):
            piece = body[start : start + size]
            began = time.thread_time()
            reader.feed(piece)
            longest = max(longest, time.thread_time() - began)
        assert list(reader.end()) == ["x"]
        assert longest < 0.05

    def test_a_long_body_takes_no_memory(self) -> None:
        reader = parameters.reader(JSON, CHAT)
        reader.feed(b'{"messages":[{"content":"')
        tracemalloc.start()
        for _ in range(1000):
            reader.feed(b"A" * SLICE)
        reader.feed(b'"}' + b',{"content":"x"}' * 10_000 + b"]}")
        assert tracemalloc.get_traced_memory()[1] < 32 * SLICE
        tracemalloc.stop()


#: Bodies of a request whose model must be one of `gpt-4o`; each of them is one of an attack to name another.
ATTACKS = [
    ("json-labelled-as-a-form", b"application/x-www-form-urlencoded", b'{"model":"evil","x":"=1"}'),
    ("form", b"application/x-www-form-urlencoded", b"model=evil"),
    ("form-blank-behind-the-name", b"application/x-www-form-urlencoded", b"model+=evil&model=gpt-4o"),
    ("form-blank-before-the-name", b"application/x-www-form-urlencoded", b"+model=evil"),
    ("form-list", b"application/x-www-form-urlencoded", b"model[]=evil"),
    ("form-null", b"application/x-www-form-urlencoded", b"model%00=evil"),
    ("json-labelled-as-text", b"text/plain", b'{"model":"gpt-4o"}'),
    ("json-labelled-as-nothing", b"", b'{"model":"gpt-4o"}'),
    ("json-in-utf-16", b"application/json", '{"model":"evil"}'.encode("utf-16-le")),
    ("json-in-utf-32", b"application/json", '{"model":"evil"}'.encode("utf-32-le")),
    ("json-of-another-charset", b"application/json; charset=utf-16", b'{"model":"gpt-4o"}'),
    ("json-of-utf-7", b"application/json; charset=utf-7", b'{"+AG0-odel":"evil"}'),
    ("json-of-two-charsets", b"application/json; charset=utf-8; charset=utf-16", b'{"model":"gpt-4o"}'),
    ("json-and-another-type", b"application/json, text/plain", b'{"model":"gpt-4o"}'),
    ("json-of-another-kind", b"application/merge-patch+json", b'{"model":"gpt-4o"}'),
    ("json-byte-order-mark", b"application/json", b'\xef\xbb\xbf{"model":"evil"}'),
    ("json-twice", b"application/json", b'{"model":"evil","model":"gpt-4o"}'),
    ("json-twice-escaped", b"application/json", b'{"\\u006dodel":"evil","model":"gpt-4o"}'),
    ("json-comment", b"application/json", b'{/*"model":"gpt-4o",*/"model":"evil"}'),
    ("json-two-documents", b"application/json", b'{"model":"gpt-4o"}{"model":"evil"}'),
    ("json-list", b"application/json", b'[{"model":"evil"}]'),
    ("json-list-of-models", b"application/json", b'{"model":["evil"]}'),
    ("json-null-behind-the-value", b"application/json", b'{"model":"gpt-4o\\u0000"}'),
    *(
        (f"json-name-{name!r}", b"application/json", json.dumps({name: "evil"}).encode())
        for name in (
            "Model", "model ", " model", "mo\u0000del", "model\u0000", "model\u0000x", "model[]", "model[0]", "[model]",
            "model.name", "mo_del", "mo-del", "\uff4dodel", "model\u0301", "\u200bmodel", "mod\u00adel",
            "model\t", "\ufeffmodel",
        )
    ),
    ("form-in-parts-where-none-is-taken", b"multipart/form-data; boundary=XX", part("model", "gpt-4o") + b"--XX--"),
]  # fmt: skip

#: The same for an endpoint that accepts forms; the body is a form with the boundary `XX`.
FORM_ATTACKS = [
    ("no-boundary", b"multipart/form-data", part("model", "gpt-4o") + b"--XX--"),
    ("two-boundaries", b"multipart/form-data; boundary=XX; boundary=YY", part("model", "gpt-4o") + b"--XX--"),
    ("continued-boundary", b"multipart/form-data; boundary=XX; boundary*=YY", part("model", "gpt-4o") + b"--XX--"),
    ("boundary-in-parts", b"multipart/form-data; boundary*0=X; boundary*1=X", part("model", "gpt-4o") + b"--XX--"),
    ("boundary-with-an-escape", b'multipart/form-data; boundary="X\\X"', part("model", "gpt-4o") + b"--XX--"),
    ("boundary-with-a-blank", b'multipart/form-data; boundary="XX "', part("model", "gpt-4o") + b"--XX--"),
    ("boundary-with-a-comma", b"multipart/form-data; boundary=XX,YY", part("model", "gpt-4o") + b"--XX--"),
    ("charset", b"multipart/form-data; boundary=XX; charset=utf-16", part("model", "gpt-4o") + b"--XX--"),
    ("mixed", b"multipart/mixed; boundary=XX", part("model", "gpt-4o") + b"--XX--"),
    ("form-in-disguise", b"application/x-www-form-urlencoded", b"model=evil"),
    *(
        (name, b"multipart/form-data; boundary=XX", body + b"--XX--")
        for name, body in (
            ("other-model", part("model", "evil")),
            ("two-models", part("model", "gpt-4o") + part("model", "evil")),
            ("trailing-blank", part("model ", "evil")),
            ("leading-blank", part(" model", "evil")),
            ("capital", part("MODEL", "evil")),
            ("list", part("model[]", "evil")),
            ("index", part("model[0]", "evil")),
            ("null", part("model\0", "evil")),
            ("percent", part("model%00", "evil")),
            ("full-width", part("\uff4dodel", "evil")),
            ("default-charset", part("_charset_", "utf-7") + part("model", "gpt-4o")),
            ("file", part("model", "gpt-4o", '; filename="a"')),
            ("empty-file-name", part("model", "gpt-4o", '; filename=""')),
            ("encoded-file-name", part("model", "gpt-4o", "; filename*=utf-8''a")),
            ("encoded-name", part("x", "evil", "; name*=utf-8''model")),
            ("type-of-another-charset", part("model", "gpt-4o", "\r\nContent-Type: text/plain; charset=utf-7")),
            ("json-field", part("model", "gpt-4o", "\r\nContent-Type: application/json")),
            ("two-types", part("model", "gpt-4o", "\r\nContent-Type: text/plain\r\nContent-Type: text/plain")),
            ("nested", part("x", "evil", '; filename="a"\r\nContent-Type: multipart/mixed; boundary=YY')),
            ("transfer-encoding", part("model", "gpt-4o", "\r\nContent-Transfer-Encoding: base64")),
            ("wrong-length", part("model", "gpt-4o", "\r\nContent-Length: 3")),
            ("two-dispositions", part("x", "evil", '\r\nContent-Disposition: form-data; name="model"')),
            ("unknown-field", part("model", "gpt-4o", "\r\nX-Name: model")),
            ("blank-behind-a-boundary", b"--XX \r\n" + part("model", "evil")[6:]),
            ("bare-line-feeds", part("f", 'a\n--XX\nContent-Disposition: form-data; name="model"\n\nevil')),
        )
    ),
]

RULES = ParameterRules({"model": ("gpt-4o",)})


def passes(kind: bytes, body: bytes, *, upload: bool, size: int = 1 << 20) -> bool:
    try:
        return RULES.refusal(read(body, [(b"content-type", kind)], upload=upload, size=size)) is None
    except BadRequest:
        return False


@pytest.mark.parametrize("size", [1, 5, 1 << 20])
@pytest.mark.parametrize(("kind", "body"), [row[1:] for row in ATTACKS], ids=[row[0] for row in ATTACKS])
def test_no_trick_names_another_model_where_json_is_taken(kind: bytes, body: bytes, size: int) -> None:
    assert passes(b"application/json", b'{"model":"gpt-4o"}', upload=False)
    assert not passes(kind, body, upload=False, size=size)


@pytest.mark.parametrize("size", [1, 5, 1 << 20])
@pytest.mark.parametrize(("kind", "body"), [row[1:] for row in FORM_ATTACKS], ids=[row[0] for row in FORM_ATTACKS])
def test_no_trick_names_another_model_where_forms_are_taken(kind: bytes, body: bytes, size: int) -> None:
    assert passes(b"multipart/form-data; boundary=XX", part("model", "gpt-4o") + b"--XX--", upload=True)
    assert not passes(kind, body, upload=True, size=size)


class TestForms:
    @pytest.mark.parametrize("size", [1, 2, 3, 1 << 20])
    def test_multipart_has_values_and_files(self, size: int) -> None:
        body = (
            part("model", "whisper-1")
            + part("file", "RIFF\r\n--X", '; filename="a b.wav"\r\nContent-Type: audio/wav\r\nContent-Length: 9')
            + part("model", "", "\r\nContent-Type: text/plain; charset=utf-8")
            + b"--XX--\r\n"
        )
        assert read_form(body, size=size) == {"model": ["whisper-1", ""], "file": [None]}

    def test_multipart_of_the_sdks_client_is_read(self) -> None:
        files = {"file": ("a.wav", b"\r\n--\x00\xff", "audio/wav")}
        request = httpx2.Request("POST", "http://x/", data={"model": "whisper-1", "language": "de"}, files=files)
        fields = [(b"content-type", request.headers["content-type"].encode())]
        found = read(request.read(), fields, upload=True)
        assert found == {"model": ["whisper-1"], "language": ["de"], "file": [None]}

    def test_a_field_that_is_long_cannot_be_compared_and_a_file_takes_no_memory(self) -> None:
        long = "x" * (LONGEST_VALUE + 1)
        assert read_form(part("model", long) + b"--XX--", size=SLICE) == {"model": [None]}
        reader = parameters.reader(MULTIPART, UPLOAD)
        reader.feed(part("file", "", '; filename="a"')[:-2])
        tracemalloc.start()
        for _ in range(1000):
            reader.feed(bytes(SLICE))
        assert tracemalloc.get_traced_memory()[1] < 8 * SLICE
        tracemalloc.stop()

    @pytest.mark.parametrize("size", [1, 1 << 20])
    @pytest.mark.parametrize(
        "body",
        [
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
            part("a", "b") * 257 + b"--XX--",
            b"--XX\r\n" + b"x" * 10_000,
        ],
    )
    def test_multipart_that_readers_could_understand_differently_is_refused(self, body: bytes, size: int) -> None:
        with pytest.raises(ParameterNotAllowed):
            read_form(body, size=size if len(body) < 10_000 else 1000)

    def test_two_content_types_are_refused(self) -> None:
        with pytest.raises(InvalidJson):
            read(b"{}", [*JSON, *FORM])

    def test_a_compressed_body_is_refused(self) -> None:
        with pytest.raises(ParameterNotAllowed):
            read(b"{}", [*JSON, (b"content-encoding", b"gzip")])
        assert read(b"{}", [*JSON, (b"content-encoding", b"identity")]) == {}

    def test_the_refusal_of_a_type_names_it_and_what_is_allowed(self) -> None:
        with pytest.raises(ParameterNotAllowed, match=r'"text/plain" is not allowed .* \(allowed: application/json\)'):
            read(b"{}", [(b"content-type", b"text/plain")])


class TestRules:
    RULES = ParameterRules({"model": ("gpt-4o", "gpt-4.1-*", "o[13]"), "stream": ("false",), "tools": ("*",)})

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
            ({"model": "gpt-4.1-a\nb"}, False),
            ({"model": "gpt-4.1-a\0"}, False),
            ({"model": "gpt-4.1-\x7f"}, False),
            ({"model": "gpt-4.1-\ud800"}, False),
            ({"model": "gpt-4.1-\u00e9\U0001f600"}, True),
            ({"tools": "a\0b"}, True),
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
        found = read(json.dumps(document).encode())
        assert (self.RULES.refusal(found) is None) is allowed

    def test_a_control_character_in_a_field_of_a_form_is_refused(self) -> None:
        assert self.RULES.refusal(read_form(part("model", "gpt-4.1-a\0b") + b"--XX--")) is not None

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


@given(st.sampled_from([JSON, FORM, MULTIPART]), st.binary(max_size=60), st.integers(1, 9))
def test_any_body_is_read_or_refused(headers: Headers, body: bytes, size: int) -> None:
    for candidate in (body, part("model", "a") + body, b"--XX\r\n" + body + b"\r\n--XX--"):
        try:
            read(candidate, headers, upload=True, size=size)
        except BadRequest:
            continue
