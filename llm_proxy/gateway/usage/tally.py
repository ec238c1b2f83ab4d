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

from typing import Any

import msgspec
from attrs import define, field, frozen

#: A figure above this is a fault of the provider's, not a count of tokens.
MAX_TOKENS = 1_000_000_000

#: Longest model name that is kept, in characters.
MAX_MODEL = 255

#: Some senders put it before UTF-8 text, where it means nothing.
BYTE_ORDER_MARK = b"\xef\xbb\xbf"

_FIGURES = frozenset(
    {
        "prompt_tokens",
        "completion_tokens",
        "total_tokens",
        "input_tokens",
        "output_tokens",
        "cache_read_input_tokens",
        "cache_creation_input_tokens",
        "prompt_cache_hit_tokens",
    }
)

_DETAILS = frozenset({"prompt_tokens_details", "input_tokens_details"})

#: Types of the events that end a stream: Anthropic's, those of OpenAI's Responses API, and Cohere's.
_LAST = frozenset({"message_stop", "response.completed", "response.incomplete", "message-end"})
#: Types of the events that say that the answer has failed; they end a stream too.
_FAILED = frozenset({"error", "response.failed"})

#: Longest `usage` object that is decoded, in bytes of JSON text.
MAX_USAGE = 65536


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
    type: msgspec.Raw = msgspec.Raw()
    object: msgspec.Raw = msgspec.Raw()
    error: msgspec.Raw = msgspec.Raw()


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
    """Collects the reports of one response.

    Attributes:
        model: the model that answered, as far as it is known.
        ended: an event that ends a stream was among them.
        failed: one that says that the answer has failed.
        unread: there was usage that could not be read.
        cut_off: a document among them was not whole.
    """

    model: str = ""
    ended: bool = False
    failed: bool = False
    unread: bool = False
    cut_off: bool = False
    _figures: dict[str, int] = field(factory=dict)

    def read(self, document: bytes) -> bool:
        """Take in a JSON document: a whole response, or the data of one event. False if it is not one, strictly."""
        try:
            report = _decode_report(document)
        except _MALFORMED:
            return False
        self._take(report.model, report.usage)
        # OpenAI's Responses events wrap the response, Anthropic's `message_start` the message.
        for wrapped in (bytes(report.message), bytes(report.response)):
            if wrapped.startswith(b"{"):
                try:
                    inner = _decode_report(wrapped)
                except _MALFORMED:
                    continue
                self._take(inner.model, inner.usage)
        if bytes(report.error)[:1] in (b"{", b'"') and bytes(report.error) != b'""':
            self.failed = True
        for kind in (bytes(report.type), bytes(report.object)):
            if kind.startswith(b'"'):
                self.note(kind.strip(b'"').decode("latin-1"))
        return True

    def note(self, kind: str) -> None:
        """Take in the type of an event."""
        if kind in _FAILED:
            self.failed = True
        elif kind in _LAST:
            self.ended = True

    def take(self, model: bytes, usage: bytes) -> None:
        """Take in the JSON texts of a `model` and a `usage` member; empty where there is none."""
        if model and not self.model:
            self.model = model_name(decode(model))
        figures = decode(usage) if len(usage) <= MAX_USAGE else None
        if isinstance(figures, dict):
            self._add(figures)
        elif usage.startswith(b"{"):
            self.unread = True

    @property
    def has_figures(self) -> bool:
        """Whether any usage was read."""
        return bool(self._figures)

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

    def _add(self, figures: dict[str, Any]) -> None:
        for name, value in figures.items():
            if name in _FIGURES:
                self._put(name, value)
            elif name in _DETAILS:
                self._put("cached_tokens", value.get("cached_tokens") if isinstance(value, dict) else value)
        if "prompt_cache_hit_tokens" in self._figures:  # DeepSeek's name for it
            self._figures.setdefault("cached_tokens", self._figures["prompt_cache_hit_tokens"])

    def _put(self, name: str, value: object) -> None:
        """Take in a figure if it is a plausible number of tokens: no fraction, not negative, no truth value."""
        if type(value) is int and 0 <= value <= MAX_TOKENS:
            self._figures[name] = value
        elif value is not None:
            self.unread = True


def model_name(value: object) -> str:
    """A model's name as it is kept: one line of printable characters, of bounded length."""
    if not isinstance(value, str):
        return ""
    if len(value) <= MAX_MODEL and value.isprintable():
        return value.strip()
    return "".join(char for char in value[: 4 * MAX_MODEL] if char.isprintable()).strip()[:MAX_MODEL].rstrip()
