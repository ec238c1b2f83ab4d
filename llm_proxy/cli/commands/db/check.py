"""`llm-proxy db check`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import click

from db import migrate
from db.database import Database
from db.dialects import ServerFacts
from db.migrate import Status
from llm_proxy.cli.database import open_for_reading
from llm_proxy.cli.failures import ERROR
from llm_proxy.cli.options import database_options, json_option, load_settings
from llm_proxy.cli.output import print_json, record, report_problem
from llm_proxy.cli.program import Command
from llm_proxy.config import Settings
from llm_proxy.config.database import key_file, open_keyring
from llm_proxy.health.startup_checks import over_limit, wanted_connections
from llm_proxy.secrets import keys

#: Seconds by which the clocks may differ without a warning. The worker's clock decides whether a token has expired.
_NOTABLE_SKEW = 1.0


@click.command(cls=Command, name="check")
@json_option
@database_options
def command(*, db: str | None, config: Path | None, as_json: bool) -> None:
    """Connect to the database and run the startup checks.

    Shows the version, TLS, the schema, the pool size and the database's connection limit, and the clock skew. Exits 1
    if the schema is not at head, the pool is too large, the clocks differ by more than 1 s, or ENCRYPTION_KEY does not
    decrypt all API keys.
    """
    settings = load_settings(config, db)
    with open_for_reading(settings) as database:
        facts = database.read_now(database.describe)
        schema = database.read_now(migrate.status)
        where, pool_size = str(database.target), database.options.pool_size
        locked = _locked(database, settings) if schema.at_head else None
    skew = facts.clock_skew.total_seconds()
    complaints = list(_complaints(settings, facts, schema, locked))
    if as_json:
        print_json(
            {
                "database": where,
                "version": facts.version,
                "tls": facts.tls,
                "revision": schema.current,
                "head": schema.head,
                "pool_size": pool_size,
                "workers": settings.workers,
                "max_connections": facts.max_connections,
                "allowed_connections": facts.allowed_connections,
                "open_connections": facts.open_connections,
                "clock_skew_seconds": skew,
                "complaints": complaints,
            }
        )
    else:
        pool = f"{pool_size} connections per worker, {settings.workers} worker{'s' * (settings.workers > 1)}"
        behind = len(schema.pending)
        state = f"{behind} revision{'s' * (behind != 1)} behind {schema.head}" if behind else "at head"
        fields = {
            "database": where,
            "version": facts.version,
            "TLS": facts.tls or "none",
            "schema": f"{schema.current or 'empty'} ({state})",
            "pool": pool + _limit(facts),
            "clock": _clock(skew),
        }
        if settings.db_driver == "sqlite":
            del fields["TLS"]
        click.echo(record(fields))
        for complaint in complaints:
            report_problem(complaint)
    if complaints:
        raise click.exceptions.Exit(ERROR)


def _locked(database: Database, settings: Settings) -> keys.UndecryptableKeys | None:
    """API keys that the configured key does not decrypt; None also if a server has not made its key yet."""
    file = key_file(settings)
    if file is not None and not file.exists():
        return None
    return keys.find_locked(database, open_keyring(settings))


def _limit(facts: ServerFacts) -> str:
    limit, allowed = facts.max_connections, facts.allowed_connections
    if limit is None:
        return ""
    own = "" if allowed == limit else f", {allowed} of this user"
    return f"; the database takes {limit}{own}, and others have {facts.open_connections} now"


def _complaints(
    settings: Settings, facts: ServerFacts, schema: Status, locked: keys.UndecryptableKeys | None
) -> Iterator[str]:
    if not schema.at_head:
        yield "the schema is not at head; run 'llm-proxy migrate up', or start a server"
    if complaint := over_limit(facts, wanted_connections(settings)):
        yield complaint
    skew = abs(facts.clock_skew.total_seconds())
    if skew > _NOTABLE_SKEW:
        yield f"the clocks differ by {skew:.1f} s; tokens expire by the worker's clock"
    if locked is not None:
        yield f"{locked}; they cannot be used before that is configured"


def _clock(skew: float) -> str:
    if abs(skew) < 0.001:
        return "the same as here, to the millisecond"
    return f"{abs(skew) * 1000:.0f} ms {'ahead of' if skew > 0 else 'behind'} this machine's"
