"""What was measured."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any, Final

from attrs import define, field, frozen

from llm_proxy.load.framing import Answer
from llm_proxy.load.histogram import Histogram

#: The failure of a request that took longer than the timeout. Other failures have the names of their exceptions.
TIMED_OUT: Final = "Timeout"
#: Codes that are told apart; a server that makes one up for each answer must not fill the memory.
_MOST_CODES = 100
_LONGEST_CODE = 100


@frozen
class Refusal:
    """The first answer, where it says that the token opens nothing: its status, and its error's message."""

    status: int
    message: str


@define
class Tally:
    """What was measured; times are seconds.

    Attributes:
        statuses: of the answers.
        codes: of the answers from 400 on: status and the error's own code.
        failures: requests without a complete answer, by what came between.
        latencies: from sending a request to the last byte of its answer.
        first_bytes: likewise to its first byte.
        intended: open loops only: from when a request was to begin to its last byte.
        lag: open loops only: from when a request should and could have begun to when it did, which is the
            generator's own fault.
        waited: open loops only: requests for which no connection was free when they were to begin.
        gaps: between arrivals of the same streamed body.
        pieces: of streamed bodies.
        response_bytes: heads and bodies as they travelled inside TLS.
        unfinished: requests that were under way when the load was stopped.
        refusal: why nothing more was tried.
        elapsed: how long it took.
        cpu: CPU time of this process meanwhile.
    """

    statuses: Counter[int] = field(factory=Counter)
    codes: Counter[str] = field(factory=Counter)
    failures: Counter[str] = field(factory=Counter)
    latencies: Histogram = field(factory=Histogram)
    first_bytes: Histogram = field(factory=Histogram)
    intended: Histogram = field(factory=Histogram)
    lag: Histogram = field(factory=Histogram)
    waited: int = 0
    gaps: Histogram = field(factory=Histogram)
    pieces: int = 0
    response_bytes: int = 0
    unfinished: int = 0
    refusal: Refusal | None = None
    elapsed: float = 0.0
    cpu: float = 0.0

    @property
    def answered(self) -> int:
        """Requests with a complete answer, whatever its status."""
        return self.latencies.count

    @property
    def done(self) -> int:
        """Requests that are over, one way or the other."""
        return self.answered + sum(self.failures.values())

    @property
    def failed(self) -> int:
        """Requests with an answer from 400 on, or none."""
        return sum(n for status, n in self.statuses.items() if status >= 400) + sum(self.failures.values())

    def record(self, answer: Answer) -> None:
        """Count a complete answer, but for its times."""
        self.statuses[answer.status] += 1
        self.response_bytes += answer.size
        if answer.stream:
            self.pieces += answer.pieces
        if answer.status >= 400:
            code = f"{answer.status} {error_of(answer.body)[0]}".strip()
            self.codes[code if code in self.codes or len(self.codes) < _MOST_CODES else str(answer.status)] += 1


def error_of(body: bytes) -> tuple[str, str]:
    """Return code and message of an error in the shape of OpenAI, Anthropic or our own control plane; else empty."""
    try:
        found: Any = json.loads(body)
    except ValueError:
        return "", ""
    error = found.get("error") if isinstance(found, dict) else None
    if isinstance(error, dict):
        code, message = error.get("code") or error.get("type"), error.get("message")
    elif isinstance(found, dict):
        code, message = found.get("code"), found.get("description") or error
    else:
        code = message = None
    return str(code or "")[:_LONGEST_CODE], str(message or "")
