"""Database servers that present whatever certificate a test wants, one kind of server beside another.

PostgreSQL and MariaDB are processes of the tests' own, which read their certificates anew when they are told to. MySQL
is whichever server there is, behind a wire that speaks TLS for it.
"""

from __future__ import annotations

import secrets
import ssl
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Protocol

import pg8000.native
from attrs import define, evolve

from db.dsn import Target, parse
from tests.databases.admin import Address, admin_of
from tests.databases.kinds import Kind
from tests.databases.programs import Instance
from tests.databases.servers import Server, own_instance
from tests.db.tls_wire import TlsWire, tls_wire_to
from tests.harness.certificates import Authority

_RELOAD_SECONDS = 30.0
#: Users by what is asked of them, in the words of PostgreSQL.
_HBA = b"""
host all postgres all trust
hostssl all insists all trust
hostnossl all avoids all trust
hostssl all certified all trust clientcert=verify-ca
"""


class Certified(Protocol):
    """A server whose certificates the test chooses. Its name is localhost."""

    def present(self, certificate: Path | None) -> Target:
        """Present a certificate from now on, or offer no TLS. Clients need none."""

    def insisting(self, certificate: Path) -> Target:
        """Let nobody in without TLS."""

    def demanding(self, certificate: Path) -> Target:
        """Ask clients for a certificate of the authority."""


@contextmanager
def certified(kind: Kind, authority: Authority, server: Server) -> Iterator[Certified]:
    """A server of a kind that trusts an authority. Raises `servers.Missing` as `own_instance` does."""
    with ExitStack() as stack:
        first = authority.issue("first", "localhost").read_bytes()
        if kind is Kind.MYSQL:
            target = parse("mysql", server.url, None)
            wire = stack.enter_context(tls_wire_to(target.host, target.port))
            user = f"tls_{secrets.token_hex(4)}"
            server.admin.execute(f"CREATE USER {user} REQUIRE SSL")
            stack.callback(server.admin.execute, f"DROP USER {user}")
            yield _WiredMySql(evolve(target, host="localhost", port=wire.port), wire, user, authority)
            return

        def prepare(instance: Instance) -> Sequence[str]:
            trusted = instance.place("authority.pem", authority.file.read_bytes())
            if kind is Kind.POSTGRES:
                instance.place("pg_hba.conf", _HBA)
                return ()
            shown = instance.place("server.pem", first)
            return [f"--ssl-cert={shown}", f"--ssl-key={shown}", f"--ssl-ca={trusted}"]

        instance = stack.enter_context(own_instance(kind, prepare))
        target = evolve(parse(kind.driver, instance.url, None), host="localhost")
        if kind is Kind.POSTGRES:
            yield CertifiedPostgres(target, instance)
        else:
            plain = stack.enter_context(tls_wire_to("127.0.0.1", target.port))
            yield _CertifiedMariaDb(target, instance, plain)


@define(eq=False)
class CertifiedPostgres:
    _target: Target
    _instance: Instance
    _number: int = 0
    _shown: Path | None = None

    def __attrs_post_init__(self) -> None:
        users = ("insists", "avoids", "certified")
        admin_of(Kind.POSTGRES, self._instance.url).execute(*(f"CREATE ROLE {user} LOGIN" for user in users))

    def present(self, certificate: Path | None) -> Target:
        if certificate is None:
            self._configure("ssl = off\n", "ssl", "off")
            self._shown = None
        elif certificate != self._shown:
            self._number += 1
            name = f"server-{self._number}.pem"
            self._instance.place(name, certificate.read_bytes())
            files = f"ssl_cert_file = '{name}'\nssl_key_file = '{name}'\nssl_ca_file = 'authority.pem'\n"
            self._configure(f"ssl = on\n{files}", "ssl_cert_file", name)
            self._shown = certificate
        return self._target

    def insisting(self, certificate: Path) -> Target:
        return evolve(self.present(certificate), user="insists")

    def avoiding(self, certificate: Path) -> Target:
        """Let nobody in with TLS."""
        return evolve(self.present(certificate), user="avoids")

    def demanding(self, certificate: Path) -> Target:
        return evolve(self.present(certificate), user="certified")

    def _configure(self, text: str, setting: str, value: str) -> None:
        """Have the server read its settings anew; only a session that begins afterwards shows that it has."""
        address = Address.parse(self._instance.url, 5432)
        self._instance.place("postgresql.auto.conf", text.encode())
        deadline = time.monotonic() + _RELOAD_SECONDS
        while True:
            with pg8000.native.Connection(database="postgres", **address.postgres_arguments()) as session:
                if session.run(f"SHOW {setting}")[0][0] == value:
                    return
                assert time.monotonic() < deadline, f"{setting} did not become {value}"
                session.run("SELECT pg_reload_conf()")
            time.sleep(0.01)


@define(eq=False)
class _CertifiedMariaDb:
    _target: Target
    _instance: Instance
    _plain: TlsWire
    _shown: Path | None = None

    def __attrs_post_init__(self) -> None:
        admin_of(Kind.MARIADB, self._instance.url).execute(
            "CREATE USER insists REQUIRE SSL", "CREATE USER certified REQUIRE X509", "GRANT ALL ON *.* TO certified"
        )

    def present(self, certificate: Path | None) -> Target:
        if certificate is None:
            return evolve(self._target, port=self._plain.port)
        if certificate != self._shown:
            self._instance.place("server.pem", certificate.read_bytes())
            admin_of(Kind.MARIADB, self._instance.url).execute("FLUSH SSL")
            self._shown = certificate
        return self._target

    def insisting(self, certificate: Path) -> Target:
        return evolve(self.present(certificate), user="insists")

    def demanding(self, certificate: Path) -> Target:
        return evolve(self.present(certificate), user="certified")


@define(eq=False)
class _WiredMySql:
    _target: Target
    _wire: TlsWire
    _insisting: str
    _authority: Authority

    def present(self, certificate: Path | None) -> Target:
        self._wire.context = None if certificate is None else _server_context(certificate)
        return self._target

    def insisting(self, certificate: Path) -> Target:
        return evolve(self.present(certificate), user=self._insisting, password="")

    def demanding(self, certificate: Path) -> Target:
        context = _server_context(certificate)
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_verify_locations(self._authority.file)
        self._wire.context = context
        return self._target


def _server_context(certificate: Path) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    # So that a client without a certificate is rejected in the handshake.
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    context.load_cert_chain(certificate)
    return context
