"""A copy of a SQLite file that is in use (sqlite.org, "SQLite Online Backup API")."""

from __future__ import annotations

import os
import sqlite3
from contextlib import ExitStack, closing, suppress
from pathlib import Path
from urllib.parse import quote

from db.dialects.sqlite.file import hold
from db.errors import Refused, Unavailable


def back_up(source: Path, to: Path, *, overwrite: bool = False) -> int:
    """Write a copy of the database as it is at this moment, and return its size in bytes.

    The copy appears whole or not at all, is one file without a log beside it, and is for its owner alone, as is its
    folder if that has to be made. It is made in one step: in several, the library would begin anew whenever somebody
    writes, and a busy server always does.

    Raises:
        Refused: there is something at `to` already, or what a program has left of it, or the copy is damaged, as the
            source then is.
        FileInUse: a server uses the file at `to`.
        Unavailable: a file cannot be read or written.
    """
    if to.exists() and to.resolve() == source.resolve():
        raise Refused(f"{to} is the database that is to be copied; choose another name")
    if to.exists() and not overwrite:
        raise Refused(f"{to} exists; choose another name, or --force to replace it")
    partial = to.with_name(to.name + ".partial")
    try:
        with ExitStack() as held:
            # Every server that has used the file has left its lock file there.
            if to.exists() and (real := to.resolve()).with_name(real.name + ".lock").exists():
                held.callback(hold(to, real).release)
            _check_logs(to)
            to.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            os.close(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600))
            partial.chmod(0o600)
            try:
                _write(source, partial)
                size = partial.stat().st_size
                partial.replace(to)
                _flush(to.parent)
            except BaseException:
                for leftover in (partial, partial.with_name(partial.name + "-journal")):
                    with suppress(FileNotFoundError):
                        leftover.unlink()
                raise
    except OSError as error:
        raise Unavailable(f"the backup {to} cannot be written: {error.strerror}") from error
    except sqlite3.Error as error:
        raise Unavailable(
            f"SQLite file {source} cannot be copied to {to}: look for a full disk, permissions, or a damaged file"
        ) from error
    return size


def _check_logs(to: Path) -> None:
    """Refuse to put a copy beside a log of an earlier file: SQLite would apply it to the copy. Raises Refused."""
    for suffix in ("-wal", "-journal"):
        log = to.with_name(to.name + suffix)
        if log.exists():
            raise Refused(f"{log} belongs to an earlier {to}, which is open or was not closed; choose another name")


def _write(source: Path, partial: Path) -> None:
    uri = f"file:{quote(str(source.absolute()))}?mode=ro"
    with closing(sqlite3.connect(uri, uri=True)) as old, closing(sqlite3.connect(partial)) as new:
        old.backup(new, pages=-1)
        # The copy has no log of its own: the first program that opens it sets the mode.
        new.execute("PRAGMA journal_mode = DELETE")
        (verdict,) = new.execute("PRAGMA integrity_check(1)").fetchone()
        if verdict != "ok":
            raise Refused(f"SQLite file {source} is damaged, and so would its copy be: restore it from an older backup")
    _flush(partial)


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
