"""Migrations that end in the middle: killed or frozen, in a process of their own, or by a statement that fails.

What counts are the statements that change something; `after` is how many of them a run still gets done.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import StrEnum
from multiprocessing.process import BaseProcess
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any

from attrs import define
from sqlalchemy import Engine, event

from db import migrate
from db.database import opened
from db.dsn.target import Target
from db.errors import DatabaseError, FileInUse
from db.options import Options

_CHANGES = ("CREATE", "ALTER", "DROP", "INSERT", "UPDATE", "DELETE", "COMMENT")
#: Exit statuses: a statement failed, another process has the file.
FAILED, IN_USE = 103, 104
#: Seconds that one run may take.
PATIENCE = 120.0

context = multiprocessing.get_context("forkserver")


class End(StrEnum):
    """How a run ends."""

    KILL = "kill"
    FREEZE = "freeze"
    FAIL = "fail"


@define
class Trap:
    """Watches the statements of this process in a `with` block, and springs after so many changes."""

    end: End
    left: int

    def __enter__(self) -> None:
        event.listen(Engine, "before_cursor_execute", self._before, retval=True)
        event.listen(Engine, "after_cursor_execute", self._after)

    def __exit__(self, *_: object) -> None:
        event.remove(Engine, "before_cursor_execute", self._before)
        event.remove(Engine, "after_cursor_execute", self._after)

    def _before(self, connection: Any, cursor: Any, statement: str, parameters: Any, *_: Any) -> tuple[str, Any]:
        if self.end is End.FAIL and self.left == 0 and changes(statement):
            return "SELECT 1 FROM a_table_that_is_not_there", ()
        return statement, parameters

    def _after(self, connection: Any, cursor: Any, statement: str, *_: Any) -> None:
        if not changes(statement):
            return
        self.left -= 1
        if self.left == 0 and self.end is not End.FAIL:
            os.kill(os.getpid(), signal.SIGKILL if self.end is End.KILL else signal.SIGSTOP)


def changes(statement: str) -> bool:
    """Whether a statement changes something."""
    return statement.lstrip().upper().startswith(_CHANGES)


def up_to(target: Target, revision: str, end: End, after: int) -> None:
    """Migrate up to a revision, with a trap."""
    with opened(target, Options()) as database, Trap(end, after), _failing():
        if revision == "head":
            migrate.up(database)
        else:
            with database.migrating(30) as connection:
                migrate._run("upgrade", connection, revision, None)


def down_to(target: Target, revision: str, end: End, after: int) -> None:
    """Migrate down to a revision, with a trap; `base` is before the first."""
    with opened(target, Options()) as database, Trap(end, after), _failing():
        migrate.down(database, revision)


def race(target: Target, line: Barrier) -> None:
    """Migrate at the same time as others. Exits with the number of revisions that this process has run, or `IN_USE`."""
    line.wait(PATIENCE)
    try:
        with opened(target, Options()) as database:
            done = len(migrate.up(database))
            assert database.read_now(migrate.is_at_head)
    except FileInUse:
        raise SystemExit(IN_USE) from None
    raise SystemExit(done)


@contextmanager
def _failing() -> Iterator[None]:
    try:
        yield
    except DatabaseError:
        raise SystemExit(FAILED) from None


def start(run: Callable[..., None], *arguments: object) -> BaseProcess:
    """Start one of these in a process of its own, forked from one that has everything imported."""
    context.set_forkserver_preload(["tests.db.crashes", "tests.db.migrated_once", "pymysql", "pg8000"])
    process = context.Process(target=run, args=arguments)
    process.start()
    return process


def run(function: Callable[..., None], *arguments: object) -> int:
    """Run one of these to its end; its exit status, -9 where it was killed.

    A run that a statement ends leaves this process as it was, so it needs none of its own.
    """
    if End.FAIL in arguments:
        try:
            function(*arguments)
        except SystemExit as ended:
            return FAILED if ended.code == FAILED else 1
        return 0
    with killed_at_the_end(start(function, *arguments)) as process:
        process.join(PATIENCE)
        status = process.exitcode
        assert status is not None
        return status


@contextmanager
def frozen(target: Target, after: int) -> Iterator[BaseProcess]:
    """A migration up to the head that has frozen itself after so many changes."""
    with killed_at_the_end(start(up_to, target, "head", End.FREEZE, after)) as process:
        assert process.pid is not None
        _await_stop(process.pid)
        yield process


@contextmanager
def killed_at_the_end(process: BaseProcess) -> Iterator[BaseProcess]:
    """Whatever comes between: an interpreter waits for its children before it ends, and a frozen one never does."""
    try:
        yield process
    finally:
        process.kill()
        process.join()


def _await_stop(pid: int) -> None:
    """Wait until a process has frozen itself."""
    deadline = time.monotonic() + PATIENCE
    while Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "Tt":
        assert time.monotonic() < deadline
        time.sleep(0.01)
