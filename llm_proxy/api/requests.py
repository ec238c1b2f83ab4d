"""The ledger, as people look at it: requests that have ended, the newest first."""

from __future__ import annotations

from typing import Any, Final, get_args

from db.queries import requests as queries
from db.records import Outcome, SettledRequest
from llm_proxy.api import pages
from llm_proxy.api.fields import BOOLEAN, ID, MAX_SAFE_INTEGER, MOMENT, Field, credential, integer, one_of, text
from llm_proxy.api.operations import Answer, Call, Operation, Resource
from llm_proxy.errors import RequestNotFound

_COUNT: Final = integer(0, MAX_SAFE_INTEGER)
_OUTCOME: Final = one_of(get_args(Outcome))


def show(settled: SettledRequest) -> dict[str, Any]:
    """Show one row: there is no secret in it."""
    return settled.by_column()


async def _list(call: Call) -> Answer:
    query = call.query
    limit = query.get("limit", pages.DEFAULT_LIMIT)
    wanted = queries.Filter(query.get("project_id"), query.get("token_id"), query.get("outcome"))
    rows = await call.context.database.read(queries.page, limit + 1, query.get("cursor"), wanted)
    return Answer(pages.page(rows, limit, show, lambda row: pages.id_cursor(row.id)))


async def _get(call: Call) -> Answer:
    found = await call.context.database.read(queries.find, call.ids["request_id"])
    if found is None:
        raise RequestNotFound
    return Answer(show(found))


_FIELDS: Final = (
    Field("id", ID, "The request's id, as in the header X-LLM-Proxy-Request-ID.", required=True),
    Field("worker_id", ID, "The server process that it went through.", required=True),
    Field("token_id", ID, "The token that opened it.", required=True),
    Field("project_id", ID, "The token's project.", required=True),
    Field("provider", text(0, 64), "The provider that it went to.", required=True),
    Field("method", text(0, 64), "Its method.", required=True),
    Field("path", text(0, MAX_SAFE_INTEGER), "Its path, without the query.", required=True),
    Field("outcome", _OUTCOME, "How it ended.", required=True),
    Field("status", integer(100, 999), "The status that the client got.", required=True, nullable=True),
    Field("model", text(0, 255), "The model that the provider named; may be empty.", required=True),
    Field("streamed", BOOLEAN, "Whether the answer was an event stream.", required=True),
    Field("admitted_at", MOMENT, "When it was admitted.", required=True),
    Field("settled_at", MOMENT, "When it ended.", required=True),
    Field("first_byte_us", _COUNT, "Microseconds from admission to the first byte.", required=True, nullable=True),
    Field("duration_us", _COUNT, "Microseconds from admission to the end.", required=True, nullable=True),
    Field("request_bytes", _COUNT, "Length of its body.", required=True),
    Field("response_bytes", _COUNT, "Length of the answer's body, as far as it was passed on.", required=True),
    Field("input_tokens", _COUNT, "Tokens of the prompt.", required=True, nullable=True),
    Field("output_tokens", _COUNT, "Tokens of the answer.", required=True, nullable=True),
    Field("cached_tokens", _COUNT, "Tokens of the prompt from the provider's cache.", required=True, nullable=True),
    Field("unmetered", BOOLEAN, "Whether the answer may have reported usage that could not be read.", required=True),
    Field(
        "provider_request_id",
        text(0, 255),
        "The id that the provider gave the request, and that SDKs show.",
        required=True,
        nullable=True,
    ),
)

RESOURCE: Final = Resource(
    "Requests",
    (
        Operation(
            "GET",
            "/manage/requests",
            "listRequests",
            "List the requests that have ended, the newest first.",
            _list,
            "RequestPage",
            query=(
                *pages.BY_ID,
                Field("project_id", ID, "Only those of this project."),
                Field("token_id", ID, "Only those of this token."),
                Field("outcome", _OUTCOME, "Only those that ended like this."),
            ),
        ),
        Operation(
            "GET",
            "/manage/requests/{request_id}",
            "getRequest",
            "Show a request that has ended, by its own id or by the provider's: the newest, if several have that.",
            _get,
            "Request",
            missing=RequestNotFound,
            id_kind=credential(255),
        ),
    ),
    {"Request": _FIELDS},
)
