"""What the `usage` objects of the various APIs mean, brought to one definition that bills can be made from.

- `input_tokens`: every token of the prompt, whether it came from the provider's cache or not.
- `cached_tokens`: those of them that were read from the cache; None where the provider says nothing about it.
- `output_tokens`: every generated token, reasoning included. Where a provider reports input alone (embeddings), 0.

So `(input - cached) * price + cached * cached price + output * output price` is the bill. OpenAI counts in this way.
Anthropic counts cached tokens beside `input_tokens`; there the three are added up. Tokens that Anthropic writes to its
cache are part of `input_tokens` and not of `cached_tokens`, so they are billed like any other input.

Of several reports in one response the later ones hold the running totals (Anthropic's `message_delta`, the chunks of
some OpenAI-compatible servers), and a figure that is missing later keeps its earlier value.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable
from typing import Any, TypeGuard

import msgspec
from attrs import define, field, frozen

#: A figure above this is a fault of the provider's, not a count of tokens.
MAX_TOKENS = 1_000_000_000

#: Longest model name that is kept, in characters.
MAX_MODEL = 255

#: Some senders put it before UTF-8 text, where it means nothing.
BYTE_ORDER_MARK = b"\xef\xbb\xbf"

_FIGURES = (
    "prompt_tokens",
    "completion_tokens",
    "total_tokens",
    "input_tokens",
    "output_tokens",
    "cache_read_input_tokens",
    "cache_creation_input_tokens",
    "prompt_cache_hit_tokens",
)

_DETAILS = ("prompt_tokens_details", "input_tokens_details")
_figures_of = operator.attrgetter(*_FIGURES)


@frozen
class Usage:
    """What a response cost in tokens. None means that the provider did not say; `model` is then often empty too."""

    model: str = ""
    input_tokens: int | None = None
    output_tokens: int | None = None
    cached_tokens: int | None = None


UNKNOWN = Usage()


class _Report(msgspec.Struct):
    """The members of a response or event that matter, undecoded: a member of another type must not spoil the rest."""

    model: msgspec.Raw = msgspec.Raw()
    usage: msgspec.Raw = msgspec.Raw()
    message: msgspec.Raw = msgspec.Raw()
    response: msgspec.Raw = msgspec.Raw()


class _Details(msgspec.Struct):
    """How many of the tokens were what."""

    cached_tokens: int | None = None


class _Figures(msgspec.Struct):
    """A usage object in which every figure is a whole number, as they nearly all are."""

    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    total_tokens: int | None = None
    input_tokens: int | None = None
    output_tokens: int | None = None
    cache_read_input_tokens: int | None = None
    cache_creation_input_tokens: int | None = None
    prompt_cache_hit_tokens: int | None = None
    prompt_tokens_details: _Details | None = None
    input_tokens_details: _Details | None = None


class _PlainReport(msgspec.Struct):
    """A response or event as it nearly always is: decoded in one go, at a third of the cost of its members one by one.

    Whatever does not fit is read as a `_Report`.
    """

    model: str | None = None
    usage: _Figures | None = None
    message: msgspec.Raw = msgspec.Raw()
    response: msgspec.Raw = msgspec.Raw()


_decode_plain = msgspec.json.Decoder(_PlainReport).decode
_decode_report = msgspec.json.Decoder(_Report).decode
_decode_any = msgspec.json.Decoder().decode

#: All that msgspec raises on input: malformed, wrongly typed, not UTF-8, nested too deeply.
_MALFORMED = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)


def decode(text: bytes) -> object:
    """The value that a JSON text stands for; None where it is none."""
    try:
        return _decode_any(text) if text else None
    except _MALFORMED:
        return None


@define
class Tally:
    """Collects the reports of one response."""

    model: str = ""
    _figures: dict[str, int] = field(factory=dict)

    def read(self, document: bytes) -> bool:
        """Take in a JSON document: a whole response, or the data of one event. False if it is not one, strictly."""
        report: _PlainReport | _Report
        try:
            report = _decode_plain(document)
            if report.model and not self.model:
                self.model = _model(report.model)
            if report.usage is not None:
                self._add_plain(report.usage)
        except _MALFORMED:
            try:
                report = _decode_report(document)
            except _MALFORMED:
                return False
            self._take(report.model, report.usage)
        # OpenAI's Responses events wrap the response, Anthropic's `message_start` the message.
        for raw in (report.message, report.response):
            wrapped = bytes(raw)
            if wrapped.startswith(b"{"):
                try:
                    inner = _decode_report(wrapped)
                except _MALFORMED:
                    continue
                self._take(inner.model, inner.usage)
        return True

    def take(self, model: bytes, usage: bytes) -> None:
        """Take in the JSON texts of a `model` and a `usage` member; empty where there is none."""
        if model and not self.model:
            self.model = _model(decode(model))
        figures = decode(usage)
        if isinstance(figures, dict):
            self._add(figures)

    def result(self) -> Usage:
        """The usage as far as it is known."""
        known = self._figures.get
        input_tokens, cached = known("prompt_tokens"), known("cached_tokens")
        if input_tokens is None:
            input_tokens = known("input_tokens")
            read, written = known("cache_read_input_tokens"), known("cache_creation_input_tokens")
            if input_tokens is not None and (read is not None or written is not None):
                input_tokens += (read or 0) + (written or 0)
                cached = read or 0
        output_tokens = known("output_tokens") if known("completion_tokens") is None else known("completion_tokens")
        if output_tokens is None and input_tokens is not None and input_tokens == known("total_tokens"):
            output_tokens = 0
        return Usage(self.model, input_tokens, output_tokens, cached)

    def _take(self, model: msgspec.Raw, usage: msgspec.Raw) -> None:
        self.take(bytes(model), bytes(usage))

    def _add_plain(self, usage: _Figures) -> None:
        details = (usage.prompt_tokens_details, usage.input_tokens_details)
        self._note(_figures_of(usage), [part.cached_tokens for part in details if part is not None])

    def _add(self, usage: dict[str, Any]) -> None:
        details = [usage.get(name) for name in _DETAILS]
        self._note(
            [usage.get(name) for name in _FIGURES],
            [part.get("cached_tokens") for part in details if isinstance(part, dict)],
        )

    def _note(self, figures: Iterable[object], cached: Iterable[object]) -> None:
        """Keep what can be a number of tokens; `figures` in the order of `_FIGURES`."""
        known = self._figures
        for name, count in zip(_FIGURES, figures, strict=True):
            if _is_count(count):
                known[name] = count
        for count in cached:
            if _is_count(count):
                known["cached_tokens"] = count
        if "prompt_cache_hit_tokens" in known:  # DeepSeek's name for it
            known.setdefault("cached_tokens", known["prompt_cache_hit_tokens"])


def _is_count(value: object) -> TypeGuard[int]:
    """Whether it is a plausible number of tokens; a negative one, a fraction and a truth value are not."""
    return type(value) is int and 0 <= value <= MAX_TOKENS


def _model(value: object) -> str:
    """A model's name as it is kept: one line of printable characters, of bounded length."""
    if not isinstance(value, str):
        return ""
    if len(value) <= MAX_MODEL and value.isprintable():
        return value.strip()
    return "".join(char for char in value[: 4 * MAX_MODEL] if char.isprintable()).strip()[:MAX_MODEL]
