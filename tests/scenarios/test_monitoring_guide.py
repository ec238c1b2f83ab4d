"""What docs/database/monitoring.md gives to operators, on the servers that it is for."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from pathlib import Path

from db import Connection
from db.database import opened
from db.options import Options
from tests.databases.kinds import SERVERS, Kind, on
from tests.databases.scratch import Scratch
from tests.docs.blocks import block, blocks
from tests.docs.prompt import done
from tests.harness.server import ROOT, StartServer

PAGE = ROOT / "docs" / "database" / "monitoring.md"
#: The marks of SQL blocks, and the servers that they are tried on.
RUN_ON = {"postgres": ("postgres",), "mysql, mariadb": ("mysql", "mariadb")}
QUERIES = [one for one in blocks(PAGE) if one.language == "sql"]
WAITS = re.compile(r"pg_blocking_pids|innodb_lock_waits")


def queries(kind: Kind) -> Iterator[str]:
    for query in QUERIES:
        if query.run is not None and kind in RUN_ON[query.run]:
            yield query.text


def test_guide_has_queries_for_every_database() -> None:
    for kind in SERVERS:
        assert len(list(queries(kind))) >= 7


@on(*SERVERS)
def test_every_query_of_the_guide_works(migrated_database: Scratch, database_kind: Kind) -> None:
    for text in queries(database_kind):
        columns, rows = migrated_database.query(text.replace("'llmproxy'", f"'{migrated_database.name}'"))
        assert columns, text
        if not re.search(r"INTERVAL '?10", text, re.IGNORECASE) and not WAITS.search(text):
            assert rows, text


@on(*SERVERS)
def test_queries_of_the_guide_show_lock_waits(migrated_database: Scratch, database_kind: Kind) -> None:
    (text,) = [text for text in queries(database_kind) if WAITS.search(text)]
    seen: list[int] = []
    started, release = threading.Event(), threading.Event()

    def lock(connection: Connection) -> None:
        # MySQL, too, locks a row that is set to what it is.
        connection.exec_driver_sql("UPDATE alembic_version SET version_num = version_num")

    def hold(connection: Connection) -> None:
        lock(connection)
        started.set()
        release.wait(60)

    with opened(migrated_database.target, Options(pool_size=2, statement_timeout=60)) as database:
        threads = [threading.Thread(target=database.write_now, args=(fn,)) for fn in (hold, lock)]
        threads[0].start()
        assert started.wait(30)
        threads[1].start()
        try:
            for _ in range(300):
                seen.append(len(migrated_database.query(text)[1]))
                if seen[-1]:
                    break
                threads[1].join(0.1)
        finally:
            release.set()
            for thread in threads:
                thread.join(60)
        assert seen[-1] == 1


def test_commands_of_the_guide_work_beside_a_server_on_sqlite(start_server: StartServer, tmp_path: Path) -> None:
    server = start_server({"DB_DRIVER": "sqlite", "DATABASE_PATH": "./data/llm-proxy.db"})
    text = done(block(PAGE, "metrics").replace("http://localhost:8080", server.url), server.folder)
    shown = re.findall(r"^(llm_proxy_database_\w+)", text, re.MULTILINE)
    example = re.findall(r"^(llm_proxy_database_\w+)", PAGE.read_text(), re.MULTILINE)
    assert set(example) <= set(shown)
    assert done(block(PAGE, "sqlite"), server.folder) == "0\n"
    assert "The ledger is correct" in done(block(PAGE, "shell"), server.folder)
