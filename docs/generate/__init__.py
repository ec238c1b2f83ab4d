"""Writes the pages of `docs` that are made from the code: `python -m docs.generate`.

- `http`, with `data_plane`: the operations, fields and errors of the HTTP interface
- `configuration`: the settings
- `metrics`: the metrics
- `commands`: the command line

The rest that is generated has other commands: `python -m tests.helm.generate`, `python -m benchmarks report` and
`python -m benchmarks.pictures draw`.
"""

from __future__ import annotations

from pathlib import Path

from docs.generate import commands, configuration, http, metrics

DOCS = Path(__file__).resolve().parents[1]
#: Each page: its file in `docs`, and the function that makes its text.
PAGES = {
    "commands.md": commands.page,
    "configuration.md": configuration.page,
    "http.md": http.page,
    "metrics.md": metrics.page,
}
