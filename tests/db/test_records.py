from __future__ import annotations

from db.queries.rows import SETTLED
from db.records import Reservation
from db.schema import in_flight, requests
from tests.db.queries.factories import a_project


def test_the_sealed_key_of_a_project_is_not_shown() -> None:
    project = a_project()

    assert project.name in repr(project)
    assert project.api_key
    assert project.api_key not in repr(project)


def test_each_column_of_the_ledger_is_a_field_of_its_record() -> None:
    assert set(requests.columns.keys()) == set(SETTLED)
    assert set(in_flight.columns.keys()) == set(Reservation.__struct_fields__)
