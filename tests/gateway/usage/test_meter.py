from __future__ import annotations

import json

import pytest

from llm_proxy.gateway.usage import UNKNOWN, Usage, meter_for
from llm_proxy.gateway.usage.events import KEPT
from llm_proxy.gateway.usage.shapes import MAX_TOKENS
from tests.gateway.usage.metering import EVENTS, JSON, feed, metered, of_events, of_json, of_usage


class TestShapes:
    def test_openai_chat(self) -> None:
        usage = {
            "prompt_tokens": 1000,
            "completion_tokens": 200,
            "total_tokens": 1200,
            "prompt_tokens_details": {"cached_tokens": 768, "audio_tokens": 0},
            "completion_tokens_details": {"reasoning_tokens": 150},
        }
        assert of_json({"id": "c", "model": "gpt-4o-2024-08-06", "choices": [], "usage": usage}) == Usage(
            "gpt-4o-2024-08-06", 1000, 200, 768, reasoning_tokens=150
        )

    def test_openai_chat_stream(self) -> None:
        chunk = {"id": "c", "model": "gpt-4o", "choices": [{"delta": {"content": "x"}}], "usage": None}
        last = {"model": "gpt-4o", "choices": [], "usage": {"prompt_tokens": 7, "completion_tokens": 3}}
        assert of_events(chunk, chunk, last) == Usage("gpt-4o", 7, 3, None)

    def test_openai_chat_stream_without_usage_has_a_model(self) -> None:
        assert of_events({"model": "gpt-4o", "choices": []}) == Usage("gpt-4o")

    def test_openai_embeddings_have_no_output(self) -> None:
        document = {"data": [{"embedding": [0.1]}], "model": "e", "usage": {"prompt_tokens": 8, "total_tokens": 8}}
        assert of_json(document) == Usage("e", 8, 0, None)

    def test_openai_responses(self) -> None:
        usage = {"input_tokens": 50, "input_tokens_details": {"cached_tokens": 10}, "output_tokens": 5}
        response = {"model": "gpt-5", "output": [], "usage": usage}
        assert of_json(response) == Usage("gpt-5", 50, 5, 10)
        assert of_events(
            {"type": "response.created", "response": {"model": "gpt-5", "usage": None}},
            {"type": "response.output_text.delta", "delta": '"usage": {"input_tokens": 1}'},
            {"type": "response.completed", "response": response},
        ) == Usage("gpt-5", 50, 5, 10)

    def test_openai_audio_by_the_second_has_no_tokens(self) -> None:
        assert of_json({"text": "hi", "usage": {"type": "duration", "seconds": 3}}) == Usage(details={"audio_ms": 3000})

    def test_anthropic_input_is_the_sum_with_its_cache(self) -> None:
        usage = {
            "input_tokens": 5,
            "cache_creation_input_tokens": 100,
            "cache_read_input_tokens": 2000,
            "cache_creation": {"ephemeral_5m_input_tokens": 100},
            "output_tokens": 40,
        }
        assert of_json({"type": "message", "model": "claude", "usage": usage}) == Usage("claude", 2105, 40, 2000, 100)

    def test_anthropic_stream_counts_up(self) -> None:
        start = {"model": "claude", "usage": {"input_tokens": 5, "cache_read_input_tokens": 20, "output_tokens": 1}}
        assert of_events(
            {"type": "message_start", "message": start},
            {"type": "message_delta", "delta": {}, "usage": {"output_tokens": 30}},
            {"type": "message_delta", "delta": {}, "usage": {"output_tokens": 77, "input_tokens": None}},
        ) == Usage("claude", 25, 77, 20)

    def test_count_tokens_spends_nothing(self) -> None:
        assert of_json({"input_tokens": 2095}) == UNKNOWN

    def test_openai_names_take_precedence_over_anthropic_names(self) -> None:
        counts = {"prompt_tokens": 30, "completion_tokens": 4, "input_tokens": 10, "cache_read_input_tokens": 20}
        assert of_usage(**counts) == Usage("", 30, 4, 20)

    def test_deepseek_cache_hits_are_cached_tokens(self) -> None:
        assert of_usage(prompt_tokens=30, prompt_cache_hit_tokens=20, completion_tokens=1) == Usage("", 30, 1, 20)


class TestCounts:
    @pytest.mark.parametrize("wrong", [-1, MAX_TOKENS + 1, 10**30, 1.5, "7", True, [7], {"a": 7}])
    def test_no_count_is_known_if_one_is_implausible(self, wrong: object) -> None:
        """The total must not fill the gap, and what is beside an implausible count is incomplete."""
        assert of_usage(prompt_tokens=wrong, completion_tokens=4, total_tokens=9) == Usage()
        assert of_usage(input_tokens=3, output_tokens=4, cache_read_input_tokens=wrong) == Usage()
        assert of_usage(prompt_tokens=3, prompt_tokens_details={"cached_tokens": wrong}) == Usage()
        assert of_events({"usage": {"prompt_tokens": 3}}, {"usage": {"prompt_tokens": wrong}}) == Usage()
        compaction = {"type": "compaction", "input_tokens": wrong, "output_tokens": 7}
        meter = meter_for(200, [JSON])
        body = {"usage": {"input_tokens": 3, "output_tokens": 4, "iterations": [compaction]}}
        assert metered(meter, json.dumps(body).encode()) == Usage()
        assert meter.unmetered

    @pytest.mark.parametrize("wrong", [-1, MAX_TOKENS + 1, 10**22, 10**300, 1.5, "7", True, [7]])
    @pytest.mark.parametrize("name", ["prompt_tokens", "output_tokens", "prompt_tokens_details", "cached_tokens"])
    def test_an_implausible_count_makes_the_response_unmetered(self, name: str, wrong: object) -> None:
        details = {"cached_tokens": wrong}
        usage = {"prompt_tokens_details": details} if name == "cached_tokens" else {name: wrong}
        document = json.dumps({"usage": usage}).encode()
        for kind, body in ((JSON, document), (EVENTS, b"data: " + document + b"\n\ndata: [DONE]\n\n")):
            meter = meter_for(200, [kind])
            metered(meter, body)
            assert meter.unmetered

    def test_an_implausible_price_or_duration_is_not_known(self) -> None:
        """The ledger could not store them, nor their sums."""
        assert of_usage(prompt_tokens=1, completion_tokens=2, cost=1_000_000).cost_nanousd == 10**15
        assert of_usage(prompt_tokens=1, completion_tokens=2, cost=1_000_001) == Usage("", 1, 2)
        assert of_usage(prompt_tokens=1, completion_tokens=2, cost_in_usd_ticks=10**16) == Usage("", 1, 2)
        assert of_usage(seconds=1e13) == Usage()

    @pytest.mark.parametrize("digits", [5000, 40_000, 100_000, 3_000_000])
    def test_a_number_of_many_digits_makes_the_response_unmetered(self, digits: int) -> None:
        document = b'{"model":"m","usage":{"prompt_tokens":%b,"completion_tokens":4}}' % (b"9" * digits)
        for kind, body in ((JSON, document), (EVENTS, b"data: " + document + b"\n\ndata: [DONE]\n\n")):
            meter = meter_for(200, [kind])
            assert metered(meter, body) == Usage("m")
            assert meter.unmetered

    @pytest.mark.parametrize(
        "document",
        [
            b"",
            b"{}",
            b"[1,",
            b'"text',
            b'{"usage":null}',
            b'{"usage":{}}',
            b'{"usage":{"type":"duration","seconds":1.5}}',
            b'{"usage":{"prompt_tokens":3,"output_tokens":null,"prompt_tokens_details":null}}',
            b'{"usage":{"prompt_tokens":3,"prompt_tokens_details":{"cached_tokens":null,"audio":1.5}}}',
            b'{"usage":{"prompt_tokens":3},"more":[',
        ],
    )
    def test_a_response_with_no_count_or_readable_counts_is_not_unmetered(self, document: bytes) -> None:
        meter = meter_for(200, [JSON])
        metered(meter, document)
        assert not meter.unmetered

    @pytest.mark.parametrize("length", [0, 50_000])
    @pytest.mark.parametrize("end", [b'"choices":[{}', b'"usage":{"prompt_tokens":3', b'"usage'])
    def test_an_incomplete_document_without_usage_is_unmetered(self, length: int, end: bytes) -> None:
        document = b'{"model":"m","pad":"%b",%b' % (b"x" * length, end)
        for kind, body in ((JSON, document), (EVENTS, b"data: " + document)):
            for whole in (True, False):
                meter = meter_for(200, [kind])
                feed(meter, body)
                assert meter.result(whole=whole) == Usage("m")
                assert meter.unmetered is whole

    def test_null_is_no_count(self) -> None:
        assert of_usage(prompt_tokens=None, completion_tokens=4, cache_read_input_tokens=None) == Usage("", None, 4)
        assert of_usage(prompt_tokens=3, prompt_tokens_details=None) == Usage("", 3)

    def test_zero_is_a_count(self) -> None:
        assert of_usage(prompt_tokens=0, completion_tokens=0) == Usage("", 0, 0, None)

    def test_zero_does_not_replace_a_count_of_an_earlier_report(self) -> None:
        started = {"type": "message_start", "message": {"usage": {"input_tokens": 9, "output_tokens": 1}}}
        assert of_events(started, {"usage": {"input_tokens": 0, "output_tokens": 20}}) == Usage("", 9, 20)
        counts = {"prompt_tokens": 8, "completion_tokens": 5, "total_tokens": 13}
        assert of_events({"usage": counts}, {"usage": dict.fromkeys(counts, 0)}) == Usage("", 8, 5)

    def test_a_refusal_has_no_output(self) -> None:
        started = {"type": "message_start", "message": {"usage": {"input_tokens": 9, "output_tokens": 1}}}
        assert of_events(started, {"type": "message_delta", "usage": {"output_tokens": 0}}) == Usage("", 9, 0)

    def test_a_total_of_nothing_is_unmetered(self) -> None:
        meter = meter_for(200, [JSON])
        assert metered(meter, b'{"usage":{"prompt_tokens":0,"completion_tokens":0,"total_tokens":9}}') == Usage()
        assert meter.unmetered

    @pytest.mark.parametrize("other", [None, 3, "usage", [1], []])
    def test_a_member_of_a_wrong_type_does_not_affect_the_others(self, other: object) -> None:
        usage = {"prompt_tokens": 3}
        assert of_json({"model": other, "usage": usage, "message": other, "response": other}).input_tokens == 3
        assert of_json({"usage": other, "model": "m"}) == Usage("m")


class TestModel:
    def test_a_model_name_is_one_line_of_limited_length(self) -> None:
        assert of_json({"model": "a\x00\n\x1b[31mb\u202ec\x7f"}).model == "a[31mbc"
        assert of_json({"model": "  x  "}).model == "x"
        assert of_json({"model": "ä" * 300}).model == "ä" * 255
        assert of_json({"model": "\U0001f600"}).model == "\U0001f600"

    def test_the_first_model_name_of_a_stream_is_kept(self) -> None:
        assert of_events({"model": ""}, {"model": "a"}, {"model": "b", "usage": {"prompt_tokens": 1}}).model == "a"

    def test_a_model_name_that_is_not_utf8_is_unknown(self) -> None:
        assert of_json(b'{"model":"\xff","usage":{"prompt_tokens":3}}') == Usage("", 3)
        assert of_json(b'{"model":"\\ud800x","usage":{"prompt_tokens":3}}').input_tokens == 3


class TestBodies:
    @pytest.mark.parametrize(
        "body",
        [
            b"",
            b"{",
            b"null",
            b"[]",
            b'"usage"',
            b'{"usage": {"prompt_tokens": 1',
            b'[{"usage":{"prompt_tokens":1}}]',
            b'{"a":' + b"[" * 60_000,
            b'{"a":' + b"[" * 600_000,
            b"\xff\xfe",
            b"\x00" * 300_000,
            b'"' * 300_000,
            b"}" * 300_000,
            b"{" * 300_000,
            b"," * 300_000,
        ],
    )
    def test_the_usage_of_a_body_that_is_not_a_json_object_is_unknown(self, body: bytes) -> None:
        assert of_json(body) == UNKNOWN

    def test_a_byte_order_mark_is_ignored(self) -> None:
        assert of_json(b'\xef\xbb\xbf{"model":"m"}') == Usage("m")

    @pytest.mark.parametrize("order", [1, -1])
    def test_a_long_body_is_read_in_bounded_memory(self, order: int) -> None:
        vectors = [{"object": "embedding", "embedding": [0.0123, -1e-5] * 20_000, "usage": {"prompt_tokens": 9}}]
        text = '\\" } ] , "usage": {"prompt_tokens": 8} ' * 5000 + "\\"
        members = [
            ("model", "big"),
            ("data", vectors),
            ("b64", text),
            ("meta", {"model": "other", "usage": {"prompt_tokens": 7}}),
            ("usage", {"prompt_tokens": 5, "total_tokens": 5, "x": {"y": ["}"]}}),
        ]
        body = json.dumps(dict(members[::order])).encode()
        assert len(body) > 500_000
        meter = meter_for(200, [JSON])
        for start in range(0, len(body), 1000):
            feed(meter, body[start : start + 1000])
            scanner = getattr(meter, "_scanner", None)
            assert len(getattr(meter, "_kept", b"")) <= KEPT
            assert scanner is None or len(scanner._copy) <= 65536
        assert meter.result() == Usage("big", 5, 0, None)

    def test_in_a_long_body_only_overlong_members_are_lost(self) -> None:
        filler = "x" * 300_000
        assert of_json({"pad": filler, "model": filler, "usage": {"prompt_tokens": 5}}) == Usage("", 5)
        assert of_json({"pad": filler, "model": "m", "usage": {"prompt_tokens": 5, "pad": filler}}) == Usage("m")
        assert of_json({filler: {"a": "usage"}, "model": "m", "usage": {"prompt_tokens": 5}}) == Usage("m", 5)

    @pytest.mark.parametrize("kind", [JSON, EVENTS])
    def test_a_long_body_of_numbers_is_read_in_short_pieces(self, kind: tuple[bytes, bytes]) -> None:
        body = json.dumps({"data": [{"embedding": [0.5] * 20_000}], "usage": {"prompt_tokens": 5}}).encode()
        body = b"data: " + body + b"\n\n" if kind is EVENTS else body
        meter = meter_for(200, [kind])
        assert metered(meter, *(body[at : at + 50] for at in range(0, len(body), 50))) == Usage("", 5)
        assert not meter.unmetered

    def test_a_long_body_is_read_on_two_levels_only(self) -> None:
        inner = {"usage": {"prompt_tokens": 9}, "model": "inner"}
        document = {"pad": "x" * 300_000, "response": {"message": inner, "model": "m", "usage": {"prompt_tokens": 5}}}
        assert of_json(document) == of_json({**document, "pad": ""}) == Usage("m", 5)
        assert of_json({"pad": "x" * 300_000, "response": [inner], "a": {"response": inner}}) == UNKNOWN

    def test_escaped_names_in_a_long_body_are_read(self) -> None:
        body = b'{"pad":"' + b"x" * 300_000 + b'","\\u006dodel":"m","us\\u0061ge":{"prompt_tokens":5}}'
        assert of_json(body) == Usage("m", 5)

    @pytest.mark.parametrize("length", [0, 300_000])
    @pytest.mark.parametrize("end", ["", '"', '"}', '"} x', '\\ud83d"}', '\\x"}', '", "n": NaN}', '", "n": -Infinity}'])
    def test_an_incomplete_or_invalid_document_yields_what_was_read_before(self, length: int, end: str) -> None:
        body = '{"model":"m","usage":{"prompt_tokens":5},"pad":"' + "x" * length + end
        assert of_json(body.encode()) == Usage("m", 5)
        assert metered(meter_for(200, [EVENTS]), f"data: {body}\n\n".encode()) == Usage("m", 5)


class TestEvents:
    MESSAGE = b'{"model":"m","usage":{"prompt_tokens":5,"completion_tokens":6}}'

    @pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\r"])
    @pytest.mark.parametrize(
        "lines",
        [
            [b"data: %s", b"", b""],
            [b"data:%s", b"", b""],
            [b"\xef\xbb\xbfdata: %s", b"", b""],
            [b": comment", b"", b"event: x", b"id: 3", b"retry: 1", b"data: %s", b": c", b"", b""],
            [b"", b"", b"", b"data: %s", b"", b"", b""],
            [b"data: %s", b""],
            [b"data: %s"],
            [b"data", b"data:", b"data: %s", b"", b""],
            [b": usage " + b"x" * 300_000, b"data: %s", b"", b""],
            [b"event: " + b"x" * 300_000, b"", b"data: %s", b"", b""],
        ],
    )
    def test_events_with_any_lines_and_line_ends_are_read(self, end: bytes, lines: list[bytes]) -> None:
        stream = end.join(lines).replace(b"%s", self.MESSAGE)
        assert metered(meter_for(200, [EVENTS]), stream) == Usage("m", 5, 6)

    def test_events_with_mixed_line_ends_are_read(self) -> None:
        stream = b"event: x\rdata: " + self.MESSAGE + b"\n\n"
        assert metered(meter_for(200, [EVENTS]), stream) == Usage("m", 5, 6)

    @pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\r"])
    @pytest.mark.parametrize("pad", [0, 300_000])
    def test_a_document_in_several_data_lines_is_read(self, end: bytes, pad: int) -> None:
        lines = [
            b'data: {"pad":"%s",' % (b"x" * pad),
            b"id",
            b": comment",
            b'data: "usage"',
            b"x",
            b'data::{"prompt_tokens"',
            b"data: :5}}",
            b"",
            b"",
        ]
        assert metered(meter_for(200, [EVENTS]), end.join(lines)) == Usage("", 5)

    @pytest.mark.parametrize(
        "line",
        [b"dato: ", b"database: ", b" data: ", b"data : ", b": data: ", b"DATA: ", b"\xef\xbb\xbf\xef\xbb\xbfdata: "],
    )
    @pytest.mark.parametrize("pad", [b"", b"," * 300_000])
    def test_only_data_lines_are_read(self, line: bytes, pad: bytes) -> None:
        assert metered(meter_for(200, [EVENTS]), line + self.MESSAGE + b"\n" + b": " + pad + b"\n\n") == UNKNOWN

    def test_long_events_are_read_in_bounded_memory(self) -> None:
        image = {"type": "image_generation.completed", "b64_json": "A" * 500_000, "usage": {"input_tokens": 3}}
        whole = {
            "type": "response.completed",
            "response": {"model": "m", "output": "x" * 700_000, "usage": {"output_tokens": 4}},
        }
        stream = b"".join(b"event: e\ndata: %s\n\n" % json.dumps(event).encode() for event in (image, whole))
        meter = meter_for(200, [EVENTS])
        for start in range(0, len(stream), 777):
            feed(meter, stream[start : start + 777])
            assert len(getattr(meter, "_pending", b"")) <= KEPT + 777
        assert meter.result() == Usage("m", 3, 4)

    def test_escaped_names_in_a_long_event_are_read_wherever_it_is_cut(self) -> None:
        event = b'data: {"pad":"' + b"x" * 300_000 + b'","us\\u0061ge":{"prompt_tokens":5}}\n\n'
        for start in (0, 100):
            pieces = [event[:start], event[start:]]
            assert metered(meter_for(200, [EVENTS]), *pieces) == Usage("", 5)
            assert metered(meter_for(200, [EVENTS]), b'data: {"usage":null}\n\n', *pieces) == Usage("", 5)

    def test_an_invalid_event_does_not_affect_the_others(self) -> None:
        stream = b'data: {"usage":{"prompt_tokens":1}\n\ndata: %s\n\n' % self.MESSAGE
        assert metered(meter_for(200, [EVENTS]), stream) == Usage("m", 5, 6)

    def test_no_count_is_known_after_usage_that_is_not_json(self) -> None:
        stream = b'data: %s\n\ndata: {"usage": {"prompt_tokens": \xff}}\n\n' % self.MESSAGE
        assert metered(meter_for(200, [EVENTS]), stream) == Usage("m")


class TestMeterFor:
    BODY = b'data: {"model":"m"}\n\n'

    @pytest.mark.parametrize(
        ("status", "kind", "method"),
        [
            (200, b"application/octet-stream", "POST"),
            (200, b"text/plain", "POST"),
            (200, b"", "POST"),
            (429, b"application/json", "POST"),
            (500, b"text/event-stream", "POST"),
            (301, b"application/json", "POST"),
            (200, b"application/json", "GET"),
            (200, b"text/event-stream", "DELETE"),
        ],
    )
    def test_responses_without_usage_are_not_read(self, status: int, kind: bytes, method: str) -> None:
        meter = meter_for(status, [(b"content-type", kind)], method)
        assert metered(meter, b'{"model":"m"}') == metered(meter, self.BODY) == UNKNOWN

    @pytest.mark.parametrize(
        "kind", [b"application/json; charset=utf-8", b"Application/JSON", b"application/vnd.x+json"]
    )
    def test_all_json_media_types_are_read(self, kind: bytes) -> None:
        assert metered(meter_for(201, [(b"Content-Type", kind)]), b'{"model":"m"}') == Usage("m")
