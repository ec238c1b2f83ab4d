"""Runs `llm-proxy` and writes down its shared transactions: `python -m benchmarks.pictures.journal FILE … COMMAND`.

Everything from `COMMAND`'s own name on (`server`) is as for `llm-proxy`; what comes before it is passed over, so that
it can stand before a whole command line. Each line of the file is one transaction, as JSON: when it began and ended, in
seconds, how many requests it settled, and since when each of those waited that it decided on.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any
from unittest.mock import patch

import msgspec
import trio
from attrs import define

from llm_proxy.cli import main
from llm_proxy.ledger import Ledger
from llm_proxy.ledger.batch import PendingAdmission
from llm_proxy.metrics import Metrics

_run, _observe = Ledger.run, Metrics.observe_transaction


@define
class _Journal:
    """Listens at the two places where the writer tells what it has committed."""

    file: IO[bytes]
    begin: float = 0.0
    end: float = 0.0
    settled: int = 0

    def observe(self, seconds: float, settled: int) -> None:
        """Take note of a committed transaction; `decided` follows."""
        self.end = trio.current_time()
        self.begin, self.settled = self.end - seconds, settled

    def decided(self, tickets: Sequence[PendingAdmission], _decisions: object) -> None:
        """Write it down."""
        line = {
            "begin": self.begin,
            "end": self.end,
            "settled": self.settled,
            "waited_since": [ticket.queued for ticket in tickets],
        }
        self.file.write(msgspec.json.encode(line) + b"\n")


def _main() -> None:
    path, command = Path(sys.argv[1]), sys.argv[sys.argv.index("server") :]
    with path.open("wb") as file:
        journal = _Journal(file)

        async def run(ledger: Ledger, **more: Any) -> None:
            ledger.on_decisions = journal.decided
            await _run(ledger, **more)

        def observe(metrics: Metrics, seconds: float, admitted: int, settled: int) -> None:
            _observe(metrics, seconds, admitted, settled)
            journal.observe(seconds, settled)

        sys.argv[1:] = command
        with patch.object(Ledger, "run", run), patch.object(Metrics, "observe_transaction", observe):
            main()


if __name__ == "__main__":
    _main()
