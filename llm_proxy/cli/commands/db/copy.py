"""`llm-proxy db copy`."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import click

from db import copy as copying
from db import dsn, migrate
from db.copy import Comparison
from db.database import Database, opened
from db.dsn.target import Target
from db.errors import BadDsn
from llm_proxy.cli.database import check_idle, patient_options
from llm_proxy.cli.failures import ERROR, CommandFailed, WrongUsage
from llm_proxy.cli.options import config_option, json_option, load_settings
from llm_proxy.cli.output import print_table, report_problem
from llm_proxy.cli.program import Command
from llm_proxy.config.kinds import InvalidValue
from llm_proxy.config.sources import read_secret

_FILE = click.Path(path_type=Path)
#: Seconds between two lines of progress.
_LINE_EVERY = 5.0


class _Progress:
    """Shows the copied rows of each table on stderr: a bar on a terminal, a line every five seconds elsewhere."""

    def __init__(self) -> None:
        self._bars = ExitStack()
        self._bar: Any = None
        self._table = ""
        self._printed = 0.0

    def __call__(self, table: str, done: int, whole: int) -> None:
        """Show progress; `whole` may have grown since it was counted."""
        is_new, self._table = table != self._table, table
        if not sys.stderr.isatty():
            now = time.monotonic()
            if is_new:
                self._printed = now
            if done >= whole or now - self._printed >= _LINE_EVERY:
                self._printed = now
                click.echo(f"{table}: {done:,} of {max(done, whole):,} rows", err=True)
            return
        if is_new:
            self.complete()
            bar = click.progressbar(length=max(whole, 1), label=f"{table:<14}", show_pos=True, file=sys.stderr)
            self._bar = self._bars.enter_context(bar)
        self._bar.update(min(done, self._bar.length) - self._bar.pos)

    def complete(self) -> None:
        """Show the last table as complete."""
        if self._bar is not None:
            self._bar.update(self._bar.length - self._bar.pos)
        self.close()

    def close(self) -> None:
        """End the line of the bar."""
        self._bars.close()


@click.command(cls=Command, name="copy")
@click.option("--from", "source", metavar="URL", help="Source: a URL as in DATABASE_URL, or the path of a SQLite file.")
@click.option("--from-file", "source_file", type=_FILE, metavar="FILE", help="File with the URL of the source.")
@click.option("--to", "target", metavar="URL", help="Target: a URL as in DATABASE_URL, or the path of a SQLite file.")
@click.option("--to-file", "target_file", type=_FILE, metavar="FILE", help="File with the URL of the target.")
@click.option("--resume", is_flag=True, help="Continue an interrupted copy, or update an earlier one.")
@click.option("--allow-live", is_flag=True, help="Copy while servers are running; the copy may miss what they write.")
@click.option("--dry-run", is_flag=True, help="Print what would be copied; write nothing.")
@json_option
@config_option
def command(  # noqa: PLR0913 (one parameter per option)
    *,
    source: str | None,
    source_file: Path | None,
    target: str | None,
    target_file: Path | None,
    resume: bool,
    allow_live: bool,
    dry_run: bool,
    as_json: bool,
    config: Path | None,
) -> None:
    """Copy all data to another database.

    Copies from SQLite, PostgreSQL, MySQL or MariaDB to any of them. Creates the schema of the target, which must have
    no rows unless --resume is given. Compares both databases at the end, and exits 1 if they differ. API keys stay
    encrypted and tokens stay digests: with the same ENCRYPTION_KEY, clients notice no change.

    Give a URL with a password in a file: other users of this machine can see the options of a command.
    """
    settings = load_settings(config)
    read_from = _target("--from", source, source_file)
    write_to = _target("--to", target, target_file)
    if read_from.same_place(write_to):
        raise WrongUsage("--from and --to are the same database")
    if read_from.path is not None and not read_from.path.exists():
        raise CommandFailed(f"there is no SQLite file {read_from.path}")
    # Locked, so that no server writes to the file while it is copied.
    with opened(read_from, patient_options(settings), exclusive=not (allow_live or dry_run)) as old:
        copying.check_schema(old)
        if dry_run:
            _show_plan(old, write_to, as_json=as_json)
            return
        with opened(write_to, patient_options(settings)) as new:
            migrate.up(new)
            if not allow_live:
                check_idle(old, settings)
                check_idle(new, settings)
            if not resume:
                copying.check_empty(new)
            with closing(_Progress()) as progress:
                found = copying.copy(old, new, resume=resume, progress=progress)
                progress.complete()
    _show(found, as_json=as_json)
    different = [comparison.table for comparison in found if not comparison.equal]
    if different:
        why = "the source has changed meanwhile: stop its servers, and" if allow_live else "they differ:"
        report_problem(f"{', '.join(different)}: {why} run the same command with --resume")
        raise click.exceptions.Exit(ERROR)


def _target(option: str, url: str | None, file: Path | None) -> Target:
    if (url is None) == (file is None):
        raise WrongUsage(f"give either {option} or {option}-file")
    if file is not None:
        try:
            url = read_secret(file)
        except InvalidValue as error:
            raise WrongUsage(f"{option}-file {file}: {error}") from None
    try:
        return dsn.parse(None, url, None)
    except BadDsn as error:
        raise WrongUsage(str(error).replace("DATABASE_URL", option).replace("DATABASE_PATH", option)) from None


def _show_plan(source: Database, target: Target, *, as_json: bool) -> None:
    found = copying.counts(source)
    if not as_json:
        click.echo(f"Would copy from {source.target}\n             to {target}\n")
    value = {"from": str(source.target), "to": str(target), "rows": found}
    rows = [(name, f"{number:,}") for name, number in found.items()]
    print_table(value, ("TABLE", "ROWS"), rows, numbers=("ROWS",), as_json=as_json)


def _show(found: Sequence[Comparison], *, as_json: bool) -> None:
    value = [
        {
            "table": one.table,
            "equal": one.equal,
            "source": {"rows": one.source.rows, "digest": f"{one.source.total:064x}"},
            "target": {"rows": one.target.rows, "digest": f"{one.target.total:064x}"},
        }
        for one in found
    ]
    rows = [
        (
            one.table,
            *(f"{one.source.rows:,}", one.source),
            *(f"{one.target.rows:,}", one.target),
            "equal" if one.equal else "DIFFERENT",
        )
        for one in found
    ]
    titles = ("TABLE", "ROWS", "DIGEST", "TARGET ROWS", "TARGET DIGEST", "")
    print_table(value, titles, rows, numbers=("ROWS", "TARGET ROWS"), as_json=as_json)
