from __future__ import annotations

import base64
from collections.abc import Iterator
from typing import Any

import pytest
from attrs import evolve
from sqlalchemy import update

from db import Connection
from db.database import Database, opened
from db.options import Options
from db.queries import credentials, projects
from db.schema import projects as project_table
from llm_proxy.secrets import keys
from llm_proxy.secrets.encryption import KeyRing
from tests.databases.scratch import Scratch
from tests.db.queries.factories import a_project

OLD, NEW, OTHER = (base64.b64encode(bytes([number]) * 32).decode() for number in (1, 2, 3))


@pytest.fixture
def database(migrated_database: Scratch) -> Iterator[Database]:
    with opened(migrated_database.target, Options()) as database:
        yield database
        assert database.connections.in_use == 0


def ring(*texts: str, plain: bool = False) -> KeyRing:
    return KeyRing.from_setting(",".join(texts), allow_plaintext=plain)


def add_project(database: Database, sealing: KeyRing, api_key: str) -> str:
    project = a_project()
    sealed = sealing.seal(api_key, project.id)
    database.write_now(projects.create, evolve(project, api_key=sealed))
    return project.id


def opened_with(database: Database, opening: KeyRing) -> dict[str, str]:
    found: dict[str, str] = {}
    for project_id, sealed in database.read_now(credentials.sealed_keys, "projects", "", 1000):
        found[project_id] = opening.open(sealed, project_id)
    return found


def test_rotation_encrypts_every_key_under_the_first(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keys, "_PIECE", 3)
    expected = {add_project(database, ring(OLD), f"sk-{number}"): f"sk-{number}" for number in range(7)}
    expected[add_project(database, ring(NEW), "sk-new")] = "sk-new"

    dry = keys.rotate(database, ring(NEW, OLD), dry_run=True)
    assert (dry.resealed, dry.current, dry.unreadable) == (7, 1, [])
    assert opened_with(database, ring(NEW, OLD)) == expected
    done = keys.rotate(database, ring(NEW, OLD))
    assert (done.resealed, done.current, done.unreadable) == (7, 1, [])
    assert opened_with(database, ring(NEW)) == expected
    again = keys.rotate(database, ring(NEW, OLD))
    assert (again.resealed, again.current, again.unreadable) == (0, 8, [])


def test_a_key_that_cannot_be_decrypted_is_unchanged_and_reported(database: Database) -> None:
    lost = add_project(database, ring(OTHER), "sk-lost")
    good = add_project(database, ring(OLD), "sk-good")
    before = dict(database.read_now(credentials.sealed_keys, "projects", "", 10))

    done = keys.rotate(database, ring(NEW, OLD))

    assert (done.resealed, [one.owner for one in done.unreadable]) == (1, [lost])
    assert ring(OTHER).key_ids[0] in done.unreadable[0].reason
    after = dict(database.read_now(credentials.sealed_keys, "projects", "", 10))
    assert after[lost] == before[lost]
    assert ring(NEW).open(after[good], good) == "sk-good"


def test_plain_text_is_encrypted_once_there_is_a_key(database: Database) -> None:
    project = add_project(database, KeyRing(allow_plaintext=True), "sk-plain")
    refused = keys.rotate(database, ring(NEW))
    assert (refused.resealed, len(refused.unreadable)) == (0, 1)
    assert keys.rotate(database, ring(NEW, plain=True)).resealed == 1
    assert opened_with(database, ring(NEW)) == {project: "sk-plain"}


def test_a_key_that_is_set_at_the_same_time_is_not_overwritten(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    project = add_project(database, ring(OLD), "sk-old")
    real = credentials.reseal
    interfered: list[str] = []

    def interfere(connection: Connection, *arguments: Any) -> bool:
        if not interfered:
            interfered.append("once")
            sealed = ring(OLD).seal("sk-set-by-somebody", project)
            connection.execute(update(project_table).values(api_key=sealed))
        return real(connection, *arguments)

    monkeypatch.setattr(credentials, "reseal", interfere)
    assert keys.rotate(database, ring(NEW, OLD)).resealed == 1
    assert opened_with(database, ring(NEW)) == {project: "sk-set-by-somebody"}


def test_missing_keys_are_named_with_the_number_of_projects(database: Database) -> None:
    assert keys.find_locked(database, ring(NEW)) is None
    add_project(database, ring(OLD), "sk-1")
    add_project(database, ring(OLD), "sk-2")
    locked = keys.find_locked(database, ring(NEW))
    assert locked is not None
    assert locked.all_of_them
    assert str(locked) == (f"2 of 2 stored API keys need the key with the id {ring(OLD).key_ids[0]} (2)")
    add_project(database, ring(NEW), "sk-3")
    locked = keys.find_locked(database, ring(NEW))
    assert locked is not None
    assert not locked.all_of_them
    assert keys.find_locked(database, ring(NEW, OLD)) is None


class TestAdopt:
    """Servers of the release before change the key of a project, and know no credentials."""

    def sealed_by(self, database: Database, project: str) -> list[str]:
        """The key that a project uses at its default provider, by its credential."""
        (found,) = [one for one in database.read_now(credentials.default_keys, "", 10) if one.project.id == project]
        assert found.credential is not None
        return [ring(OLD).open(found.credential.api_key, found.credential.id), found.credential.api_key_last4]

    def set_key(self, database: Database, project: str, key: str, **more: str) -> None:
        values = {"api_key": ring(OLD).seal(key, project), "api_key_last4": key[-4:], **more}
        database.write_now(
            lambda connection: connection.execute(
                update(project_table).where(project_table.c.id == project).values(values)
            )
        )

    def test_a_new_project_gets_a_credential_of_its_name(self, database: Database) -> None:
        project = add_project(database, ring(OLD), "sk-first")
        assert keys.adopt(database, ring(OLD)) == 1
        assert self.sealed_by(database, project) == ["sk-first", "cdef"]
        assert keys.adopt(database, ring(OLD)) == 0

    def test_a_changed_key_is_that_of_the_credential_then(self, database: Database) -> None:
        project = add_project(database, ring(OLD), "sk-first")
        keys.adopt(database, ring(OLD))
        self.set_key(database, project, "sk-second")
        assert keys.adopt(database, ring(OLD)) == 1
        assert self.sealed_by(database, project) == ["sk-second", "cond"]

    def test_a_changed_key_of_a_shared_credential_is_a_new_credential(self, database: Database) -> None:
        one, other = (add_project(database, ring(OLD), "sk-first") for _ in range(2))
        keys.adopt(database, ring(OLD))
        (found,) = [found for found in database.read_now(credentials.default_keys, "", 10) if found.project.id == one]
        assert found.credential is not None
        database.write_now(credentials.assign, other, [found.credential])
        self.set_key(database, other, "sk-second")
        assert keys.adopt(database, ring(OLD)) == 1
        assert self.sealed_by(database, one)[0] == "sk-first"
        assert self.sealed_by(database, other)[0] == "sk-second"

    def test_a_changed_provider_needs_a_credential_there(self, database: Database) -> None:
        project = add_project(database, ring(OLD), "sk-first")
        keys.adopt(database, ring(OLD))
        self.set_key(database, project, "sk-ant", provider="anthropic")
        assert keys.adopt(database, ring(OLD)) == 1
        assert self.sealed_by(database, project)[0] == "sk-ant"

    def test_a_key_that_cannot_be_decrypted_is_left_alone(self, database: Database) -> None:
        add_project(database, ring(OTHER), "sk-lost")
        assert keys.adopt(database, ring(OLD)) == 0
