"""Usage in the results of a batch: a file of lines of JSON, each with the answer to one request of the batch.

The lines of one model are added up, apart by the length of their prompts, because long ones may be dearer. A file of
something else is not read further than its first line.

Sources:
    https://platform.openai.com/docs/guides/batch, https://docs.mistral.ai/capabilities/batch,
    https://docs.together.ai/docs/inference/batch/manage: `response.body` is the answer, in the file `output_file_id`
    or `output_file`
    https://platform.claude.com/docs/en/build-with-claude/batch-processing: `result.message` is
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Final

import msgspec
from attrs import define, field

from llm_proxy.gateway.http.json_members import MALFORMED
from llm_proxy.gateway.usage.scan import read
from llm_proxy.gateway.usage.shapes import UNKNOWN, Usage, total_of
from llm_proxy.gateway.usage.tally import Tally

#: Paths that results are downloaded from.
RESULTS: Final = re.compile(rb"/files/[^/]+/content\Z|/messages/batches/[^/]+/results\Z")

#: Longest line, in bytes, that is kept. The usage of a batch with a longer one is unknown.
KEPT: Final = 4 * 1024 * 1024

#: Prompts with as many thousands of tokens, rounded up, are added up. Vendors have limits of whole thousands.
_LENGTH: Final = 1000

_ABSENT: Final = msgspec.Raw()


class _Answer(msgspec.Struct, gc=False):
    status_code: msgspec.Raw = _ABSENT
    body: msgspec.Raw = _ABSENT
    message: msgspec.Raw = _ABSENT


class _Line(msgspec.Struct, gc=False):
    custom_id: msgspec.Raw = _ABSENT
    response: _Answer | None = None
    result: _Answer | None = None


_decode = msgspec.json.Decoder(_Line).decode


@define
class ResultsMeter:
    """Meters the results of a batch; see `UsageMeter`."""

    unmetered: bool = False
    ended: bool = False
    failed: bool = False
    final: str = ""
    #: This is something else, or cannot be read.
    _stopped: bool = False
    _lines: int = 0
    _pending: bytearray = field(factory=bytearray)
    #: By model and length.
    _sums: dict[tuple[str, int | None], Usage] = field(factory=dict)

    def feed(self, data: bytes) -> Iterable[None]:
        return () if self._stopped else self._take(data)

    def _take(self, data: bytes) -> Iterator[None]:
        *complete, rest = data.split(b"\n")
        for line in complete:
            self._keep(line)
            self._line()
            yield
        self._keep(rest)

    def _keep(self, data: bytes) -> None:
        self._pending += data
        if len(self._pending) > KEPT:
            self._stop()

    def _line(self) -> None:
        line = bytes(self._pending)
        self._pending.clear()
        if self._stopped or not line.strip():
            return
        try:
            found = _decode(line)
        except MALFORMED:
            self._stop()
            return
        if found.custom_id is _ABSENT:
            self._stop()
            return
        self._lines += 1
        answer = found.response or found.result or _Answer()
        text = bytes(answer.body if found.response else answer.message)
        if not text.startswith(b"{"):
            return
        tally = Tally()
        read(text, tally)
        usage = tally.result()
        if tally.unread:
            self._stop()
        parts = usage.parts or (usage,)
        is_ok = answer.status_code is _ABSENT or bytes(answer.status_code).startswith(b"2")
        if is_ok and not (usage.is_known or usage.parts) and usage.output_tokens is None:
            # It was billed, and nobody says for what.
            parts = (msgspec.structs.replace(usage, details={}),)
        for part in parts:
            if part.is_known:
                # Some providers name the tier of the answer itself.
                of_batch = msgspec.structs.replace(part, service_tier="batch")
                # What nobody has counted stays apart from what was counted.
                key = part.model, -(-(part.input_tokens or 0) // _LENGTH) if part.details != {} else None
                known = self._sums.get(key)
                if known is not None:
                    of_batch = total_of(part.model, [known, of_batch], known.requests + 1)
                self._sums[key] = of_batch

    def _stop(self) -> None:
        self._stopped = True
        self._pending.clear()

    def result(self, *, whole: bool = True) -> Usage:
        """See `UsageMeter.result`. A part of the results is no usage."""
        self._line()
        if self._stopped or not whole or not self._lines:
            self.unmetered = self._stopped and self._lines > 0
            return UNKNOWN
        self.final = "completed" if self._sums else "failed"
        parts = list(self._sums.values())
        if len(parts) < 2:
            return parts[0] if parts else UNKNOWN
        total = total_of(parts[0].model, parts, sum(part.requests for part in parts))
        return msgspec.structs.replace(total, parts=tuple(parts))
