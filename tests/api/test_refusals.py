from __future__ import annotations

from msgspec import to_builtins

from db.queries import refusals
from tests.api.conftest import Api
from tests.db.queries.factories import a_refusal


async def test_refusals_are_listed_by_page_and_filter_and_as_csv(api: Api) -> None:
    project = await api.project()
    token = await api.token(project)
    known = {"token_id": token["id"], "project_id": project["id"]}
    rows = [
        a_refusal(**known),
        a_refusal(token_id="", project_id="", code="token_invalid", status=401, path="=1"),
        a_refusal(**known, code="token_expired"),
    ]
    await api.services.database.write(refusals.create, rows)
    first = (await api("GET", "/manage/refusals?limit=2")).json
    assert first["data"] == [to_builtins(row) for row in (rows[2], rows[1])]
    second = (await api("GET", f"/manage/refusals?limit=2&cursor={first['next_cursor']}")).json
    assert second == {"data": [to_builtins(rows[0])], "next_cursor": None}
    for query, places in (
        (f"token_id={token['id']}", [2, 0]),
        (f"project_id={project['name']}", [2, 0]),
        ("code=token_invalid", [1]),
        ("from=2020-01-01&to=2027-01-15", []),
    ):
        found = (await api("GET", f"/manage/refusals?{query}")).json["data"]
        assert [one["id"] for one in found] == [rows[place].id for place in places], query
    missing = await api("GET", "/manage/refusals?token_id=nobody")
    assert (missing.status, missing.json["code"]) == (404, "token_not_found")
