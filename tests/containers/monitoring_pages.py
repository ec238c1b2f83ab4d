"""What the pages on monitoring have their reader give to Prometheus."""

from __future__ import annotations

from tests.docs.blocks import block
from tests.harness.server import ROOT

DOCS = ROOT / "docs"


def configuration() -> str:
    """The configuration for a Prometheus of one's own."""
    return block(DOCS / "operations" / "monitoring.md", "scraping")


def expressions() -> list[str]:
    """What may be asked about the database; one expression below each comment."""
    lines = block(DOCS / "database" / "monitoring.md", "expressions for Prometheus").splitlines()
    found = [line for line in lines if line and not line.startswith("#")]
    assert len(found) == len([line for line in lines if line.startswith("#")])
    return found
