"""`llm-proxy db copy`: from one database into another, whichever kinds they are."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path

import click

from db import copy as copying
from db import dsn, migrate
from db.copy import Comparison
from db.database import Database, opened
from db.dsn.target import Target
from db.errors import BadDsn
from llm_proxy.cli.commands.db.progress import TableProgress
from llm_proxy.cli.configuration import config_option, load_settings
from llm_proxy.cli.database import check_idle, patient_options
from llm_proxy.cli.failures import ERROR, Failure, WrongUsage
from llm_proxy.cli.output import Column, print_json, table
from llm_proxy.cli.program import Command
from llm_proxy.config import Settings
from llm_proxy.secrets import private_file

_COLUMNS = [
    Column("TABLE"),
    Column("ROWS", number=True),
    Column("DIGEST"),
    Column("TARGET ROWS", number=True),
    Column("TARGET DIGEST"),
    Column(""),
]


@click.command(cls=Command, name="copy")
@click.option("--from", "source", metavar="URL", help="The database to read, in any form of DATABASE_URL, or a file.")
@click.option("--from-file", "source_file", type=click.Path(path_type=Path), metavar="FILE", help="Holds that URL.")
@click.option("--to", "target", metavar="URL", help="The database to fill, likewise.")
@click.option("--to-file", "target_file", type=click.Path(path_type=Path), metavar="FILE", help="Holds that URL.")
@click.option("--resume", is_flag=True, help="Go on with a copy that was cut off, or bring one up to date.")
@click.option(
    "--allow-live", is_flag=True, help="Copy beside running servers. What they write meanwhile may be missing."
)
@click.option("--dry-run", is_flag=True, help="Say what would be copied, and write nothing.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@config_option
@click.pass_context
def command(  # noqa: PLR0913 (one parameter per option)
    context: click.Context,
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
    """Move everything to another database.

    From SQLite, PostgreSQL, MySQL or MariaDB to any of them. The target's schema is made; it must have no rows, but
    with --resume. In the end both are read, and proved to hold the same. Keys stay encrypted and tokens stay digests:
    with the same ENCRYPTION_KEY, clients notice nothing.

    Exits 1 where the two differ in the end. A URL with a password is better given in a file: other users of this
    machine can see command lines.
    """
    settings = load_settings(config)
    read_from = _target("--from", source, source_file)
    write_to = _target("--to", target, target_file)
    if read_from.same_place(write_to):
        raise WrongUsage("--from and --to are the same database")
    with _open_source(settings, read_from, allow_live=allow_live) as old:
        copying.check_schema(old)
        if dry_run:
            _imagine(old, write_to, as_json=as_json)
            return
        with _open_target(settings, write_to) as new:
            migrate.up(new)
            if not allow_live:
                check_idle(old, settings)
                check_idle(new, settings)
            if not resume:
                copying.check_empty(new)
            with TableProgress() as progress:
                found = copying.copy(old, new, resume=resume, progress=progress)
    _show(found, as_json=as_json)
    different = [comparison.table for comparison in found if not comparison.equal]
    if different:
        why = "the source has changed meanwhile: stop its servers, and" if allow_live else "they differ:"
        click.echo(
            f"{click.style('problem:', fg='yellow', bold=True)} {', '.join(different)}: {why} "
            "run the same command with --resume",
            err=True,
        )
        context.exit(ERROR)


def _target(option: str, url: str | None, file: Path | None) -> Target:
    if (url is None) == (file is None):
        raise WrongUsage(f"give either {option} or {option}-file")
    if file is not None:
        try:
            private_file.check(file)
            url = file.read_text(encoding="utf-8").strip()
        except private_file.ExposedFile as error:
            raise WrongUsage(f"{option}-file {file} {error}") from None
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "it is not text"
            raise WrongUsage(f"{option}-file {file} cannot be read: {reason}") from None
    try:
        return dsn.parse(None, url, None)
    except BadDsn as error:
        raise WrongUsage(str(error).replace("DATABASE_URL", option).replace("DATABASE_PATH", option)) from None


def _open_source(settings: Settings, target: Target, *, allow_live: bool) -> AbstractContextManager[Database]:
    if target.path is not None and not target.path.exists():
        raise Failure(f"there is no SQLite file {target.path}")
    # Alone with the file, so that nobody writes to it meanwhile; the lock says who does.
    return opened(target, patient_options(settings), exclusive=not allow_live)


def _open_target(settings: Settings, target: Target) -> AbstractContextManager[Database]:
    return opened(target, patient_options(settings))


def _imagine(source: Database, target: Target, *, as_json: bool) -> None:
    found = copying.counts(source)
    if as_json:
        print_json({"from": str(source.target), "to": str(target), "rows": found})
        return
    click.echo(f"Would copy from {source.target}\n             to {target}\n")
    click.echo(table([Column("TABLE"), Column("ROWS", number=True)], [(n, f"{c:,}") for n, c in found.items()]))


def _show(found: Sequence[Comparison], *, as_json: bool) -> None:
    if as_json:
        print_json(
            [
                {
                    "table": one.table,
                    "equal": one.equal,
                    "source": {"rows": one.source.rows, "digest": f"{one.source.total:064x}"},
                    "target": {"rows": one.target.rows, "digest": f"{one.target.total:064x}"},
                }
                for one in found
            ]
        )
        return
    rows = [
        (
            one.table,
            f"{one.source.rows:,}",
            one.source,
            f"{one.target.rows:,}",
            one.target,
            "equal" if one.equal else "DIFFERENT",
        )
        for one in found
    ]
    click.echo(table(_COLUMNS, rows))
