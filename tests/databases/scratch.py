"""Databases that a test may do anything to: made in milliseconds, dropped at the end."""

from __future__ import annotations

import itertools
import os
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from attrs import Factory, define, frozen

from db import migrate
from db.database import opened
from db.dsn import Target, parse
from db.options import Options
from tests.databases.addresses import with_database
from tests.databases.kinds import Kind
from tests.databases.servers import Missing, Server, open_server


def upgrade(target: Target) -> tuple[migrate.Revision, ...]:
    """Bring the schema of a database to head, and return what was missing."""
    with opened(target, Options()) as database:
        return migrate.up(database)


@frozen
class Scratch:
    """One database, and how it is reached. `url` is empty for SQLite, `path` for the others."""

    kind: Kind
    name: str
    url: str
    path: str

    @property
    def target(self) -> Target:
        """What the database layer opens."""
        return parse(self.kind.driver, self.url, self.path)

    @property
    def env(self) -> dict[str, str]:
        """The settings that lead a server process to it."""
        place = {"DATABASE_PATH": self.path} if self.kind is Kind.SQLITE else {"DATABASE_URL": self.url}
        return {"DB_DRIVER": self.kind.driver, **place}


@define
class Databases:
    """All databases of a test run. Servers start when a test first asks for one, and stop with `close`.

    Those that start here flush commits to the disk if they are to be `durable`.
    """

    durable: bool = False
    _stack: ExitStack = Factory(ExitStack)
    _servers: dict[Kind, Server | Exception] = Factory(dict)
    _templates: dict[Kind, Scratch] = Factory(dict)
    _numbers: Iterator[int] = Factory(itertools.count)

    def server(self, kind: Kind) -> Server:
        """The server of this kind.

        Raises:
            Missing: this machine has none.
            RuntimeError: it has one that does not work; said again, without trying again, at each call.
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
        """A database with nothing in it."""
        with ExitStack() as stack:
            if kind is Kind.SQLITE:
                scratch = self._file(stack)
            else:
                scratch = self._database(kind, stack)
                self.server(kind).admin.create(scratch.name)
            yield scratch

    @contextmanager
    def migrated(self, kind: Kind) -> Iterator[Scratch]:
        """A database whose schema is at head: a copy of one that was migrated once."""
        template = self._template(kind)
        with ExitStack() as stack:
            if kind is Kind.SQLITE:
                scratch = self._file(stack)
                shutil.copyfile(template.path, scratch.path)
                Path(scratch.path).chmod(0o600)
            else:
                scratch = self._database(kind, stack)
                self.server(kind).admin.clone(template.name, scratch.name)
            yield scratch

    def describe(self) -> dict[Kind, str]:
        """Each server that was asked for: its version and where it came from, or why there is none."""
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

    def _database(self, kind: Kind, stack: ExitStack) -> Scratch:
        server = self.server(kind)
        name = f"llmproxy_{os.getpid()}_{next(self._numbers)}_{secrets.token_hex(3)}"
        stack.callback(server.admin.drop, name)
        return Scratch(kind, name, with_database(server.url, name), "")

    def _file(self, stack: ExitStack) -> Scratch:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="llm-proxy-sqlite-"))
        return Scratch(Kind.SQLITE, Path(folder).name, "", str(Path(folder) / "llm-proxy.db"))
