"""The work bench: what every part of the suite needs in order to measure."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from attrs import frozen

from benchmarks.databases import Databases, Kind


@frozen
class Bench:
    """Handed to each part.

    Attributes:
        directory: for files of the run: databases, logs.
        databases: starts database servers, and makes databases that are dropped at the end.
        kinds: the databases to measure on.
        rounds: how many times each subject is measured; the subjects take turns.
        scale: 1.0 for a run whose figures are published, smaller for a quicker and less certain one; parts multiply
            numbers of requests and seconds by it.
        say: told what is going on, line by line.
    """

    directory: Path
    databases: Databases
    kinds: Sequence[Kind]
    rounds: int
    scale: float
    say: Callable[[str], None]

    def scaled(self, number: int, least: int = 1) -> int:
        """Return a number of requests, or of anything else that can be counted, at this run's scale."""
        return max(least, round(number * self.scale))
