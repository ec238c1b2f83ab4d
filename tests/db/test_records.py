from __future__ import annotations

from tests.db.queries.factories import a_project


def test_the_sealed_key_of_a_project_is_not_shown() -> None:
    project = a_project()

    assert project.name in repr(project)
    assert project.api_key
    assert project.api_key not in repr(project)
