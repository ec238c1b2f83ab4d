"""A user with a password who owns a database of a test, by the names that our pages give to both."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from contextlib import contextmanager

from attrs import frozen

from tests.databases.addresses import Address
from tests.databases.console import run
from tests.databases.kinds import Kind
from tests.databases.scratch import Scratch

#: What pages call an account, a place and a database, in the forms of both servers.
PLACES = ("user:password@localhost:5432/llmproxy", "llmproxy:secret@localhost:5432/llmproxy")
GO_PLACE = "llmproxy:secret@tcp(localhost:3306)/llmproxy"


@frozen
class Account:
    """A user of the test server with a password, who owns the database of the test."""

    name: str
    scratch: Scratch

    def fill(self, text: str, end: str | None = None) -> str:
        """What a page says, for this account and this server, or another `end` that leads to it."""
        default = 5432 if self.scratch.kind is Kind.POSTGRES else 3306
        address = Address.parse(self.scratch.url, default_port=default)
        end, who = end or f"{address.host}:{address.port}", f"{self.name}:secret"
        text = text.replace("@db.internal:", "@localhost:").replace("@tcp(db.internal:", "@tcp(localhost:")
        for place in PLACES:
            text = text.replace(place, f"{who}@{end}/{self.scratch.name}")
        return text.replace(GO_PLACE, f"{who}@tcp({end})/{self.scratch.name}")


@contextmanager
def account(scratch: Scratch) -> Iterator[Account]:
    """An account for as long as it is wanted; what it has made goes with it."""
    name = f"guide_{secrets.token_hex(4)}"
    if scratch.kind is Kind.POSTGRES:
        begin = [f"CREATE ROLE {name} LOGIN PASSWORD 'secret'", f'ALTER DATABASE "{scratch.name}" OWNER TO {name}']
        end = [f"REASSIGN OWNED BY {name} TO CURRENT_USER", f"DROP OWNED BY {name}", f"DROP ROLE {name}"]
    else:
        who = [f"'{name}'@'%'", f"'{name}'@'localhost'"]  # an anonymous user of localhost would come before '%'
        begin = [f"CREATE USER {one} IDENTIFIED BY 'secret'" for one in who]
        begin += [f"GRANT ALL ON `{scratch.name}`.* TO {one}" for one in who]
        end = [f"DROP USER {one}" for one in who]
    for statement in begin:
        run(scratch, statement)
    try:
        yield Account(name, scratch)
    finally:
        for statement in end:
            run(scratch, statement)
