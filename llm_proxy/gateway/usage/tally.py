"""The meaning of the `usage` objects of the APIs, brought to one definition for billing.

- `input_tokens`: all tokens of the prompt, including those from the provider's cache.
- `cached_tokens`: how many of them were read from the cache; None if the provider does not say.
- `output_tokens`: all generated tokens, including reasoning. 0 if a provider reports input only (embeddings).

The bill is `(input - cached) * price + cached * cached price + output * output price`. OpenAI counts in this way.
Anthropic counts cached tokens outside of `input_tokens`; here the three counts are added. Tokens that Anthropic writes
to its cache are part of `input_tokens` and not of `cached_tokens`, so they are billed like any other input.

If a response has several reports, later ones contain the running totals (Anthropic's `message_delta`, the chunks of
some OpenAI-compatible servers). A count that is missing in a later report keeps its value.
"""

from __future__ import annotations

from typing import Any

import msgspec
from attrs import define, field

#: A larger number is an error of the provider, not a count of tokens.
MAX_TOKENS = 1_000_000_000

#: Maximum length of a model name, in characters. Longer ones are cut.
MAX_MODEL = 255

#: Some servers send it before UTF-8 text. It has no meaning there.
BYTE_ORDER_MARK = b"\xef\xbb\xbf"

_COUNTS = frozenset(
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

#: Types of events that end a stream: of Anthropic, OpenAI's Responses API and Cohere.
_LAST = frozenset({b"message_stop", b"response.completed", b"response.incomplete", b"message-end"})
#: Types of events that report a failure; they end a stream too.
_FAILED = frozenset({b"error", b"response.failed"})

#: Maximum length of a `usage` object that is decoded, in bytes of JSON text.
MAX_USAGE = 65536


class Usage(msgspec.Struct, frozen=True):
    """The tokens of a response. None if the provider did not say; `model` is then often empty too."""

    model: str = ""
    input_tokens: int | None = None
    output_tokens: int | None = None
    cached_tokens: int | None = None


UNKNOWN = Usage()

_ABSENT = msgspec.Raw()


class _Report(msgspec.Struct):
    """The relevant members of a response or event, not decoded: one of a wrong type must not affect the others."""

    model: msgspec.Raw = _ABSENT
    usage: msgspec.Raw = _ABSENT
    message: msgspec.Raw = _ABSENT
    response: msgspec.Raw = _ABSENT
    type: msgspec.Raw = _ABSENT
    object: msgspec.Raw = _ABSENT
    error: msgspec.Raw = _ABSENT


_decode_report = msgspec.json.Decoder(_Report).decode
_decode_any = msgspec.json.Decoder().decode

#: Every exception of msgspec about input: malformed, wrongly typed, not UTF-8, nested too deeply.
_MALFORMED = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)


def decode(text: bytes) -> object:
    """The value of a JSON text; None if it is not JSON."""
    try:
        return _decode_any(text) if text else None
    except _MALFORMED:
        return None


@define
class Tally:
    """Collects the reports of one response.

    Attributes:
        model: the model that answered, if it is known.
        ended: one of the events ends the stream.
        failed: one of the events reports a failure.
        unread: there was usage that could not be read.
        cut_off: one of the documents was incomplete.
        counts: the last value of each count.
    """

    model: str = ""
    ended: bool = False
    failed: bool = False
    unread: bool = False
    cut_off: bool = False
    counts: dict[str, int] = field(factory=dict)

    def read(self, document: bytes) -> bool:
        """Add a JSON document: a whole response, or the data of one event. False if it is not strictly JSON."""
        try:
            report = _decode_report(document)
        except _MALFORMED:
            return False
        self.add(bytes(report.model), bytes(report.usage))
        # OpenAI's Responses events contain the response, Anthropic's `message_start` the message.
        for member in (report.message, report.response):
            if member is not _ABSENT and (wrapped := bytes(member)).startswith(b"{"):
                try:
                    inner = _decode_report(wrapped)
                except _MALFORMED:
                    continue
                self.add(bytes(inner.model), bytes(inner.usage))
        if report.error is not _ABSENT and (error := bytes(report.error)) != b'""' and error[:1] in (b"{", b'"'):
            self.failed = True
        for member in (report.type, report.object):
            if member is not _ABSENT and (kind := bytes(member)).startswith(b'"'):
                self.add_type(kind.strip(b'"'))
        return True

    def add_type(self, kind: bytes) -> None:
        if kind in _FAILED:
            self.failed = True
        elif kind in _LAST:
            self.ended = True

    def add(self, model: bytes, usage: bytes) -> None:
        """Add the JSON texts of a `model` and a `usage` member; empty if it is absent."""
        if model and not self.model:
            self.model = model_name(decode(model))
        if usage:
            counts = decode(usage) if len(usage) <= MAX_USAGE else None
            if isinstance(counts, dict):
                self._add(counts)
            elif usage.startswith(b"{"):
                self.unread = True

    def result(self) -> Usage:
        known = self.counts.get
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

    def _add(self, usage: dict[str, Any]) -> None:
        counts = self.counts
        for name, value in usage.items():
            key, count = name, value
            if name in _DETAILS:
                key, count = "cached_tokens", value.get("cached_tokens") if isinstance(value, dict) else value
            elif name not in _COUNTS:
                continue
            # A count is a plausible number of tokens: no fraction, not negative, no truth value.
            if type(count) is int and 0 <= count <= MAX_TOKENS:
                counts[key] = count
            elif count is not None:
                self.unread = True
        if "prompt_cache_hit_tokens" in counts:  # DeepSeek's name
            counts.setdefault("cached_tokens", counts["prompt_cache_hit_tokens"])


def model_name(value: object) -> str:
    """The name of a model: one line of printable characters, of limited length."""
    if not isinstance(value, str):
        return ""
    if len(value) <= MAX_MODEL and value.isprintable():
        return value.strip()
    return "".join(char for char in value[: 4 * MAX_MODEL] if char.isprintable()).strip()[:MAX_MODEL].rstrip()
