"""The control endpoints, on the same port; they are not counted.

GET  /__counts                      the counts (see journal.Counts)
GET  /__requests[?since=NUMBER]     the kept requests after that number
POST /__reset                       forget the past
POST /__hold, /__release            let no answer begin until released
GET  /__wait?COUNT=N&timeout=S      the counts, once every named count has reached its number (`in_flight=0` and
                                    `connections_open=0`: fallen to it); 408 after the timeout (10 s)
"""

from __future__ import annotations

from http import HTTPStatus
from urllib.parse import parse_qsl

import attrs
import msgspec
import trio

from benchmarks.upstream.journal import Counts, Journal

PREFIX = b"/__"
_NAMES = {name.name for name in attrs.fields(Counts)} - {"statuses"}
_LOOK_EVERY = 0.002


def _counts(journal: Journal) -> dict[str, object]:
    return attrs.asdict(journal.counts)


def _reached(counts: dict[str, object], name: str, number: int) -> bool:
    value = counts[name]
    assert isinstance(value, int)  # noqa: S101 - the statuses cannot be named
    return value <= 0 if number == 0 else value >= number


async def _wait(journal: Journal, query: dict[str, str]) -> tuple[int, object]:
    deadline = float(query.pop("timeout", "10"))
    if unknown := set(query) - _NAMES:
        return 400, {"error": f"no such count: {', '.join(sorted(unknown))}"}
    wanted = {name: int(number) for name, number in query.items()}
    with trio.move_on_after(deadline):
        while True:
            counts = _counts(journal)
            if all(_reached(counts, name, number) for name, number in wanted.items()):
                return 200, counts
            await trio.sleep(_LOOK_EVERY)
    return 408, _counts(journal)


async def _answer(journal: Journal, method: str, target: bytes) -> tuple[int, object]:
    path, _, raw_query = target.decode("latin-1").partition("?")
    query = dict(parse_qsl(raw_query))
    match method, path:
        case "GET", "/__counts":
            return 200, _counts(journal)
        case "GET", "/__requests":
            return 200, journal.entries(int(query.get("since", "0")))
        case "GET", "/__wait":
            return await _wait(journal, query)
        case "POST", "/__reset":
            journal.reset()
        case "POST", "/__hold":
            journal.hold()
        case "POST", "/__release":
            journal.release()
        case _:
            return 404, {"error": "no such control endpoint"}
    return 200, _counts(journal)


async def control(journal: Journal, method: str, target: bytes) -> bytes:
    """Obey a control request and return the whole response."""
    try:
        status, value = await _answer(journal, method, target)
    except ValueError as error:
        status, value = 400, {"error": str(error)}
    body = msgspec.json.encode(value)
    head = b"HTTP/1.1 %d %b\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n"
    return head % (status, HTTPStatus(status).phrase.encode(), len(body)) + body
