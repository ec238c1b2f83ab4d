"""What statements read: rows, and tables that are read from end to end.

PostgreSQL, MySQL and MariaDB analyze the statement: the bound is of the rows that its plan reads from tables. Their
number on MySQL is that of performance_schema for these tables, but for the end of each range, which is read too. The
handlers of MySQL and MariaDB also count rows of temporary tables, which a report with groups writes and reads again:
these are reported, and have no bound. SQLite shows the plan, and counts the instructions of its virtual machine.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from attrs import Factory, define, frozen
from sqlalchemy import Connection, Engine, event

from benchmarks.databases import Kind
from db.schema import metadata

#: Tables with a row for each day, which may be read whole.
_SMALL = frozenset({"usage_days"})
#: What begins a setting of PostgreSQL's planner, and sets it back to its default.
_SETTING = "SET LOCAL "
#: The rows of the ledger as PostgreSQL's planner estimates them, and from which number on it must choose by itself.
_SIZE_OF_LEDGER = "SELECT reltuples FROM pg_class WHERE oid = 'requests'::regclass"
_MANY_ROWS = 100_000
#: Instructions between two calls of SQLite's progress handler.
_PIECE = 100
#: Instructions that SQLite spends on a row with all sums, and a little more.
INSTRUCTIONS_PER_ROW = 200

#: A step of MySQL's plan that reads a table.
_STEP = re.compile(
    r"-> (?P<how>[^\n]*?) on (?P<table>\w+)\b[^\n]*\(actual time=\S+ rows=(?P<rows>\S+) loops=(?P<loops>\d+)\)"
)
#: A line of MariaDB's plan, in which it does not escape quotes.
_CONDITION = re.compile(r'"\w+_condition": ".*"(,?)$', re.MULTILINE)
_SCAN = re.compile(r"SCAN (?P<table>\w+)")


@frozen
class Statement:
    """A statement as the driver has it."""

    text: str
    values: Any


@define
class Reads:
    """What some statements read.

    Attributes:
        rows: of tables and indexes. On SQLite, the number of instructions by `INSTRUCTIONS_PER_ROW`.
        handler: reads of the handlers on MySQL and MariaDB, those of temporary tables included.
        scanned: tables that are read without an index.
    """

    rows: int = 0
    handler: int = 0
    scanned: set[str] = Factory(set)


@contextmanager
def recorded() -> Iterator[list[Statement]]:
    """Record the queries of all databases of this process, and the settings that they run with."""
    found: list[Statement] = []

    def record(_connection: Any, _cursor: Any, text: str, values: Any, *_: Any) -> None:
        if text.startswith(("SELECT", _SETTING)):
            found.append(Statement(text, values))

    event.listen(Engine, "before_cursor_execute", record)
    try:
        yield found
    finally:
        event.remove(Engine, "before_cursor_execute", record)


def measure(connection: Connection, kind: Kind, statements: list[Statement]) -> Reads:
    """Run statements again, and say what they read."""
    reads = Reads()
    if kind is Kind.POSTGRES and connection.exec_driver_sql(_SIZE_OF_LEDGER).scalar_one() < _MANY_ROWS:
        # Its planner reads a table of a few thousand rows whole, or an index of it, and must not seem to have no other.
        connection.exec_driver_sql("SET LOCAL enable_seqscan = off")
        connection.exec_driver_sql("SET LOCAL enable_indexonlyscan = off")
    for statement in statements:
        if statement.text.startswith(_SETTING):
            connection.exec_driver_sql(statement.text)
            continue
        _BY_KIND[kind](connection, statement, reads)
        if kind in {Kind.MYSQL, Kind.MARIADB}:
            _count_handler_reads(connection, statement, reads)
    reads.scanned -= _SMALL
    return reads


def _on_postgresql(connection: Connection, statement: Statement, reads: Reads) -> None:
    text = f"EXPLAIN (ANALYZE, TIMING OFF, FORMAT JSON) {statement.text}"
    (plan,) = connection.exec_driver_sql(text, statement.values).scalars()
    nodes = [(json.loads(plan) if isinstance(plan, str) else plan)[0]["Plan"]]
    while nodes:
        node = nodes.pop()
        nodes += node.get("Plans", ())
        # A bitmap has all rows that its indexes give, also if several are combined and few rows are read.
        by_bitmap = node["Node Type"] == "Bitmap Heap Scan"
        if "Relation Name" in node or node["Node Type"] == "Bitmap Index Scan":
            unwanted = ("Rows Removed by Filter", "Rows Removed by Index Recheck")
            each = node["Actual Rows"] + sum(node.get(name, 0) for name in unwanted)
            reads.rows += 0 if by_bitmap else round(each * node["Actual Loops"])
        if "Relation Name" in node:
            by_index = "Index Cond" in node or by_bitmap
            if not by_index and ("Filter" in node or "Seq Scan" in node["Node Type"]):
                reads.scanned.add(node["Relation Name"])


def _on_mysql(connection: Connection, statement: Statement, reads: Reads) -> None:
    (plan,) = connection.exec_driver_sql(f"EXPLAIN ANALYZE {statement.text}", statement.values).scalars()
    for step in _STEP.finditer(plan):
        if step["table"] in metadata.tables:
            reads.rows += round(float(step["rows"]) * int(step["loops"]))
            if step["how"] == "Table scan":
                reads.scanned.add(step["table"])


def _on_mariadb(connection: Connection, statement: Statement, reads: Reads) -> None:
    (plan,) = connection.exec_driver_sql(f"ANALYZE FORMAT=JSON {statement.text}", statement.values).scalars()
    nodes = [json.loads(_CONDITION.sub(r'"condition": ""\1', plan))]
    while nodes:
        node = nodes.pop()
        if isinstance(node, dict):
            nodes += node.values()
            if node.get("table_name") in metadata.tables:
                reads.rows += round((node["r_rows"] or 0) * node["r_loops"])
                if node["access_type"] == "ALL":
                    reads.scanned.add(node["table_name"])
        elif isinstance(node, list):
            nodes += node


def _count_handler_reads(connection: Connection, statement: Statement, reads: Reads) -> None:
    start, before = _handler_reads(connection), _handler_reads(connection)
    connection.exec_driver_sql(statement.text, statement.values).all()
    # Asking reads rows too, as many each time.
    reads.handler += _handler_reads(connection) - before - (before - start)


def _handler_reads(connection: Connection) -> int:
    return sum(int(row[1]) for row in connection.exec_driver_sql("SHOW SESSION STATUS LIKE 'Handler_read_%%'", ()))


def _on_sqlite(connection: Connection, statement: Statement, reads: Reads) -> None:
    for row in connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {statement.text}", statement.values):
        # A list is read in the order of an index, up to a limit.
        found = _SCAN.match(row[-1])
        if found and found["table"] in metadata.tables and (found["table"] != "requests" or "USING" not in row[-1]):
            reads.scanned.add(found["table"])
    pieces = 0

    def count() -> int:
        nonlocal pieces
        pieces += 1
        return 0

    driver: Any = connection.connection.driver_connection
    driver.set_progress_handler(count, _PIECE)
    connection.exec_driver_sql(statement.text, statement.values).all()
    driver.set_progress_handler(None, 0)
    reads.rows += pieces * _PIECE // INSTRUCTIONS_PER_ROW


_BY_KIND = {
    Kind.SQLITE: _on_sqlite,
    Kind.POSTGRES: _on_postgresql,
    Kind.MYSQL: _on_mysql,
    Kind.MARIADB: _on_mariadb,
}
