from __future__ import annotations

import csv
import io
from datetime import timedelta
from typing import Any

import pytest

from db.queries import ledger, objects, usage
from db.queries.rows import first_id
from db.records import DETAIL_SUMS, TOKENS, ProviderObject, SettledRequest
from db.schema import requests
from llm_proxy.identifiers import new_id
from tests.api.conftest import NOON, Api
from tests.db.queries.factories import a_settled_request, a_token

DAY = timedelta(days=1)
ZERO = {
    **dict.fromkeys(("requests", "errors", "unpriced", "estimated", "unmetered", *TOKENS, *DETAIL_SUMS), 0),
    "cost": "0.000000000",
    "p50_ms": None,
    "p95_ms": None,
}

NOT_SUMMED = (
    "'from' (2026-12-02T00:00:00+00:00) must be at most 7 days before 'to' (2027-01-01T00:00:00+00:00), because the"
    " sums do not distinguish the label 'user' (LABEL_KEYS: team, env). Give a shorter range, or add the label to"
)


@pytest.fixture
async def projects(any_api: Api) -> dict[str, dict[str, Any]]:
    """Two projects with two tokens each, by name."""
    made = {}
    for name in ("alpha", "beta"):
        project = made[name] = await any_api.project(name=name)
        for number in (1, 2):
            made[f"{name}-{number}"] = await any_api.token(project, name=f"{name}-{number}")
    return made


async def settled(api: Api, *rows: SettledRequest) -> None:
    await api.services.database.write(lambda connection: ledger.roll_up(connection, rows))


def row(token: dict[str, Any], **fields: Any) -> SettledRequest:
    usual = {"requested_model": "gpt", "cost_nanousd": 1_000_000_000, "duration_us": 75_000}
    return a_settled_request(a_token(token["project_id"], id=token["id"]), **usual | fields)


async def report(api: Api, query: str, limit: int = 50) -> list[dict[str, Any]]:
    """All pages of a report."""
    found: list[dict[str, Any]] = []
    path = f"/manage/usage?limit={limit}&{query}"
    cursor = ""
    for _ in range(50):
        reply = await api("GET", path + cursor)
        assert reply.status == 200, reply
        assert len(reply.json["data"]) <= limit
        found += reply.json["data"]
        if reply.json["next_cursor"] is None:
            return found
        cursor = f"&cursor={reply.json['next_cursor']}"
    raise AssertionError("the pages do not end")


def brief(rows: list[dict[str, Any]], *names: str) -> list[tuple[Any, ...]]:
    return [tuple(one[name] for name in names) for one in rows]


async def test_all_sums_of_a_group_are_shown(any_api: Api, projects: dict[str, Any]) -> None:
    token = projects["alpha-1"]
    await settled(
        any_api,
        row(
            token,
            outcome="rejected",
            input_tokens=100,
            cached_tokens=10,
            cache_write_tokens=20,
            cache_write_1h_tokens=15,
            output_tokens=50,
            reasoning_tokens=5,
            usage_details={name: place for place, name in enumerate(DETAIL_SUMS, start=1)} | {"images": 9},
            cost_nanousd=1_234_567_890,
            estimated=True,
        ),
        row(token, cost_nanousd=None, unmetered=True, duration_us=200_000_000),
        row(token, outcome="void"),
        row(token, kind="late", input_tokens=1, output_tokens=None, usage_details={"web_searches": 2}, cost_nanousd=1),
    )
    (shown,) = await report(any_api, "group_by=project,token,provider,model,requested_model,hour,day,month")
    assert shown == {
        "project": "alpha",
        "project_id": token["project_id"],
        "token": "alpha-1",
        "token_id": token["id"],
        "provider": "openai",
        "model": "gpt-5",
        "requested_model": "gpt",
        "hour": "2027-01-15T12:00:00Z",
        "day": "2027-01-15",
        "month": "2027-01",
        "requests": 2,
        "errors": 1,
        "input_tokens": 104,
        "cached_tokens": 10,
        "cache_write_tokens": 20,
        "cache_write_1h_tokens": 15,
        "output_tokens": 54,
        "reasoning_tokens": 5,
        "input_audio_tokens": 1,
        "output_audio_tokens": 2,
        "input_image_tokens": 3,
        "output_image_tokens": 4,
        "web_searches": 7,
        "cost": "1.234567891",
        "unpriced": 1,
        "estimated": 1,
        "unmetered": 1,
        "p50_ms": 100,
        "p95_ms": 120_000,
    }


async def test_without_groups_there_is_one_sum_and_none_without_requests(
    any_api: Api, projects: dict[str, Any]
) -> None:
    assert await report(any_api, "") == []
    await settled(any_api, row(projects["alpha-1"]), row(projects["beta-2"]))
    assert brief(await report(any_api, ""), "requests", "cost") == [(2, "2.000000000")]


async def test_groups_are_the_same_on_pages_of_any_size(any_api: Api, projects: dict[str, Any]) -> None:
    tokens = [projects[name] for name in ("alpha-1", "alpha-2", "beta-1", "beta-2")]
    rows = [
        row(token, model=model, admitted_at=NOON - day * DAY - timedelta(hours=hour))
        for token in tokens
        for model in ("a", "b", "")
        for day in (0, 1, 20)
        for hour in (0, 1)
    ]
    await settled(any_api, *rows)
    for groups, number in (
        *(("project", 2), ("token", 4), ("model", 3), ("hour", 6), ("day", 3), ("month", 2), ("project,model", 6)),
        *(("model,day,token", 36), ("hour,project", 12), ("month,day", 3), ("month,model", 6), ("provider", 1)),
    ):
        whole = await report(any_api, f"group_by={groups}", 500)
        assert len(whole) == number, groups
        assert sum(one["requests"] for one in whole) == len(rows)
        assert list(whole[0])[: groups.count(",") + 1][0] == groups.split(",")[0]
        for limit in (1, 2, 5):
            if groups not in ("model", "provider"):
                assert await report(any_api, f"group_by={groups}", limit) == whole, (groups, limit)
    # The dimension of a filter has one value, and another one leads.
    for query in ("project_id=alpha&group_by=project,model,day", "token_id=alpha-1&group_by=token,project,hour,model"):
        whole = await report(any_api, query, 500)
        assert await report(any_api, query, 2) == whole, query


async def test_filters_narrow_down(any_api: Api, projects: dict[str, Any]) -> None:
    team = {"team": "search", "env": "prod"}
    await settled(
        any_api,
        row(projects["alpha-1"], model="a", labels=team, summed_labels=team),
        row(projects["alpha-2"], model="b", provider="anthropic"),
        row(projects["beta-1"], model="a", summed_labels={"team": "ads"}),
        row(projects["beta-1"], model="a", admitted_at=NOON - 2 * DAY),
        row(projects["beta-1"], model="a", admitted_at=NOON - 31 * DAY),
    )
    for query, number in (
        ("", 4),
        ("project_id=alpha", 2),
        ("token_id=beta-1", 2),
        ("token_id=beta-1&project_id=alpha", 0),
        ("model=a", 3),
        ("provider=anthropic", 1),
        ("label.team=search", 1),
        ("label.team=search&label.env=dev", 0),
        ("from=2027-01-14", 3),
        ("from=2026-12-01&to=2027-01-14", 2),
        ("from=2027-01-15T13:30:00%2B01:00&to=2027-01-15T12:45:00Z", 3),
        ("group_by=token&project_id=alpha", 2),
        ("group_by=project&token_id=alpha-1", 1),
        ("group_by=project&project_id=beta&model=a", 2),
    ):
        assert sum(one["requests"] for one in await report(any_api, query)) == number, query
    teams = brief(await report(any_api, "group_by=label.team,label.env"), "label.team", "label.env", "requests")
    assert teams == [(None, None, 2), ("ads", None, 1), ("search", "prod", 1)]


async def test_labels_that_are_not_summed_are_read_from_the_requests(any_api: Api, projects: dict[str, Any]) -> None:
    asked: list[tuple[str, int, str, dict[str, Any]]] = [
        ("alpha-1", 0, "alice", {"cost_nanousd": None, "usage_details": {"web_searches": 2}}),
        ("alpha-1", 1, "alice", {"outcome": "rejected"}),
        ("alpha-1", 1, "alice", {"outcome": "void"}),
        ("alpha-2", 25, "bob", {"model": "other", "kind": "late"}),
        ("beta-1", 25, "bob", {"provider": "anthropic"}),
        ("beta-1", 200, "bob", {}),
    ]
    rows = []
    for number, (name, hours, user, fields) in enumerate(asked):
        at = NOON - hours * timedelta(hours=1)
        labels = {"labels": {"user": user, "team": "search"}, "summed_labels": {"team": "search"}}
        identity = f"{first_id(at)}-7000-8000-{number:012x}"
        rows.append(row(projects[name], id=identity, admitted_at=at, **labels, **fields))
    rows.append(row(projects["beta-1"], id=f"{first_id(NOON)}-7000-8000-ffffffffffff"))
    await any_api.services.database.write(
        lambda connection: connection.execute(requests.insert(), [one.by_column() for one in rows]).close()
    )
    week = "from=2027-01-08T12:30:00Z"
    whole = await report(any_api, f"{week}&group_by=label.user")
    names = ("requests", "errors", "unpriced", "input_tokens", "web_searches", "cost", "p50_ms")
    shown = brief(whole, "label.user", *names)
    assert shown == [
        (None, 1, 0, 0, 3, 0, "1.000000000", 75),
        ("alice", 2, 1, 1, 6, 2, "1.000000000", 75),
        ("bob", 1, 0, 0, 6, 0, "2.000000000", 75),
    ]
    for query, number in (
        ("label.user=bob", 1),
        ("label.user=bob&model=other", 0),
        ("label.user=bob&provider=anthropic", 1),
        ("label.user=alice&label.team=search", 2),
        ("label.user=alice&project_id=beta", 0),
        ("label.user=alice&token_id=alpha-1", 2),
    ):
        assert sum(one["requests"] for one in await report(any_api, f"{week}&{query}")) == number, query
    for groups in ("label.user,day", "project,label.user", "token,hour,label.user,provider,model,requested_model"):
        whole = await report(any_api, f"{week}&group_by={groups}", 500)
        assert sum(one["requests"] for one in whole) == 4
        assert await report(any_api, f"{week}&group_by={groups}", 1) == whole


async def test_sums_of_the_release_before_have_no_provider_and_are_unpriced(
    any_api: Api, projects: dict[str, Any]
) -> None:
    token = projects["alpha-1"]
    await settled(any_api, row(token, requested_model=None, model="old", cost_nanousd=None))
    (shown,) = await report(any_api, "group_by=provider,model,requested_model")
    assert shown == ZERO | {
        "provider": None,
        "model": "old",
        "requested_model": None,
        "requests": 1,
        "input_tokens": 3,
        "output_tokens": 4,
        "unpriced": 1,
        "p50_ms": 75,
        "p95_ms": 98,
    }
    assert len(await report(any_api, "model=old")) == 1


async def test_a_table_has_the_groups_and_the_sums(any_api: Api, projects: dict[str, Any]) -> None:
    await settled(any_api, row(projects["alpha-1"], summed_labels={"team": "=a"}), row(projects["beta-1"]))
    reply = await any_api("GET", "/manage/usage?group_by=label.team,project", headers={"Accept": "text/csv"})
    title, *rows = csv.reader(io.StringIO(reply.data.decode()))
    assert title[:3] == ["label.team", "project", "project_id"]
    assert set(title[3:]) == set(ZERO)
    assert sorted((one[0], one[1]) for one in rows) == [("", "beta"), ("'=a", "alpha")]
    empty = await any_api("GET", "/manage/usage?group_by=day&to=2020-01-01", headers={"Accept": "text/csv"})
    assert len(empty.data.splitlines()) == 1


GROUPS = (
    "'group_by' must be a list of hour, day, month, project, token, provider, model, requested_model and label.KEY,"
    " each at most once, separated by commas"
)


@pytest.mark.parametrize(
    ("query", "description"),
    [
        ("group_by=", "'group_by' must be a list of hour, day, month, project, token, provider, model"),
        ("group_by=day,day", "'group_by' must be"),
        ("group_by=day,cost", f'{GROUPS}: "cost" is not one of them.'),
        ("group_by=label.", f'{GROUPS}: "label." is not one of them'),
        ("group_by=team,day", f'{GROUPS}: "team" is not one of them; did you mean label.team?'),
        ("group_by=modle", f'{GROUPS}: "modle" is not one of them; did you mean model?'),
        ("from=yesterday", "'from' must be a day such as 2030-01-31, or a time with its offset"),
        ("from=2027-01-15T12:00:00", "'from' must be a day"),
        ("from=0001-01-01", "'from' must be a day"),
        ("to=0001-01-01T00:00:00Z", "'to' must be a day"),
        ("to=9999-12-31T23:59:59Z", "'to' must be a day"),
        ("from=2027-01-15&to=2027-01-15", "'from' (2027-01-15T00:00:00+00:00) must be before 'to'"),
        ("label.a%20b=x", "'label.KEY' must be given as label.KEY=VALUE"),
        ("label.user=x", "'from' (2026-12-16T00:00:00+00:00) must be at most 7 days before 'to' (2027-01-15T12"),
        ("label.user=x&to=2027-01-01", NOT_SUMMED),
        ("group_by=label.user&from=2027-01-08T12:00:00Z", "'from' (2027-01-08T12:00:00+00:00) must be at most 7 days"),
        ("label.a=x&label.a=y", "'label.a' comes more than once"),
        ("cursor=e", "'cursor' must be"),
        ("group_by=hour&cursor=WyJ4Il0", "'cursor' must be"),
        ("group_by=day&cursor=WyI5OTk5LTEyLTMxIl0", "'cursor' must be"),
        ("group_by=hour&cursor=WyJ4IiwieSJd", "'cursor' must be"),
        ("team=x", "'team' is not a parameter of this request"),
    ],
)
async def test_a_wrong_query_is_refused_by_name(api: Api, query: str, description: str) -> None:
    reply = await api("GET", f"/manage/usage?{query}")
    assert (reply.status, reply.json["code"]) == (400, "invalid_query")
    assert reply.json["description"].startswith(description), reply.json["description"]


async def test_a_report_may_end_at_the_end_of_the_calendar(any_api: Api) -> None:
    assert await report(any_api, "group_by=month&from=9996-01-01&to=9998-12-31") == []


async def test_a_filter_that_is_empty_is_not_ignored(any_api: Api, projects: dict[str, Any]) -> None:
    await settled(any_api, row(projects["alpha-1"], model="m"))
    assert [len(await report(any_api, query)) for query in ("", "provider=", "model=")] == [1, 0, 0]


async def test_pages_end_at_any_text(any_api: Api, projects: dict[str, Any]) -> None:
    texts = ["ünï", "模型", "\U0001f600", "a"]
    rows = [row(projects["alpha-1"], model=text, summed_labels={"team": text}) for text in texts]
    await settled(any_api, *rows)
    found = await report(any_api, "group_by=label.team,model", limit=1)
    assert sorted(brief(found, "label.team", "model")) == sorted(zip(texts, texts, strict=True))


async def test_a_report_of_too_many_rows_is_refused_and_a_split_one_is_not(
    any_api: Api, projects: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(usage, "MAX_ROWS", 30)
    monkeypatch.setattr(usage, "ENOUGH_ROWS", 10)
    hours = [NOON - timedelta(hours=hour) for hour in range(50)]
    await settled(any_api, *(row(projects["alpha-1"], admitted_at=hour) for hour in hours))
    reply = await any_api("GET", "/manage/usage")
    assert reply.status == 400
    assert reply.json["description"].startswith("this report needs more than 30 rows from 2026-12-16T00:00:00+00:00")
    split = await report(any_api, "group_by=hour")
    assert [one["requests"] for one in split] == [1] * 50


async def test_objects_whose_usage_is_not_known_are_listed_from_the_oldest(
    any_api: Api, projects: dict[str, Any]
) -> None:
    made: list[ProviderObject] = []
    for name, usage_id in (("alpha-1", ""), ("beta-1", ""), ("alpha-1", new_id()), ("alpha-1", None), ("alpha-1", "")):
        token = projects[name]
        number = len(made)
        at = NOON - timedelta(hours=number // 2)
        whose = (token["project_id"], token["id"], f"00000000-0000-7000-8000-00000000000{number}", at)
        made.append(ProviderObject("openai", f"resp_{number}", "background_response", *whose, usage_id))
    await any_api.services.database.write(objects.record, made)

    async def listed(query: str) -> list[str]:
        found: list[str] = []
        cursor: str | None = ""
        while cursor is not None:
            reply = await any_api("GET", f"/manage/usage/unbooked?{query}{cursor and '&cursor='}{cursor}")
            assert reply.status == 200, reply.json
            found += [one["object_id"] for one in reply.json["data"]]
            cursor = reply.json["next_cursor"]
        return found

    assert await listed("") == ["resp_4", "resp_0", "resp_1"]
    assert await listed("limit=1") == ["resp_4", "resp_0", "resp_1"]
    assert await listed("project_id=beta") == ["resp_1"]
    reply = await any_api("GET", "/manage/usage/unbooked?project_id=beta")
    assert reply.json["data"][0] == {
        "provider": "openai",
        "object_id": "resp_1",
        "kind": "background_response",
        "project_id": projects["beta-1"]["project_id"],
        "token_id": projects["beta-1"]["id"],
        "request_id": "00000000-0000-7000-8000-000000000001",
        "created_at": reply.json["data"][0]["created_at"],
        "lost": False,
    }


async def test_an_object_is_lost_25_hours_after_it_was_made(any_api: Api, projects: dict[str, Any]) -> None:
    token = projects["alpha-1"]
    whose = (token["project_id"], token["id"])
    ages = {"resp_1": timedelta(hours=25), "resp_2": timedelta(hours=24, minutes=50)}
    made = [
        ProviderObject("openai", name, "background_response", *whose, new_id(), NOON - age, "")
        for name, age in ages.items()
    ]
    await any_api.services.database.write(objects.record, made)
    reply = await any_api("GET", "/manage/usage/unbooked")
    assert {one["object_id"]: one["lost"] for one in reply.json["data"]} == {"resp_1": True, "resp_2": False}
