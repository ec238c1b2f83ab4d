from __future__ import annotations

from typing import Any

import pytest
from sqlalchemy import Connection

from db.dialects.statements import clock
from db.queries import ledger, tokens
from tests.api.conftest import Api
from tests.db.queries.factories import a_settled_request

PATH = "/manage/limits"


async def a_limit(api: Api, **fields: Any) -> dict[str, Any]:
    reply = await api("POST", PATH, fields)
    assert reply.status == 201, reply
    return dict(reply.json)


async def test_a_limit_of_a_project_is_created_by_name_and_shown(any_api: Api) -> None:
    project = await any_api.project(name="website")
    made = await a_limit(
        any_api, project_id="website", metric="cost", window="month", amount="50.00", models=["gpt-5.4*"], warn_at=80
    )

    assert made == made | {
        "token_id": None,
        "project_id": project["id"],
        "metric": "cost",
        "window": "month",
        "amount": "50.000000000",
        "models": ["gpt-5.4*"],
        "policy": "settled",
        "wait": "0s",
        "warn_at": 80,
        "unpriced": "refuse",
        "used": "0.000000000",
        "reserved": "0.000000000",
    }
    assert made["window_start"] < made["resets_at"]
    assert (await any_api("GET", f"{PATH}/{made['id']}")).json == made
    assert (await any_api("GET", f"{PATH}?project_id=website")).json == {"data": [made], "next_cursor": None}


async def test_the_limits_of_a_project_include_those_of_its_tokens(any_api: Api) -> None:
    project = await any_api.project(name="website")
    token = await any_api.token(project, name="checkout")
    mine = await a_limit(any_api, token_id="checkout", metric="concurrency", amount=4)
    everybody = await a_limit(any_api, metric="requests", window="total", amount=9)

    assert (mine["token_id"], mine["wait"], mine["resets_at"]) == (token["id"], "1s", None)
    assert (everybody["token_id"], everybody["project_id"]) == (None, None)
    for query in ("project_id=website", "token_id=checkout"):
        assert (await any_api("GET", f"{PATH}?{query}")).json["data"] == [mine]
    assert len((await any_api("GET", PATH)).json["data"]) == 2


@pytest.mark.parametrize(("backfill", "used"), [(True, "0.250000000"), (False, "0.000000000")])
async def test_a_new_limit_begins_with_what_its_period_has_used(any_api: Api, backfill: bool, used: str) -> None:
    token = await any_api.token(await any_api.project())

    def use(connection: Connection) -> None:
        owner = tokens.get(connection, token["id"])
        assert owner is not None
        now = clock(connection)
        fields: dict[str, Any] = {"cost_nanousd": 250_000_000, "model": "gpt-5.4", "requested_model": ""}
        ledger.roll_up(connection, [a_settled_request(owner, admitted_at=now, settled_at=now, **fields)])

    await any_api.services.database.write(use)
    wanted = {"token_id": token["id"], "metric": "cost", "window": "month", "amount": 1, "backfill": backfill}

    assert (await a_limit(any_api, **wanted))["used"] == used
    assert (await a_limit(any_api, **wanted, models=["gpt*"]))["used"] == used
    assert (await a_limit(any_api, **wanted, models=["claude*"]))["used"] == "0.000000000"


async def test_a_limit_is_changed_and_keeps_what_it_has_counted(any_api: Api) -> None:
    made = await a_limit(any_api, metric="cost", window="day", amount=5, policy="reserved", wait="5s", warn_at=50)
    path = f"{PATH}/{made['id']}"

    changed = await any_api("PATCH", path, {"amount": "7.50", "wait": "250ms", "warn_at": None, "unpriced": "refuse"})

    expected = {"amount": "7.500000000", "wait": "250ms", "warn_at": None}
    assert changed.json == made | expected | {"updated_at": changed.json["updated_at"]}
    settled = await a_limit(any_api, metric="cost", window="day", amount=5)
    allowed = await any_api("PATCH", f"{PATH}/{settled['id']}", {"unpriced": "allow"})
    assert allowed.json == settled | {"unpriced": "allow", "updated_at": allowed.json["updated_at"]}
    wrong = await any_api("PATCH", path, {"metric": "tokens"})
    assert (wrong.status, wrong.json["code"]) == (400, "invalid_body")


async def test_what_a_limit_cannot_have_is_not_changed(any_api: Api) -> None:
    made = await a_limit(any_api, metric="requests", window="day", amount=5)

    reply = await any_api("PATCH", f"{PATH}/{made['id']}", {"amount": "1.5", "wait": "1s", "unpriced": "allow"})

    assert reply.json["description"] == (
        "'amount' of requests must be a whole number from 0 to 9007199254740991; 'wait' is only for 'policy' reserved"
        " and 'metric' concurrency; 'unpriced' is only for 'metric' cost."
    )
    assert (await any_api("GET", f"{PATH}/{made['id']}")).json == made


async def test_a_reserved_limit_does_not_allow_models_without_a_price(any_api: Api) -> None:
    wanted = {"metric": "cost", "window": "day", "amount": 5, "policy": "reserved"}
    made = await a_limit(any_api, **wanted)

    for method, path, body in (
        ("POST", PATH, {**wanted, "unpriced": "allow"}),
        ("PATCH", f"{PATH}/{made['id']}", {"unpriced": "allow"}),
    ):
        reply = await any_api(method, path, body)
        assert (reply.status, reply.json["code"]) == (400, "invalid_body")
        assert reply.json["description"] == (
            "'unpriced' allow is not for 'policy' reserved: a model without a price has no worst case."
        )


async def test_a_deleted_limit_is_gone(any_api: Api) -> None:
    made = await a_limit(any_api, metric="requests", window="day", amount=5)

    assert (await any_api("DELETE", f"{PATH}/{made['id']}")).status == 204
    gone = await any_api("DELETE", f"{PATH}/{made['id']}")
    assert (gone.status, gone.json["code"]) == (404, "limit_not_found")


async def test_every_mistake_of_a_new_limit_is_told_at_once(any_api: Api) -> None:
    body = {"token_id": "a", "project_id": "b", "metric": "concurrency", "window": "day", "amount": "1.5"}

    reply = await any_api("POST", PATH, body | {"policy": "reserved", "unpriced": "allow"})

    assert (reply.status, reply.json["code"]) == (400, "invalid_body")
    assert reply.json["description"] == (
        "only one of 'token_id', 'project_id' can be given; without both, the limit is of the whole proxy; 'metric'"
        " concurrency takes no 'window'; 'policy' reserved is only for 'metric' cost, tokens, input_tokens,"
        " output_tokens; 'unpriced' is only for 'metric' cost; 'amount' of concurrency must be a whole number from 0 to"
        " 9007199254740991."
    )
