"""Logging in at MySQL 8 and later without TLS: the password travels under the server's public key, or not at all."""

from __future__ import annotations

from collections.abc import Iterator

import pymysql._auth
import pytest
from attrs import evolve

from db.database import Database, opened
from db.dsn import Target, Tls
from db.errors import Unavailable
from db.options import Options
from tests.databases.kinds import on

PASSWORD = "pä€s:w@rd/?#"

pytestmark = on("mysql")


@pytest.fixture
def user(database: Database, shared_target: Target) -> Iterator[Target]:
    """A user with the plugin that is the default of MySQL 8 and later, whom the server has not seen yet."""
    name = f"u_{shared_target.database[-12:]}"
    statement = f"CREATE USER '{name}' IDENTIFIED WITH caching_sha2_password BY '{PASSWORD}'"
    database.write_now(lambda c: c.exec_driver_sql(statement).close())
    database.write_now(lambda c: c.exec_driver_sql(f"GRANT ALL ON `{shared_target.database}`.* TO '{name}'").close())
    yield evolve(shared_target, user=name, password=PASSWORD, tls=Tls.OFF)
    database.write_now(lambda c: c.exec_driver_sql(f"DROP USER '{name}'").close())


@pytest.fixture
def encrypted(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """Passwords that were encrypted for the server."""
    real = pymysql._auth.sha2_rsa_encrypt
    seen: list[bytes] = []

    def encrypt(password: bytes, salt: bytes, key: bytes) -> bytes:
        seen.append(password)
        sealed: bytes = real(password, salt, key)
        return sealed

    monkeypatch.setattr(pymysql._auth, "sha2_rsa_encrypt", encrypt)
    return seen


def log_in(target: Target) -> str | None:
    with opened(target, Options()) as database:
        return database.read_now(database.describe).tls


def test_the_first_login_in_full_and_the_next_by_what_the_server_remembers(
    user: Target, encrypted: list[bytes]
) -> None:
    assert log_in(user) is None
    assert encrypted == [PASSWORD.encode()]
    assert log_in(user) is None
    assert encrypted == [PASSWORD.encode()]


def test_the_first_login_over_tls_needs_no_key(user: Target, encrypted: list[bytes]) -> None:
    assert log_in(evolve(user, tls=Tls.REQUIRED)) is not None
    assert log_in(user) is None
    assert encrypted == []


def test_the_certificate_that_a_server_made_for_itself(user: Target) -> None:
    assert log_in(evolve(user, tls=Tls.REQUIRED)) is not None
    for tls in (Tls.VERIFY_CA, Tls.VERIFY_FULL):
        with pytest.raises(Unavailable, match="certificate was not accepted: "):
            log_in(evolve(user, tls=tls))


def test_a_wrong_password_stays_wrong(user: Target) -> None:
    with pytest.raises(Unavailable, match="password was refused") as caught:
        log_in(evolve(user, password="s3cret"))
    assert "s3cret" not in str(caught.value)
