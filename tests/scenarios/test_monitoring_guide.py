"""The SQL that docs/database/monitoring.md gives to operators, on the servers that it is for."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest

from tests.databases.console import run
from tests.databases.kinds import SERVERS, Kind, on
from tests.databases.scratch import Scratch
from tests.harness.server import ROOT

PAGE = ROOT / "docs" / "database" / "monitoring.md"
SECTIONS = {"PostgreSQL": ("postgres",), "MySQL and MariaDB": ("mysql", "mariadb")}


def queries() -> Iterator[tuple[str, str]]:
    """Each SQL block with the section that it stands in."""
    for section in re.split(r"^### ", PAGE.read_text(), flags=re.MULTILINE)[1:]:
        title = section.partition("\n")[0]
        for block in re.findall(r"^```sql\n(.*?)^```", section, re.MULTILINE | re.DOTALL):
            yield title, block


QUERIES = list(queries())


def test_every_query_is_for_a_server_that_it_is_tried_on() -> None:
    assert {title for title, _ in QUERIES} == set(SECTIONS)
    assert len(QUERIES) > 10


@on(*SERVERS)
@pytest.mark.parametrize("number", range(len(QUERIES)))
def test_a_query_of_the_page(migrated_database: Scratch, database_kind: Kind, number: int) -> None:
    title, block = QUERIES[number]
    if str(database_kind) not in SECTIONS[title]:
        return
    text = re.sub(r"--.*", "", block).replace("'llmproxy'", f"'{migrated_database.name}'")
    for statement in filter(str.strip, text.split(";")):
        columns, _ = run(migrated_database, statement.strip())
        assert columns, statement
