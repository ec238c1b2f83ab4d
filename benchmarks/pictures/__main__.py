"""`python -m benchmarks.pictures`: record what pictures of the documentation show, and draw them."""

from __future__ import annotations

import tempfile
from pathlib import Path

import attrs
import click
import msgspec

from benchmarks.bench import Bench
from benchmarks.databases import Databases, Kind
from benchmarks.pictures import batches, dashboard, roll_out
from benchmarks.processes import ROOT
from benchmarks.proxy import clean_environment

RECORDS = Path(__file__).parent
IMAGES = ROOT / "docs" / "images" / "architecture"
PICTURES = ("batches", "roll-out", "dashboard")


@click.group(help=__doc__)
def main() -> None:
    """Record and draw."""


@main.command()
@click.option("--only", type=click.Choice(PICTURES), help="One of them; all otherwise.")
def record(only: str | None) -> None:
    """Run proxies under load and write down what they do, in JSON beside the program.

    It takes PostgreSQL, nginx and Prometheus.
    """
    clean_environment()
    databases = Databases(durable=True)
    try:
        with tempfile.TemporaryDirectory(prefix="llm-proxy-pictures-") as folder:
            bench = Bench(Path(folder), databases, [Kind.POSTGRES], 1, 1.0, click.echo)
            if only in {None, "batches"}:
                _write("batches", [attrs.asdict(window) for window in batches.record(bench)])
            if only in {None, "roll-out"}:
                _write("roll-out", attrs.asdict(roll_out.record(bench)))
            if only in {None, "dashboard"}:
                _write("dashboard", [attrs.asdict(panel) for panel in dashboard.record(bench)])
    finally:
        databases.close()


def _write(name: str, found: object) -> None:
    (RECORDS / f"{name}.json").write_bytes(msgspec.json.encode(found) + b"\n")
    click.echo(f"recorded {name}")


def drawn() -> dict[str, bytes]:
    """The pictures of what was recorded last, by their names."""
    windows = msgspec.json.decode((RECORDS / "batches.json").read_bytes(), type=list[batches.Window])
    roll = msgspec.json.decode((RECORDS / "roll-out.json").read_bytes(), type=roll_out.Record)
    panels = msgspec.json.decode((RECORDS / "dashboard.json").read_bytes(), type=list[dashboard.Panel])
    return {"batches": batches.draw(windows), "roll-out": roll_out.draw(roll), "dashboard": dashboard.draw(panels)}


@main.command()
def draw() -> None:
    """Make the pictures of what was recorded last."""
    IMAGES.mkdir(parents=True, exist_ok=True)
    for name, picture in drawn().items():
        (IMAGES / f"{name}.svg").write_bytes(picture)
        click.echo(f"drawn {name}")


if __name__ == "__main__":
    main(prog_name="python -m benchmarks.pictures")
