"""The usage in the results of batches."""

from __future__ import annotations

import json
from typing import Any

import pytest

from llm_proxy.gateway.usage import Usage
from llm_proxy.gateway.usage.results import KEPT, ResultsMeter


def line(**usage: Any) -> bytes:
    body = {"model": usage.pop("model", "m"), "usage": usage, "service_tier": "default"}
    return json.dumps({"custom_id": "a", "response": {"status_code": 200, "body": body}}).encode() + b"\n"


BOTH = line(prompt_tokens=5, completion_tokens=1) + line(model="n", prompt_tokens=7, completion_tokens=2)


def metered(*pieces: bytes, whole: bool = True) -> tuple[Usage, ResultsMeter]:
    meter = ResultsMeter()
    for piece in pieces:
        for _ in meter.feed(piece):
            pass
    return meter.result(whole=whole), meter


def test_the_usage_of_each_model_is_added_up_however_the_file_is_cut() -> None:
    for cut in range(len(BOTH)):
        usage, meter = metered(BOTH[:cut], BOTH[cut:])
        assert (usage.input_tokens, usage.output_tokens, usage.service_tier) == (12, 3, "batch")
        assert [(part.model, part.input_tokens, part.service_tier) for part in usage.parts] == [
            ("m", 5, "batch"),
            ("n", 7, "batch"),
        ]
        assert (meter.final, meter.unmetered) == ("completed", False)


def test_a_line_without_usage_is_a_part_of_its_own_unless_it_failed() -> None:
    empty = b'{"custom_id": "b", "response": {"status_code": %d, "body": {"model": "m"}}}\n'
    usage, meter = metered(empty % 200)
    assert (usage.details, usage.input_tokens, meter.final) == ({}, None, "completed")
    usage, meter = metered(BOTH, empty % 200)
    assert [(part.input_tokens, part.details) for part in usage.parts] == [(5, None), (7, None), (None, {})]
    usage, meter = metered(empty % 429)
    assert (usage.details, meter.final) == (None, "failed")


def test_a_line_without_usage_is_apart_from_those_that_count_no_tokens() -> None:
    body = {"model": "m", "usage_info": {"pages_processed": 3}}
    pages = json.dumps({"custom_id": "a", "response": {"status_code": 200, "body": body}}).encode() + b"\n"
    usage, _ = metered(pages, pages, b'{"custom_id": "b", "response": {"status_code": 200, "body": {"model": "m"}}}\n')
    assert [(part.details, part.requests) for part in usage.parts] == [({"pages": 6}, 2), ({}, 1)]


def test_what_the_provider_charges_is_known_if_it_says_so_for_all_lines() -> None:
    priced, silent = line(prompt_tokens=5, completion_tokens=1, cost=0.5), line(prompt_tokens=5, completion_tokens=1)
    assert metered(priced, priced)[0].cost_nanousd == 10**9
    assert metered(priced, silent)[0].cost_nanousd is None
    other = line(model="n", prompt_tokens=5, completion_tokens=1)
    assert metered(priced, other)[0].cost_nanousd is None


def test_prompts_of_different_lengths_are_apart() -> None:
    lengths = (5, 200_000, 199_001, 200_001)
    usage, _ = metered(*(line(prompt_tokens=tokens, completion_tokens=1) for tokens in lengths))
    assert (usage.input_tokens, usage.requests) == (sum(lengths), 4)
    assert [(part.input_tokens, part.requests) for part in usage.parts] == [(5, 1), (399_001, 2), (200_001, 1)]


def test_a_last_line_without_its_end_counts() -> None:
    assert metered(BOTH.rstrip(b"\n"))[0].input_tokens == 12


@pytest.mark.parametrize(
    "content", [b"", b"\n", b"\x89PNG\r\n", b'{"custom_id": 1', b'{"a": 1}\n' + BOTH, b"x" * (KEPT + 1)]
)
def test_a_file_of_something_else_has_no_usage(content: bytes) -> None:
    usage, meter = metered(content)
    assert (usage.input_tokens, meter.final, meter.unmetered) == (None, "", False)


@pytest.mark.parametrize("rest", [b'{"custom_id":', b"x" * (KEPT + 1), line(prompt_tokens=-1)])
def test_results_with_a_line_that_cannot_be_read_are_unmetered(rest: bytes) -> None:
    usage, meter = metered(BOTH, rest)
    assert (usage.input_tokens, meter.final, meter.unmetered) == (None, "", True)


def test_results_that_the_client_did_not_read_to_the_end_have_no_usage() -> None:
    usage, meter = metered(BOTH, whole=False)
    assert (usage.input_tokens, meter.final) == (None, "")
