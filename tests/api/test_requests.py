from __future__ import annotations

import csv
import io
from typing import Any

import pytest
from sqlalchemy import Connection, insert

from db.records import SettledRequest
from db.schema import requests as table
from llm_proxy.identifiers import request_id
from tests.api.conftest import Api
from tests.db.queries.factories import a_settled_request, a_token

TOKEN, OTHER_TOKEN = "6f1b4a52-8a39-4c0e-9d0e-6c1f7d1f3b11", "0d9c2f6e-1d53-4f55-8f0a-3a52a8f2a0c4"
PROJECT = "b2f8a7f0-5b1c-4b56-9a67-0f3d0a1c2e4d"

ROW = a_settled_request(a_token(PROJECT, id=TOKEN), streamed=True, cost_nanousd=1_234_567).by_column()
SWEPT = a_settled_request(a_token(PROJECT, id=TOKEN), outcome="unknown", status=None).by_column()


async def settled(api: Api, *rows: dict[str, Any]) -> list[SettledRequest]:
    made = [SettledRequest.of(row | {"id": request_id()}) for row in rows]

    def write(connection: Connection) -> None:
        connection.execute(insert(table), [row.by_column() for row in made])

    await api.services.database.write(write)
    return made


async def test_a_settled_request_is_shown_with_every_column(api: Api) -> None:
    (row,) = await settled(api, ROW)
    noon = "2027-01-15T12:00:00.123456Z"
    shown = row.by_column() | {"admitted_at": noon, "settled_at": noon, "cost": "0.001234567"}
    for hidden in ("cost_nanousd", "summed_labels", "limits"):
        del shown[hidden]
    assert (await api("GET", "/manage/requests")).json == {
        "data": [shown],
        "next_cursor": None,
    }


async def test_the_cost_of_a_row_of_the_release_before_is_unknown(api: Api) -> None:
    await settled(api, ROW | {"requested_model": None, "cost_nanousd": None})
    unknown = dict.fromkeys(("cost", "cost_basis", "price_version", "requested_model", "labels", "reasoning_tokens"))
    (shown,) = (await api("GET", "/manage/requests")).json["data"]
    assert {name: shown[name] for name in unknown} == unknown
    reply = await api("GET", "/manage/requests", headers={"Accept": "text/csv"})
    (line,) = csv.DictReader(io.StringIO(reply.data.decode()))
    assert {line[name] for name in unknown} == {""}
    assert line["input_tokens"] == "3"


async def test_requests_are_listed_by_page_and_filter(api: Api) -> None:
    rows = await settled(
        api,
        ROW,
        ROW | {"token_id": OTHER_TOKEN},
        ROW | {"outcome": "client_closed", "status": None},
        ROW | {"token_id": OTHER_TOKEN, "outcome": "unknown", "project_id": TOKEN},
        ROW,
    )

    async def listed(query: str) -> list[int]:
        found: list[int] = []
        path: str | None = f"/manage/requests?limit=2{query}"
        for _ in range(10):
            if path is None:
                break
            reply = (await api("GET", path)).json
            found += [[row.id for row in rows].index(shown["id"]) for shown in reply["data"]]
            cursor = reply["next_cursor"]
            path = None if cursor is None else f"/manage/requests?limit=2{query}&cursor={cursor}"
        return found

    assert await listed("") == [4, 3, 2, 1, 0]
    assert await listed(f"&token_id={TOKEN}") == [4, 2, 0]
    assert await listed(f"&project_id={PROJECT}") == [4, 2, 1, 0]
    assert await listed("&outcome=ok") == [4, 1, 0]
    assert await listed(f"&outcome=unknown&token_id={OTHER_TOKEN}") == [3]
    assert await listed("&outcome=void") == []
    assert await listed(f"&id={rows[3].id.upper()}") == [3]
    assert await listed("&status=200&model=gpt-5&from=2020-01-01&to=2030-01-01T00:00:00Z") == [4, 3, 1, 0]
    assert await listed("&label.team=a") == []


async def test_a_request_is_found_by_its_own_id_or_the_providers(api: Api) -> None:
    rows = await settled(
        api,
        ROW | {"provider_request_id": "req_1"},
        ROW | {"provider_request_id": "Req_1"},
        ROW | {"provider_request_id": "req_1"},
    )
    # The provider gave this request an id that another one has here.
    (stranger,) = await settled(api, ROW | {"provider_request_id": rows[0].id})
    for identity, found in (
        (rows[0].id, rows[0]),
        (rows[0].id.upper(), rows[0]),
        ("req_1", rows[2]),
        ("Req_1", rows[1]),
        (stranger.id, stranger),
    ):
        reply = await api("GET", f"/manage/requests/{identity}")
        assert (reply.status, reply.json["id"]) == (200, found.id)
    for identity in ("req_2", "r", "%20", "r\u00e9q", "x" * 256):
        reply = await api("GET", f"/manage/requests/{identity}")
        assert (reply.status, reply.json["code"]) == (404, "request_not_found")


async def test_ids_in_capitals_are_accepted(api: Api) -> None:
    project = await api.project()
    token = await api.token(project)
    (row,) = await settled(api, ROW | {"project_id": project["id"], "token_id": token["id"]})
    project_id, token_id = project["id"].upper(), token["id"].upper()
    assert (await api("GET", f"/manage/projects/{project_id}")).json["id"] == project["id"]
    assert (await api("PATCH", f"/manage/projects/{project_id}", {"name": "new"})).status == 200
    assert (await api("GET", f"/manage/tokens/{token_id}")).json["id"] == token["id"]
    assert (await api("GET", f"/manage/tokens?project_id={project_id}")).json["data"][0]["id"] == token["id"]
    assert (await api("POST", "/manage/tokens", {"project_id": project_id})).json["project_id"] == project["id"]
    for query in (f"project_id={project_id}", f"token_id={token_id}"):
        assert [found["id"] for found in (await api("GET", f"/manage/requests?{query}")).json["data"]] == [row.id]
    assert (await api("POST", f"/manage/projects/{project_id}/tokens/revoke")).json == {"revoked": 2}


async def test_a_request_whose_outcome_is_unknown_is_resolved(api: Api) -> None:
    (row,) = await settled(api, SWEPT)
    path = f"/manage/requests/{row.id}"
    for cost, shown in (("0.12", "0.120000000"), ("0.12", "0.120000000"), ("0", "0.000000000")):
        reply = await api("POST", f"{path}/resolve", {"cost": cost})
        assert (reply.status, reply.json["outcome"], reply.json["cost"]) == (200, "unknown", shown)
        assert reply.json["cost_basis"] == "provider"
    for _ in range(2):
        reply = await api("POST", f"{path}/resolve", {"void": True})
        assert (reply.status, reply.json["outcome"], reply.json["cost"]) == (200, "void", None)
    reply = await api("POST", f"{path}/resolve", {"cost": "1"})
    assert (reply.status, reply.json["code"]) == (409, "request_known")
    assert "'void'" in reply.json["description"]
    assert (await api("GET", path)).json["outcome"] == "void"


async def test_a_request_whose_outcome_is_known_is_not_resolved(api: Api) -> None:
    (row,) = await settled(api, ROW)
    for body in ({"void": True}, {"cost": "0.001234567"}):
        reply = await api("POST", f"/manage/requests/{row.id}/resolve", body)
        assert (reply.status, reply.json["code"]) == (409, "request_known")
    assert (await api("GET", f"/manage/requests/{row.id}")).json["outcome"] == ROW["outcome"]


@pytest.mark.parametrize(
    ("body", "part"),
    [
        ({}, "either 'cost' or 'void' (true) must be given"),
        ({"cost": "1", "void": True}, "either 'cost' or 'void' (true) must be given"),
        ({"cost": "-1"}, "'cost' must be USD from 0 to 1000000"),
        ({"cost": "0.0000000001"}, "at most nine digits"),
        ({"cost": "NaN"}, "'cost' must be USD"),
        ({"cost": "1e400"}, "'cost' must be USD"),
        ({"cost": ""}, "'cost' must be USD"),
    ],
)
async def test_a_wrong_resolution_is_refused(api: Api, body: dict[str, Any], part: str) -> None:
    (row,) = await settled(api, SWEPT)
    reply = await api("POST", f"/manage/requests/{row.id}/resolve", body)
    assert (reply.status, reply.json["code"]) == (400, "invalid_body")
    assert part in reply.json["description"]
