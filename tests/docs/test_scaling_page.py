"""The sizes on the page about scaling follow from the parameters on it."""

from __future__ import annotations

from attrs import fields_dict

from benchmarks.report import write_table
from benchmarks.scaling.chapters import PARAMETERS, fleets, hot_tokens
from benchmarks.scaling.model import Cost, Parameters
from tests.harness.server import ROOT

TEXT = (ROOT / "docs" / "operations" / "scaling.md").read_text()


def rows_under(columns: tuple[str, ...]) -> list[list[str]]:
    """The cells of the table that has these columns."""
    lines = TEXT.splitlines()
    start = lines.index(f"| {' | '.join(columns)} |") + 2
    rows = []
    for line in lines[start:]:
        if not line.startswith("|"):
            break
        rows.append([cell.strip() for cell in line.strip("|").split("|")])
    return rows


def parameters(cells: list[str]) -> Parameters:
    proxy, proxy_each, database, database_each, milliseconds, each, shared, busy = (
        float(cell.replace(",", "")) for cell in cells[:8]
    )
    return Parameters(
        proxy=Cost(proxy, proxy_each),
        database=Cost(database, database_each),
        others=0.0,
        seconds=Cost(milliseconds / 1000, each / 1000),
        shared=shared,
        busy=busy,
    )


def test_tables_of_the_scaling_page_equal_the_model() -> None:
    found = {name: parameters(cells) for name, *cells in rows_under(PARAMETERS)}
    assert set(found) >= {"PostgreSQL", "MySQL"}
    assert write_table(fleets(found)) in TEXT
    assert write_table(hot_tokens(found)) in TEXT
    assert len(fields_dict(Parameters)) == 6
