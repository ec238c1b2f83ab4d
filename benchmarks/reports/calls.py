"""Calls of the management API with each documented filter and grouping, and what they read."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from datetime import timedelta
from http import HTTPStatus
from urllib.parse import urlencode

import trio
from attrs import Factory, define, frozen

from benchmarks.databases import Scratch
from benchmarks.reports.data import MODELS, RARE_MODEL, Known
from benchmarks.reports.reads import Reads, measure, recorded
from db.queries.usage import SERIES, SUBJECTS, TIMES
from tests.api.conftest import serve

_DAY = timedelta(days=1)
#: Pages of each list that are read.
_PAGES = 2


@frozen
class Case:
    """A call of the management API.

    Attributes:
        name: what is asked for, in few words; without the filter for usage.
    """

    name: str
    path: str
    query: Sequence[tuple[str, str]]
    filter: str = ""

    @property
    def title(self) -> str:
        """The name with the filter."""
        return f"{self.name}, {self.filter}" if self.filter else self.name


@define
class Answer:
    """What one call did.

    Attributes:
        refused: the description of the error; empty if there is an answer.
        reads: the most rows of one of its pages, and the scans of all.
        ms: of the slowest of its pages.
    """

    case: Case
    pages: int = 0
    refused: str = ""
    ms: float = 0.0
    reads: Reads = Factory(Reads)


def cases(known: Known) -> list[Case]:
    """Every documented filter and grouping, alone and in pairs that need different indexes."""
    return [*_of_requests(known), *_of_usage(known)]


def _time(known: Known, before: float, days: float = 1) -> list[tuple[str, str]]:
    since = known.until - before * _DAY
    return [("from", since.isoformat()), ("to", (since + days * _DAY).isoformat())]


def _of_requests(known: Known) -> Iterator[Case]:
    path = "/manage/requests"
    busy, gone, usual = ("project_id", known.busy), ("project_id", known.gone), ("token_id", known.usual)
    model, failed, month = ("model", MODELS[1]), ("outcome", "rejected"), _time(known, 31, 32)
    for name, query in (
        ("all", []),
        ("id", [("id", known.request)]),
        ("provider_request_id, failed", [("provider_request_id", known.provider_failed)]),
        ("provider_request_id, ok", [("provider_request_id", known.provider_ok)]),
        ("provider_request_id, unknown", [("provider_request_id", "req_none")]),
        ("project_id, 1/4 of all", [busy]),
        ("project_id, only old ones", [gone]),
        ("project_id, by name", [("project_id", "project 7")]),
        ("project_id, last four", [("project_id", "0007")]),
        ("token_id", [usual]),
        ("token_id, by name", [("token_id", "token 77")]),
        ("token_id, last four", [("token_id", "last")]),
        ("model", [model]),
        ("model, rare", [("model", RARE_MODEL)]),
        ("model, unknown", [("model", "none")]),
        ("status", [("status", "429")]),
        ("status, none", [("status", "418")]),
        ("outcome", [failed]),
        ("outcome, none", [("outcome", "unknown")]),
        ("from, to: a day", _time(known, 15)),
        ("from, to: a month", month),
        ("label", [("label.team", "team 3")]),
        ("label, not in LABEL_KEYS", [("label.feature", "feature 3")]),
        ("label, none", [("label.none", "x")]),
        ("project_id, model", [busy, ("model", RARE_MODEL)]),
        ("project_id (old), model", [gone, ("model", "none")]),
        ("project_id (old), status, a month", [gone, ("status", "418"), *month]),
        ("project_id, outcome", [busy, failed]),
        ("token_id, outcome", [usual, failed]),
        ("outcome, a day", [failed, *_time(known, 15)]),
        ("outcome, label", [failed, ("label.team", "team 3")]),
    ):
        yield Case(f"requests: {name}", path, query)


def _of_usage(known: Known) -> Iterator[Case]:
    path = "/manage/usage"
    filters = {
        "": [],
        "project_id": [("project_id", known.busy)],
        "project_id (old)": [("project_id", known.gone)],
        "token_id": [("token_id", known.token)],
        "model": [("model", MODELS[0])],
        "provider": [("provider", "openai")],
        "label": [("label.team", "team 3")],
        "90 days": _time(known, 90, 91),
        "6 hours": _time(known, 10, 0.25),
    }
    for group in ("", *TIMES, *SUBJECTS, *SERIES, "label.team", "project,model,day", "token,hour"):
        for name, query in filters.items():
            yield Case(f"usage by {group or 'nothing'}", path, [("group_by", group)] * bool(group) + query, name)
    by_feature = ("group_by", "label.feature")
    for name, query in (
        ("label not in LABEL_KEYS, 1 day", [by_feature, *_time(known, 15)]),
        ("project and label not in LABEL_KEYS, 7 days", [("group_by", "project,label.feature"), *_time(known, 15, 7)]),
        ("day and label not in LABEL_KEYS, 7 days", [("group_by", "day,label.feature"), *_time(known, 15, 7)]),
        ("hour, label not in LABEL_KEYS, 7 days", [("group_by", "hour,label.feature"), *_time(known, 15, 7)]),
        ("nothing, label not in LABEL_KEYS, token_id", [("label.feature", "feature 3"), ("token_id", known.token)]),
    ):
        week = [] if any(key == "from" for key, _ in query) else _time(known, 7, 7)
        yield Case(f"usage by {name}", path, [*query, *week])


def ask(scratch: Scratch, known: Known, asked: Iterable[Case]) -> list[Answer]:
    """Answer calls in this process, and run the statements of each page again to see what they read."""
    return trio.run(_ask, scratch, known, list(asked))


async def _ask(scratch: Scratch, known: Known, asked: list[Case]) -> list[Answer]:
    found = []
    async with serve(scratch.target, known.until) as api:
        for case in asked:
            answer = Answer(case)
            found.append(answer)
            cursor: str | None = ""
            for answer.pages in range(1, _PAGES + 1):
                query = urlencode([*case.query, *([("cursor", cursor)] if cursor else [])])
                began = time.perf_counter()
                with recorded() as statements:
                    reply = await api("GET", f"{case.path}?{query}")
                answer.ms = max(answer.ms, 1000 * (time.perf_counter() - began))
                reads = await api.services.database.read(measure, scratch.kind, statements)
                answer.reads.rows = max(answer.reads.rows, reads.rows)
                answer.reads.handler = max(answer.reads.handler, reads.handler)
                answer.reads.scanned |= reads.scanned
                if reply.status != HTTPStatus.OK:
                    answer.refused = reply.json["description"]
                cursor = reply.json.get("next_cursor")
                if cursor is None:
                    break
    return found
