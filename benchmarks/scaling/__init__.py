"""What limits many replicas on one database: costs that are measured with few processes, and a check with eight.

The costs are those of `scaling.model`. They are measured with one process, whose transactions are made small and large
by how many connections there are, and with two, which use all that this machine has. What eight processes do is then
worked out, and measured.
"""

from __future__ import annotations

from benchmarks.databases import Kind
from benchmarks.findings import Chapter
from benchmarks.rig import Bench
from benchmarks.scaling.chapters import size, tell
from benchmarks.scaling.measurement import measure


def run(bench: Bench) -> list[Chapter]:
    """Measure the databases that several processes can share. Raises LoadFailed and ProcessFailed."""
    contests = [measure(bench, kind) for kind in bench.kinds if kind is not Kind.SQLITE]
    return [tell(bench, contests), size(contests)] if contests else []
