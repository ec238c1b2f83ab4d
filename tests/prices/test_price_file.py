"""Every mistake in a price file is reported with its line, its path and what is allowed."""

from __future__ import annotations

from pathlib import Path
from textwrap import dedent
from typing import Final

import pytest

from llm_proxy.config import SettingsError
from llm_proxy.prices import price_file
from llm_proxy.prices.rates import CLASSES

KEYS: Final = ", ".join(["from", "service_tier", "above", *CLASSES])
USD: Final = "a price in USD such as 2.50, from 0 to 999999, with at most 9 digits after the point"


def mistakes(folder: Path, text: str) -> list[str]:
    path = folder / "prices.yaml"
    path.write_text(dedent(text))
    with pytest.raises(SettingsError) as caught:
        price_file.load(path, {"openai", "azure"})
    return [str(mistake).replace(f"{folder}/", "") for mistake in caught.value.mistakes]


@pytest.mark.parametrize(
    ("entry", "mistake"),
    [
        ("{inptu: 1}", f"prices.openai.m.inptu is not known; did you mean input?; allowed: {KEYS}"),
        ("{input: -1}", f"prices.openai.m.input='-1': allowed: {USD}"),
        ("{input: 1e3}", f"prices.openai.m.input='1e3': allowed: {USD}"),
        ("{input: 0.0000000001}", f"prices.openai.m.input='0.0000000001': allowed: {USD}"),
        ("{input: }", "prices.openai.m.input has no value; set one, or remove the key"),
        ("{input: 1, from: soon}", "prices.openai.m.from='soon': allowed: a date such as 2026-01-31"),
        ("{input: 1, above: 0}", "prices.openai.m.above='0': allowed: a whole number from 1 to 1000000000"),
        (
            "{input: 1, above: 5}",
            (
                "prices.openai.m has a price with above, and none for fewer tokens; "
                "add one with the same from and service_tier"
            ),
        ),
        ("{output: 1}", "prices.openai.m has prices of tokens and no input; set input"),
        ("{from: 2026-01-01}", "prices.openai.m has no price; set input and output"),
        (
            "[{input: 1}, {input: 2}]",
            "prices.openai.m has two prices with the same from, service_tier and above; remove one",
        ),
        ("1", "prices.openai.m is a single value; it must be a mapping of names to values"),
        ("[]", "prices.openai.m is empty; list at least one value, or remove the key"),
    ],
)
def test_mistake_in_an_entry_is_reported_with_its_line(tmp_path: Path, entry: str, mistake: str) -> None:
    found = mistakes(tmp_path, f"prices:\n  openai:\n    m: {entry}\n")
    assert found == [f"prices.yaml, line 3: {mistake}"]


def test_all_mistakes_are_reported_at_once_with_the_line_of_each_key(tmp_path: Path) -> None:
    text = """\
        prices:
          opnai:
            m: {input: 1}
          azure:
            m:
              input: 1
              output: lots
            n:
              - input: 1
              - input: 2
                from: never
            o:
              - input: 1
              - input: 2
    """
    assert mistakes(tmp_path, text) == [
        "prices.yaml, line 2: prices.opnai: there is no such provider; did you mean openai?; allowed: azure, openai",
        f"prices.yaml, line 7: prices.azure.m.output='lots': allowed: {USD}",
        "prices.yaml, line 11: prices.azure.n.from='never': allowed: a date such as 2026-01-31",
        "prices.yaml, line 12: prices.azure.o has two prices with the same from, service_tier and above; remove one",
    ]


@pytest.mark.parametrize(
    ("text", "mistake"),
    [
        ("", "prices.yaml, line 1: the file is empty; it needs prices, with at least one provider"),
        ("{}", "prices.yaml, line 1: prices is missing; it must contain the prices of at least one provider"),
        ("price: {}", "prices.yaml, line 1: price is not known; did you mean prices?; allowed: prices"),
        ("prices: 3", "prices.yaml, line 1: prices is a single value; it must be a mapping of names to values"),
    ],
)
def test_file_without_prices_is_refused(tmp_path: Path, text: str, mistake: str) -> None:
    assert mistake in mistakes(tmp_path, text)
