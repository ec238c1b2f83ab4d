"""Collects the reports of one answer, from the documents or events in it.

If an answer has several reports, later ones contain the running totals (Anthropic's `message_delta`, Gemini's chunks,
the chunks of some OpenAI-compatible servers). A count that is missing or 0 in a later report keeps its value,
but Anthropic says at first that there is an output, and at the end that there was none if the model has refused.
If its stream is cut off before that, the output is not known.
If a part of a report cannot be read, no count is known: the others may be incomplete or older.
"""

from __future__ import annotations

import re
from typing import Any

import msgspec
from attrs import define, field

from llm_proxy.gateway.http.json_members import MALFORMED
from llm_proxy.gateway.usage.shapes import (
    TABLES,
    ZERO_IS_OMITTED,
    Usage,
    attempts,
    collect,
    collect_value,
    fallback_model,
    model_name,
    total_of,
    usage_of,
    with_parts,
)

#: Some servers send it before UTF-8 text. It has no meaning there.
BYTE_ORDER_MARK = b"\xef\xbb\xbf"

#: Types of events that end a stream: of Anthropic, OpenAI (responses, audio), Mistral (conversations),
#: Cohere v2 and v1, Gemini (interactions).
_LAST = frozenset(
    {
        b"message_stop",
        b"response.completed",
        b"response.incomplete",
        b"transcript.text.done",
        b"speech.audio.done",
        b"conversation.response.done",
        b"message-end",
        b"stream-end",
        b"interaction.completed",
    }
)
#: Types of events that report a failure; they end a stream too.
_FAILED = frozenset({b"error", b"response.failed"})
#: Types of Anthropic's events with usage, and whether the output in it is only that of the start.
_BEGUN = {b"message_start": True, b"message_delta": False}

#: Maximum length of a report that is decoded, in bytes of JSON text.
MAX_USAGE = 65536

#: DashScope's models, which count cached tokens in the input in its Anthropic API too.
_QWEN = "qwen"

#: What has a status, by its member `object`, and the statuses after which its usage does not change.
_STATEFUL = frozenset({b'"response"', b'"thread.run"', b'"batch"'})
_FINAL = frozenset({b'"completed"', b'"incomplete"', b'"failed"', b'"cancelled"', b'"expired"'})

#: Calls in the output of OpenAI's Responses API, and actions in them that are no searches and cost nothing:
#: https://platform.openai.com/docs/guides/tools-web-search
_CALL = re.compile(rb'"type"\s{0,8}:\s{0,8}"(?:(web_search_call)|open_page|find_in_page)"')
_LONGEST_CALL = 48

_ABSENT = msgspec.Raw()


class UsageMembers(msgspec.Struct, gc=False):
    """The relevant members of an answer or event, not decoded: one of a wrong type must not affect the others."""

    model: msgspec.Raw = _ABSENT
    model_version: msgspec.Raw = msgspec.field(name="modelVersion", default=_ABSENT)
    usage: msgspec.Raw = _ABSENT
    usage_metadata: msgspec.Raw = msgspec.field(name="usageMetadata", default=_ABSENT)
    usage_info: msgspec.Raw = _ABSENT
    usage_breakdown: msgspec.Raw = _ABSENT
    tool_usage: msgspec.Raw = _ABSENT
    output: msgspec.Raw = _ABSENT
    meta: msgspec.Raw = _ABSENT
    metrics: msgspec.Raw = msgspec.field(name="amazon-bedrock-invocationMetrics", default=_ABSENT)
    prompt_eval_count: msgspec.Raw = _ABSENT
    eval_count: msgspec.Raw = _ABSENT
    prompt_token_count: msgspec.Raw = _ABSENT
    generation_token_count: msgspec.Raw = _ABSENT
    text_token_count: msgspec.Raw = msgspec.field(name="inputTextTokenCount", default=_ABSENT)
    service_tier: msgspec.Raw = _ABSENT
    bedrock_tier: msgspec.Raw = msgspec.field(name="serviceTier", default=_ABSENT)
    choices: msgspec.Raw = _ABSENT
    message: msgspec.Raw = _ABSENT
    response: msgspec.Raw = _ABSENT
    delta: msgspec.Raw = _ABSENT
    interaction: msgspec.Raw = _ABSENT
    x_groq: msgspec.Raw = _ABSENT
    type: msgspec.Raw = _ABSENT
    event_type: msgspec.Raw = _ABSENT
    object: msgspec.Raw = _ABSENT
    done: msgspec.Raw = _ABSENT
    status: msgspec.Raw = _ABSENT
    request_counts: msgspec.Raw = _ABSENT
    error: msgspec.Raw = _ABSENT


#: Members of an answer or event that may contain the report: of Anthropic, OpenAI, Cohere, Gemini and Groq.
WRAPPERS = ("message", "response", "delta", "interaction", "x_groq")

_decode_report = msgspec.json.Decoder(UsageMembers).decode
_decode_reports = msgspec.json.Decoder(list[UsageMembers]).decode
_decode_any = msgspec.json.Decoder().decode


def decode(text: bytes) -> object:
    """The value of a JSON text; None if it is not JSON."""
    try:
        return _decode_any(text) if text else None
    except MALFORMED:
        return None


def _decoded(member: msgspec.Raw) -> object:
    return None if member is _ABSENT else decode(bytes(member))


@define
class SearchCalls:
    """Counts the searches in an output that comes in pieces cut anywhere."""

    count: int = 0
    _last: bytes = b""

    def feed(self, data: bytes) -> None:
        before, text = len(self._last), self._last + data
        if b"web_search_call" in text or b"open_page" in text or b"find_in_page" in text:
            for call in _CALL.finditer(text):
                if call.end() > before:
                    self.count += 1 if call[1] else -1
        self._last = text[-_LONGEST_CALL:]


@define
class Tally:
    """Collects the reports of one response.

    Attributes:
        model: the model that answered, if it is known.
        ended: one of the events ends the stream.
        failed: one of the events reports a failure.
        begun: the output in the last report is what there was at the start: Anthropic's `message_start`.
        unread: there may have been usage that could not be read.
        uncertain: a report could not be read completely, so that no count is known.
        cut_off: one of the documents was incomplete.
        final: the status of an object that the provider keeps, if it is one after which its usage does not change.
        answered: the number of requests of a batch that were answered.
        inside: the model counts cached tokens in the input, against the rule of its API.
        images: the endpoint makes images, so that all output is one unless the answer says otherwise.
        searches: the number of searches in the output, for answers that do not report it.
        counts: the last value of each count, see `shapes`.
    """

    model: str = ""
    ended: bool = False
    failed: bool = False
    begun: bool = False
    unread: bool = False
    uncertain: bool = False
    cut_off: bool = False
    final: str = ""
    answered: int = 0
    inside: bool = False
    images: bool = False
    searches: int = 0
    counts: dict[str, Any] = field(factory=dict)
    _zero: bool = False
    _iterations: list[Any] | None = None
    _breakdown: object = None

    def read(self, document: bytes) -> bool:
        """Add a JSON document: a whole response, or the data of one event. False if it is not strictly JSON."""
        try:
            report = _decode_report(document)
        except MALFORMED:
            return self._read_stream(document)
        self.add(report)
        self.see(report)
        for member in (report.message, report.response, report.delta, report.interaction, report.x_groq):
            if member is not _ABSENT and (wrapped := bytes(member)).startswith(b"{"):
                try:
                    self.add(_decode_report(wrapped))
                except MALFORMED:
                    continue
        return True

    def _read_stream(self, document: bytes) -> bool:
        """Gemini sends a stream as one array if the client does not ask for events. Its last report counts."""
        try:
            reports = _decode_reports(document)
        except MALFORMED:
            return False
        last = UsageMembers()
        for report in reports:
            if bytes(report.usage_metadata).startswith(b"{"):
                last.usage_metadata = report.usage_metadata
            if report.model_version is not _ABSENT:
                last.model_version = report.model_version
        self.add(last)
        return True

    def add(self, report: UsageMembers) -> None:
        """Add the usage in a report."""
        if not self.model:
            self.model = model_name(_decoded(report.model)) or model_name(_decoded(report.model_version))
        usage = b"" if report.usage is _ABSENT else bytes(report.usage)
        if usage.startswith(b"{"):
            self._add("usage", usage)
        elif report.choices is not _ABSENT and b'"usage"' in (choices := bytes(report.choices)):
            self._add_choices(choices)
        for member in (report.service_tier, report.bedrock_tier):
            if member is not _ABSENT:
                collect_value("tier", _decoded(member), self.counts)
        if report.status is not _ABSENT and bytes(report.object) in _STATEFUL and bytes(report.status) in _FINAL:
            self.final = bytes(report.status).decode("ascii").strip('"')
            counts = _decoded(report.request_counts)
            done = counts.get("completed") if isinstance(counts, dict) else None
            self.answered = done if type(done) is int and done > 0 else 0
        self._add_others(report)

    def _add_others(self, report: UsageMembers) -> None:
        for place, member in (
            ("usageMetadata", report.usage_metadata),
            ("meta", report.meta),
            ("usage_info", report.usage_info),
            ("tool_usage", report.tool_usage),
            ("amazon-bedrock-invocationMetrics", report.metrics),
        ):
            if member is not _ABSENT:
                self._add(place, bytes(member))
        if report.prompt_eval_count is not _ABSENT or report.eval_count is not _ABSENT:
            counts = {"prompt_eval_count": report.prompt_eval_count, "eval_count": report.eval_count}
            self.collect("", {name: _decoded(count) for name, count in counts.items()})
        if report.prompt_token_count is not _ABSENT or report.text_token_count is not _ABSENT:
            counts = {
                "prompt_token_count": report.prompt_token_count,
                "generation_token_count": report.generation_token_count,
                "inputTextTokenCount": report.text_token_count,
            }
            self.collect("", {name: _decoded(count) for name, count in counts.items()})
        if report.output is not _ABSENT:
            calls = SearchCalls()
            calls.feed(bytes(report.output))
            self.searches = max(self.searches, calls.count)
        if report.usage_breakdown is not _ABSENT:
            self._breakdown = _decoded(report.usage_breakdown)

    def see(self, report: UsageMembers) -> None:
        """See whether a report ends the stream, and whether it says that the response has failed."""
        if report.error is not _ABSENT and (error := bytes(report.error)) != b'""' and error[:1] in (b"{", b'"'):
            self.failed = True
        if report.done is not _ABSENT and bytes(report.done) == b"true":
            self.ended = True
        for member in (report.type, report.event_type, report.object):
            if member is not _ABSENT:
                self.add_type(bytes(member).strip(b'"'))

    def add_type(self, kind: bytes) -> None:
        if kind in _FAILED:
            self.failed = True
        elif kind in _LAST:
            self.ended = True
        elif kind in _BEGUN:
            self.begun = _BEGUN[kind]

    def collect(self, place: str, report: dict[str, Any]) -> None:
        """Add a decoded report from a place of `shapes.SHAPES`."""
        self.uncertain |= not collect(TABLES[place], report, self.counts)
        self._zero |= place in ZERO_IS_OMITTED

    def _add(self, place: str, text: bytes) -> None:
        report = decode(text) if len(text) <= MAX_USAGE else None
        if isinstance(report, dict):
            self.collect(place, report)
            iterations = report.get("iterations")
            if isinstance(iterations, list) and iterations:
                self._iterations = iterations
        elif text.startswith(b"{"):
            self.uncertain = True

    def _add_choices(self, text: bytes) -> None:
        """Moonshot puts the usage of a stream into the choice."""
        choices = decode(text)
        for choice in choices if isinstance(choices, list) else ():
            if isinstance(choice, dict) and isinstance(usage := choice.get("usage"), dict):
                self.collect("usage", usage)

    def _sum(self, parts: list[Usage]) -> Usage:
        """The sum of Anthropic's steps. Reasoning is that of all of them."""
        total = total_of(fallback_model(self._iterations or ()) or self.model or parts[0].model, parts)
        reasoning = self.counts.get("reasoning", total.reasoning_tokens)
        return msgspec.structs.replace(
            total,
            reasoning_tokens=reasoning and min(reasoning, total.output_tokens or 0),
            parts=tuple(parts) if len(parts) > 1 or parts[0].model != total.model else (),
        )

    def result(self) -> Usage:
        parts: list[Usage] = []
        if self._iterations:
            parts = attempts(self.model, self.counts, self._iterations)
            self.uncertain |= not parts
        if self.uncertain:
            self.unread = True
            return Usage(self.model)
        if parts:
            return self._sum(parts)
        if self.images and "output_image_tokens" not in self.counts and (made := self.counts.get("output")):
            self.counts["output_image_tokens"] = made
        if self.searches:
            self.counts.setdefault("web_searches", self.searches)
        inside = self.inside or (self.model.startswith(_QWEN) and "/" not in self.model)
        usage = usage_of(self.model, self.counts, zero=self._zero, inside=inside)
        if usage.input_tokens is None and self.counts.get("total"):
            self.unread = True
        if self.answered and not (usage.input_tokens or usage.output_tokens):
            return Usage(self.model)  # Its results say more.
        if self.begun and not self.ended:
            return msgspec.structs.replace(usage, output_tokens=None)
        if isinstance(self._breakdown, dict):
            return with_parts(usage, self._breakdown)
        return msgspec.structs.replace(usage, requests=self.answered) if self.answered > 1 else usage


@define
class StreamMeter:
    """What a meter of a stream says of the reports that it has collected so far; see `UsageMeter`."""

    _tally: Tally = field(factory=Tally)
    _whole: bool = False

    @property
    def ended(self) -> bool:
        return self._tally.ended

    @property
    def failed(self) -> bool:
        return self._tally.failed

    @property
    def final(self) -> str:
        return self._tally.final
