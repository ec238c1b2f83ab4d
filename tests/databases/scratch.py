"""Databases for one test each: created in milliseconds, dropped at the end of the test."""

from __future__ import annotations

import itertools
import os
import secrets
import shutil
import tempfile
from collections import defaultdict
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from attrs import Factory, define, frozen

from db import migrate
from db.database import opened
from db.dsn import Target, parse
from db.options import Options
from db.schema import metadata
from tests.databases.admin import Address, admin_of, with_database
from tests.databases.kinds import Kind
from tests.databases.servers import Missing, Server, open_server

#: The tables of the schema, each before those that it refers to.
_TABLES = tuple(table.name for table in reversed(metadata.sorted_tables))

#: The account, the host and the database in the documentation, in all forms of a URL.
PLACES = ("user:password@localhost:5432/llmproxy", "llmproxy:secret@localhost:5432/llmproxy")
GO_PLACE = "llmproxy:secret@tcp(localhost:3306)/llmproxy"


def upgrade(target: Target) -> tuple[migrate.Revision, ...]:
    """Bring the schema of a database to head, and return what was missing."""
    with opened(target, Options()) as database:
        return migrate.up(database)


@frozen
class Scratch:
    """One database. `url` is empty for SQLite, `path` for the others."""

    kind: Kind
    name: str
    url: str
    path: str

    @property
    def target(self) -> Target:
        """The database, for the database layer."""
        return parse(self.kind.driver, self.url, self.path)

    @property
    def env(self) -> dict[str, str]:
        """The database, as settings of a server process."""
        place = {"DATABASE_PATH": self.path} if self.kind is Kind.SQLITE else {"DATABASE_URL": self.url}
        return {"DB_DRIVER": self.kind.driver, **place}

    def query(self, statement: str) -> tuple[list[str], list[tuple[Any, ...]]]:
        """Run a statement as the administrator of the server; return the names of its columns, and its rows."""
        return admin_of(self.kind, self.url).query(statement, self.name)


@frozen
class Account:
    """A user of the test server with a password, who owns the database of the test."""

    name: str
    scratch: Scratch

    def fill(self, text: str, end: str | None = None) -> str:
        """Put this account, host and database into a text of the documentation; `end` is another host:port."""
        default = 5432 if self.scratch.kind is Kind.POSTGRES else 3306
        address = Address.parse(self.scratch.url, default_port=default)
        end, login = end or f"{address.host}:{address.port}", f"{self.name}:secret"
        text = text.replace("@db.internal:", "@localhost:").replace("@tcp(db.internal:", "@tcp(localhost:")
        for place in PLACES:
            text = text.replace(place, f"{login}@{end}/{self.scratch.name}")
        return text.replace(GO_PLACE, f"{login}@tcp({end})/{self.scratch.name}")


@contextmanager
def account(scratch: Scratch) -> Iterator[Account]:
    """Create an account; at the end, delete it and everything that it owns."""
    name = f"guide_{secrets.token_hex(4)}"
    if scratch.kind is Kind.POSTGRES:
        begin = [f"CREATE ROLE {name} LOGIN PASSWORD 'secret'", f'ALTER DATABASE "{scratch.name}" OWNER TO {name}']
        end = [f"REASSIGN OWNED BY {name} TO CURRENT_USER", f"DROP OWNED BY {name}", f"DROP ROLE {name}"]
    else:
        users = [f"'{name}'@'%'", f"'{name}'@'localhost'"]  # an anonymous user of localhost would come before '%'
        begin = [f"CREATE USER {user} IDENTIFIED BY 'secret'" for user in users]
        begin += [f"GRANT ALL ON `{scratch.name}`.* TO {user}" for user in users]
        end = [f"DROP USER {user}" for user in users]
    for statement in begin:
        scratch.query(statement)
    try:
        yield Account(name, scratch)
    finally:
        for statement in end:
            scratch.query(statement)


@define
class Databases:
    """All databases of a test run. A server starts when a test needs it first, and stops with `close`.

    If `durable`, the servers that start here flush commits to the disk.
    """

    durable: bool = False
    _stack: ExitStack = Factory(ExitStack)
    _servers: dict[Kind, Server | Exception] = Factory(dict)
    _templates: dict[Kind, Scratch] = Factory(dict)
    _definitions: dict[Kind, str] = Factory(dict)
    _used: defaultdict[Kind, list[Scratch]] = Factory(lambda: defaultdict(list))
    _numbers: Iterator[int] = Factory(itertools.count)

    def server(self, kind: Kind) -> Server:
        """The server of this kind.

        Raises:
            Missing: this machine has none.
            RuntimeError: the server does not work. Each further call raises the same error at once.
        """
        if kind not in self._servers:
            try:
                server = open_server(kind, durable=self.durable)
            except (Missing, RuntimeError) as error:
                self._servers[kind] = error
            else:
                self._servers[kind] = server
                self._stack.callback(server.close)
        found = self._servers[kind]
        if isinstance(found, Exception):
            raise found
        return found

    @contextmanager
    def empty(self, kind: Kind) -> Iterator[Scratch]:
        """An empty database."""
        with ExitStack() as stack:
            if kind is Kind.SQLITE:
                scratch = self._file(stack)
            else:
                scratch = self._database(kind, stack)
                self.server(kind).admin.create(scratch.name)
            yield scratch

    @contextmanager
    def migrated(self, kind: Kind) -> Iterator[Scratch]:
        """A database whose schema is at head: a copy of one that was migrated once, or one that another test has used.

        Making and dropping one costs a server more than most tests do, so it is emptied for the next test, unless the
        test has changed more than rows.
        """
        template = self._template(kind)
        with ExitStack() as stack:
            if kind is Kind.SQLITE:
                scratch = self._file(stack)
                shutil.copyfile(template.path, scratch.path)
                Path(scratch.path).chmod(0o600)
            elif found := self._cleared(kind):
                scratch = found
            else:
                scratch = self._database(kind, self._stack)
                self.server(kind).admin.clone(template.name, scratch.name)
            yield scratch
            if self.durable and kind is not Kind.SQLITE:
                # Its past must not burden what is measured next.
                self.server(kind).admin.drop(scratch.name)
            elif kind is not Kind.SQLITE:
                # Emptied when the next test needs it: the servers of this one may not have ended yet.
                self._used[kind].append(scratch)

    def describe(self) -> dict[Kind, str]:
        """The version and origin of each server that a test needed, or why there is none."""
        return {
            kind: str(found).partition("\n")[0] if isinstance(found, Exception) else f"{found.version} ({found.origin})"
            for kind, found in self._servers.items()
        }

    def close(self) -> None:
        """Drop the templates, then stop the servers."""
        self._stack.close()

    def _template(self, kind: Kind) -> Scratch:
        if kind not in self._templates:
            scratch = self._stack.enter_context(self.empty(kind))
            upgrade(scratch.target)
            self._templates[kind] = scratch
        return self._templates[kind]

    def _cleared(self, kind: Kind) -> Scratch | None:
        """A migrated database that another test has used, without its rows; None if there is none."""
        admin = self.server(kind).admin
        while self._used[kind]:
            scratch = self._used[kind].pop()
            if admin.clear(scratch.name, self._definition(kind), _TABLES):
                return scratch
            admin.drop(scratch.name)
        return None

    def _definition(self, kind: Kind) -> str:
        if kind not in self._definitions:
            self._definitions[kind] = self.server(kind).admin.definition(self._template(kind).name)
        return self._definitions[kind]

    def _database(self, kind: Kind, stack: ExitStack) -> Scratch:
        server = self.server(kind)
        name = f"llmproxy_{os.getpid()}_{next(self._numbers)}_{secrets.token_hex(3)}"
        stack.callback(server.admin.drop, name)
        return Scratch(kind, name, with_database(server.url, name), "")

    def _file(self, stack: ExitStack) -> Scratch:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="llm-proxy-sqlite-"))
        return Scratch(Kind.SQLITE, Path(folder).name, "", str(Path(folder) / "llm-proxy.db"))
