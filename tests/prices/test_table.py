"""Which price a request gets, and what several models cost together."""

from __future__ import annotations

import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from textwrap import dedent
from typing import Final

import pytest

from llm_proxy.gateway.usage import Usage
from llm_proxy.prices import Prices, table
from tests.prices.usage import used

NOON: Final = datetime(2026, 11, 15, 12, 0, tzinfo=UTC)
OPENAI: Final = {"openai": "https://api.openai.com", "local": "http://localhost:8000"}


def load(folder: Path, text: str) -> Prices:
    path = folder / "prices.yaml"
    path.write_text(dedent(text))
    return Prices.load(path, OPENAI)


def cost(
    prices: Prices,
    model: str,
    usage: Usage | None = None,
    *,
    provider: str = "openai",
    at: datetime = NOON,
    asked: str = "",
) -> int | None:
    """The cost of a million tokens of input in micro-dollars, unless there is another usage."""
    usage = usage or used(1_000_000)
    found = prices.cost(
        provider,
        [
            used(
                usage.input_tokens,
                usage.output_tokens,
                model=model,
                cached=usage.cached_tokens,
                service_tier=usage.service_tier,
                details=usage.details,
            )
        ],
        at,
        asked,
    )
    return None if found is None else found.nanousd // 1000


class TestFile:
    def test_first_pattern_that_matches_gives_the_price(self, tmp_path: Path) -> None:
        prices = load(
            tmp_path,
            """
            prices:
              openai:
                gpt-5-mini: {input: 1, output: 2}
                gpt-5*: {input: 3, output: 4}
            """,
        )
        assert cost(prices, "gpt-5-mini") == 1_000_000
        assert cost(prices, "GPT-5-nano") == 3_000_000

    def test_model_without_a_pattern_has_the_built_in_price(self, tmp_path: Path) -> None:
        prices = load(tmp_path, "prices: {openai: {gpt-4.1: {input: 3, output: 4}}}")
        assert cost(prices, "gpt-4o") == 2_500_000
        assert cost(prices, "gpt-4o", provider="local") is None

    def test_price_applies_from_its_date_on(self, tmp_path: Path) -> None:
        prices = load(
            tmp_path,
            """
            prices:
              openai:
                gpt-4o:
                  - {input: 3, output: 4, from: 2026-11-15}
                  - {input: 2, output: 4, from: 2026-11-16}
            """,
        )
        assert cost(prices, "gpt-4o", at=datetime(2026, 11, 14, 23, 59, tzinfo=UTC)) == 2_500_000
        assert cost(prices, "gpt-4o", at=datetime(2026, 11, 15, tzinfo=UTC)) == 3_000_000
        assert cost(prices, "gpt-4o", at=datetime(2026, 11, 16, tzinfo=UTC)) == 2_000_000
        assert cost(prices, "gpt-4o", at=datetime(2026, 11, 14, 23, 59, tzinfo=UTC)) == 2_500_000

    def test_requests_of_a_tier_have_its_price(self, tmp_path: Path) -> None:
        prices = load(
            tmp_path,
            "prices: {local: {'*': [{input: 4, output: 4}, {input: 2, output: 2, service_tier: Batch}]}}",
        )
        assert cost(prices, "m", used(1_000_000, service_tier="standard"), provider="local") == 4_000_000
        assert cost(prices, "m", used(1_000_000, service_tier="batch"), provider="local") == 2_000_000
        assert cost(prices, "m", used(1_000_000, service_tier="flex"), provider="local") is None

    def test_long_requests_have_the_price_above_their_length(self, tmp_path: Path) -> None:
        prices = load(
            tmp_path,
            """
            prices:
              local:
                "*":
                  - {input: 1}
                  - {input: 3, above: 9}
                  - {input: 2, above: 5}
            """,
        )
        counts = {5: 5, 6: 12, 9: 18, 10: 30}
        for tokens, usd in counts.items():
            found = prices.cost("local", [used(tokens, model="m")], NOON)
            assert found is not None
            assert found.nanousd == usd * 1000

    def test_free_model_costs_nothing_whatever_it_used(self, tmp_path: Path) -> None:
        prices = load(tmp_path, "prices: {local: {'*': {input: 0, output: 0}}}")
        everything = used(
            9, 9, model="m", cached=1, cache_write=4, cache_write_1h=2, details={"input_audio_tokens": 1, "images": 1}
        )
        found = prices.cost("local", [everything], NOON)
        assert found is not None
        assert found.nanousd == 0

    @pytest.mark.parametrize(
        ("price", "cost"),
        [
            ("{request: 0.04}", 40_000_000),
            ("{request: 0}", 0),
            ("{input: 0, output: 0}", 0),
            ("{input: 0, output: 0, request: 0.04}", 40_000_000),
            ("{request: 0.04, image: 0.02}", None),
            ("{image: 0.02}", None),
            ("{input: 1, output: 2}", None),
            ("{input: 1, output: 2, request: 0.04}", None),
        ],
    )
    def test_answer_that_counts_nothing_has_a_cost_if_only_requests_do(
        self, tmp_path: Path, price: str, cost: int | None
    ) -> None:
        prices = load(tmp_path, f"prices: {{local: {{m: {price}}}}}")
        found = prices.cost("local", [Usage(model="m", details={})], NOON)
        assert (None if found is None else found.nanousd) == cost

    def test_requested_name_matches_too(self, tmp_path: Path) -> None:
        prices = load(tmp_path, "prices: {openai: {our-deployment: {input: 7, output: 7}}}")
        assert cost(prices, "gpt-4o", asked="our-deployment") == 7_000_000

    def test_version_names_the_content_of_the_file(self, tmp_path: Path) -> None:
        versions = set()
        for price in (1, 2):
            prices = load(tmp_path, f"prices: {{local: {{'*': {{input: {price}, output: 0}}}}}}")
            found = prices.cost("local", [used(1, model="m")], NOON)
            assert found is not None
            assert found.version.startswith("file ")
            versions.add(found.version)
        assert len(versions) == 2


class TestModel:
    def test_answer_without_a_model_has_the_price_of_the_requested_one(self) -> None:
        assert cost(Prices.load(None, OPENAI), "", asked="gpt-4o") == 2_500_000

    def test_answered_model_without_a_price_has_not_that_of_the_requested_one(self) -> None:
        assert cost(Prices.load(None, OPENAI), "gpt-99", asked="gpt-4o") is None

    def test_requested_model_of_bedrock_decides_because_it_has_the_region(self) -> None:
        prices = Prices.load(None, {"bedrock": "https://bedrock-runtime.us-east-1.amazonaws.com"})
        model, profile = "claude-haiku-4-5-20251001", "global.anthropic.claude-haiku-4-5-20251001-v1:0"
        assert cost(prices, model, provider="bedrock", asked=profile) == 1_000_000
        assert cost(prices, model, provider="bedrock", asked=profile.replace("global", "eu")) == 1_100_000

    @pytest.mark.parametrize(
        ("name", "url", "vendor"),
        [
            ("ours", "https://api.groq.com/openai", "groq"),
            ("openai", "https://gateway.example.com/v1", "openai"),
            ("openai", "https://api.deepseek.com", "deepseek"),
            ("ours", "https://models.example.com", None),
            ("vllm", "http://localhost:8000", None),
        ],
    )
    def test_base_url_tells_the_vendor_before_the_name(self, name: str, url: str, vendor: str | None) -> None:
        assert Prices.load(None, {name: url}).vendors.get(name) == vendor


class TestResolution:
    def test_price_changes_within_a_day_where_the_vendor_has_busy_hours(self) -> None:
        prices = Prices.load(None, {"deepseek": "https://api.deepseek.com"})
        at = {
            hour: cost(prices, "deepseek-v4-flash", provider="deepseek", at=NOON.replace(hour=hour))
            for hour in (0, 1, 4, 9, 10)
        }
        assert at == {0: 150_000, 1: 300_000, 4: 150_000, 9: 300_000, 10: 150_000}

    def test_price_is_resolved_once_for_its_period(self) -> None:
        prices = Prices.load(None, OPENAI)
        first = prices.price("openai", "gpt-4o", "", NOON)
        assert prices.price("openai", "gpt-4o", "", NOON.replace(hour=23)) is first

    def test_number_of_resolved_prices_is_bounded(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(table, "_RESOLVED", 3)
        prices = Prices.load(None, OPENAI)
        for number in range(9):
            assert cost(prices, "", asked=f"gpt-99-{number}") is None
        assert len(prices._resolved) == 3


class TestSum:
    def test_models_that_share_a_bill_are_summed_at_their_own_prices(self, tmp_path: Path) -> None:
        prices = load(tmp_path, "prices: {openai: {mine: {input: 1, output: 1}}}")
        found = prices.cost("openai", [used(1_000, model="gpt-4o"), used(1_000, model="mine")], NOON)
        assert found is not None
        assert found.nanousd == 3_500_000
        assert found.version.startswith("genai-prices ")
        assert ", file " in found.version

    def test_bill_is_unpriced_if_one_of_its_models_is(self) -> None:
        prices = Prices.load(None, OPENAI)
        assert prices.cost("openai", [used(1_000, model="gpt-4o"), used(1_000, model="gpt-99")], NOON) is None

    def test_sum_is_rounded_once_and_half_up(self, tmp_path: Path) -> None:
        prices = load(tmp_path, "prices: {local: {'*': {input: 0.0005, output: 0}}}")
        sums = {}
        for parts in (1, 2, 3):
            found = prices.cost("local", [used(1, model="m")] * parts, NOON)
            assert found is not None
            sums[parts] = found.nanousd
        assert sums == {1: 1, 2: 1, 3: 2}


def test_built_in_prices_need_no_network_and_no_thread() -> None:
    program = """
        import socket, threading
        def refuse(*_): raise SystemExit("a socket was opened")
        socket.socket.connect = socket.getaddrinfo = refuse
        from datetime import UTC, datetime
        from genai_prices import data_snapshot
        from llm_proxy.prices import Prices
        prices = Prices.load(None, {"openai": "https://api.openai.com"})
        assert prices.price("openai", "gpt-4o", "", datetime.now(UTC)).levels
        assert threading.active_count() == 1
        assert data_snapshot._custom_snapshot is None
    """
    subprocess.run([sys.executable, "-c", dedent(program)], check=True, timeout=60)
