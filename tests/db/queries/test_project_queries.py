from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta

import pytest
from attrs import evolve

from db.database import Database, opened
from db.dsn import Target
from db.errors import Duplicate
from db.options import Options
from db.queries import projects
from db.queries.rows import Position
from db.records import Project
from tests.db.queries.factories import NOON, a_project


@pytest.fixture
def database(migrated_target: Target) -> Iterator[Database]:
    with opened(migrated_target, Options()) as database:
        yield database
        assert database.connections.in_use == 0


def create(database: Database, *made: Project) -> None:
    for project in made:
        database.write_now(projects.create, project)


def test_a_project_is_read_as_it_was_written(database: Database) -> None:
    project = a_project(name="Grüße, 東京 🚀", api_key="enc:v2:" + "x" * 5000, active=False)
    create(database, project)
    assert database.read_now(projects.get, project.id) == project
    assert database.write_now(projects.get_locked, project.id) == project


def test_a_project_that_is_not_there_is_none(database: Database) -> None:
    assert database.read_now(projects.get, a_project().id) is None
    assert database.write_now(projects.get_locked, a_project().id) is None


def test_names_are_unique_to_the_code_point(database: Database) -> None:
    create(database, a_project(name="Alpha"), a_project(name="alpha"), a_project(name="Älpha"))
    with pytest.raises(Duplicate):
        create(database, a_project(name="Alpha"))
    assert len(database.read_now(projects.page, 10, None)) == 3


def test_pages_go_from_the_newest_to_the_oldest(database: Database) -> None:
    # Two rows of one time meet at a page's end; their ids decide.
    made = [a_project(created_at=NOON + timedelta(microseconds=n // 2)) for n in range(7)]
    create(database, *made)
    found: list[Project] = []
    after = None
    for _ in range(10):
        page = database.read_now(projects.page, 2, after)
        if not page:
            break
        found += page
        after = Position(page[-1].created_at, page[-1].id)
    assert found == sorted(made, key=lambda project: (project.created_at, project.id), reverse=True)


def change(database: Database, project: Project, changes: projects.ProjectValues) -> Project:
    later = NOON + timedelta(hours=1)
    return database.write_now(projects.change, project, changes, later)


@pytest.mark.parametrize(
    "changes",
    [
        projects.ProjectValues(name="new name"),
        projects.ProjectValues(provider="anthropic", api_key="enc:v2:0:other", api_key_last4="wxyz"),
        projects.ProjectValues(active=False),
    ],
    ids="+".join,
)
def test_a_change_is_written_and_given_back(database: Database, changes: projects.ProjectValues) -> None:
    project, other = a_project(), a_project()
    create(database, project, other)
    changed = change(database, project, changes)
    assert changed == evolve(project, **changes, updated_at=NOON + timedelta(hours=1))
    assert database.read_now(projects.get, project.id) == changed
    assert database.read_now(projects.get, other.id) == other


def test_no_change_is_no_change(database: Database) -> None:
    project = a_project()
    create(database, project)
    assert change(database, project, {}) == project
    assert database.read_now(projects.get, project.id) == project


def test_a_name_that_is_taken_changes_nothing(database: Database) -> None:
    project, other = a_project(), a_project(name="taken")
    create(database, project, other)
    with pytest.raises(Duplicate):
        change(database, project, {"name": "taken", "active": False})
    assert database.read_now(projects.get, project.id) == project
