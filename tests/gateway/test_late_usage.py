"""Late usage, from the bytes of answers: background responses, runs and batches."""
# ruff: noqa: ASYNC110 (the test looks at the ledger from outside, where there is no event)

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import trio
from attrs import evolve
from sqlalchemy import select

from db.queries import objects
from db.schema import provider_objects, requests
from llm_proxy.gateway.providers.provider import Providers
from llm_proxy.gateway.routing import Routing
from llm_proxy.prices import Prices
from tests.gateway.stage import Client
from tests.gateway.test_isolation import Pair, Watching, answer, pair

USAGE = {"input_tokens": 500000, "output_tokens": 40000, "total_tokens": 540000}
RESPONSE = {"id": "resp_1", "object": "response", "background": True, "model": "o3-deep-research"}
RUN = {"id": "run_1", "object": "thread.run", "model": "gpt-5.4", "thread_id": "thread_1"}
RUN_USAGE = {"prompt_tokens": 500000, "completion_tokens": 40000, "total_tokens": 540000}
BATCH = {
    "id": "batch_1",
    "object": "batch",
    "model": "gpt-5.4",
    "request_counts": {"total": 60, "completed": 50, "failed": 10},
}
QUEUED = {**RESPONSE, "status": "queued", "usage": None}
DONE = {**RESPONSE, "status": "completed", "usage": USAGE}


def events(*documents: dict[str, Any]) -> bytes:
    content = b"".join(
        b"event: %b\ndata: %b\n\n" % (one["type"].encode(), json.dumps(one).encode()) for one in documents
    )
    return b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nContent-Length: %d\r\n\r\n%b" % (
        len(content),
        content,
    )


CREATED = {"type": "response.created", "sequence_number": 0, "response": {**RESPONSE, "status": "queued"}}
COMPLETED = {"type": "response.completed", "sequence_number": 9, "response": DONE}


async def ask(both: Pair, method: str, path: str, content: bytes, body: object = None) -> None:
    both.stage.provider.script = lambda _head, _body: content
    await both.ask(both.first, method, path, body or {} if method == "POST" else None)
    with trio.fail_after(5):
        while both.stage.ledger.busy:
            await trio.sleep(0.001)


async def booked(both: Pair) -> list[tuple[str, int, str]]:
    """Rows with usage: kind, input tokens, model."""
    found = requests.c
    query = select(found.kind, found.input_tokens, found.model).where(found.input_tokens.is_not(None))
    rows = await both.stage.database.read(lambda connection: connection.execute(query).all())
    return [tuple(row) for row in rows]


async def awaited(both: Pair) -> list[str]:
    found = provider_objects.c
    query = select(found.object_id).where(found.usage_id == "")
    return list(await both.stage.database.read(lambda connection: connection.scalars(query).all()))


LATE = [("late", 500000, "o3-deep-research")]


@pytest.mark.parametrize(
    ("method", "path", "content"),
    [
        ("GET", "/v1/responses/resp_1", answer(DONE)),
        ("GET", "/v1/responses/resp_1", answer({**DONE, "output": ["x" * 100_000]})),
        ("GET", "/v1/responses/resp_1", events(COMPLETED)),
        ("POST", "/v1/responses/resp_1/cancel", answer({**DONE, "status": "cancelled"})),
        ("GET", "/v1/responses/resp_1", answer({**DONE, "status": "incomplete"})),
    ],
)
async def test_the_first_final_answer_about_a_background_response_is_booked(
    tmp_path: Path, method: str, path: str, content: bytes
) -> None:
    async with pair(tmp_path) as both:
        await ask(both, "POST", "/v1/responses", answer(QUEUED))
        await ask(both, "GET", "/v1/responses/resp_1", answer({**QUEUED, "status": "in_progress"}))
        assert (await booked(both), await awaited(both)) == ([], ["resp_1"])
        for _ in range(2):
            await ask(both, method, path, content)
            assert (await booked(both), await awaited(both)) == (LATE, [])


async def test_a_late_row_is_found_at_the_time_of_the_request_that_saw_it(tmp_path: Path) -> None:
    """Lists and reports look for ids of about that time; the answer may have taken an hour."""
    async with pair(tmp_path) as both:
        await ask(both, "POST", "/v1/responses", answer(QUEUED))
        await ask(both, "GET", "/v1/responses/resp_1", answer(DONE))
        query = select(requests.c.id).where(requests.c.method == "GET")
        ids = list(await both.stage.database.read(lambda connection: connection.scalars(query).all()))
        # The first twelve digits are milliseconds.
        assert (len(set(ids)), len({key[:13] for key in ids})) == (2, 1)


async def test_a_background_stream_with_its_usage_is_booked_as_the_request_itself(tmp_path: Path) -> None:
    async with pair(tmp_path) as both:
        await ask(both, "POST", "/v1/responses", events(CREATED, COMPLETED))
        await ask(both, "GET", "/v1/responses/resp_1", answer(DONE))
        assert (await booked(both), await awaited(both)) == ([("request", 500000, "o3-deep-research")], [])


async def test_a_background_stream_that_ends_early_is_booked_by_the_stream_that_resumes_it(tmp_path: Path) -> None:
    async with pair(tmp_path) as both:
        await ask(both, "POST", "/v1/responses", events(CREATED))
        assert (await booked(both), await awaited(both)) == ([], ["resp_1"])
        await ask(both, "GET", "/v1/responses/resp_1", events(COMPLETED))
        assert (await booked(both), await awaited(both)) == (LATE, [])


async def test_a_response_that_ends_without_usage_is_not_awaited_any_more(tmp_path: Path) -> None:
    async with pair(tmp_path) as both:
        await ask(both, "POST", "/v1/responses", answer(QUEUED))
        await ask(both, "POST", "/v1/responses/resp_1/cancel", answer({**QUEUED, "status": "cancelled"}))
        assert (await booked(both), await awaited(both)) == ([], [])


@pytest.mark.parametrize("status", ["completed", "incomplete"])
async def test_a_response_that_is_complete_without_usage_is_booked_as_unpriced(tmp_path: Path, status: str) -> None:
    async with pair(tmp_path) as both:
        await ask(both, "POST", "/v1/responses", answer(QUEUED))
        for _ in range(2):
            await ask(both, "GET", "/v1/responses/resp_1", answer({**QUEUED, "status": status}))
        found = requests.c
        query = select(found.kind, found.usage_details, found.cost_nanousd).where(found.usage_details.is_not(None))
        rows = await both.stage.database.read(lambda connection: connection.execute(query).all())
        assert ([tuple(row) for row in rows], await awaited(both)) == ([("late", {}, None)], [])


CUT_OFF = json.dumps({**RESPONSE, "status": "completed", "output": ["x" * 100_000], "usage": USAGE})


@pytest.mark.parametrize("length", [120, 20_000, 90_000])
@pytest.mark.parametrize(
    "framing",
    ["Content-Length: {0}\r\n\r\n{1}", "Transfer-Encoding: chunked\r\n\r\n{0:x}\r\n{1}\r\nno length\r\n"],
    ids=["ended", "broken"],
)
async def test_nothing_is_booked_of_an_answer_that_is_cut_off(tmp_path: Path, framing: str, length: int) -> None:
    cut_off = "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n" + framing.format(length, CUT_OFF[:length])
    async with pair(tmp_path) as both:
        await ask(both, "POST", "/v1/responses", answer(QUEUED))
        await ask(both, "GET", "/v1/responses/resp_1", cut_off.encode())
        assert (await booked(both), await awaited(both)) == ([], ["resp_1"])
        await ask(both, "GET", "/v1/responses/resp_1", answer(DONE))
        assert (await booked(both), await awaited(both)) == (LATE, [])


async def test_results_are_read_whole_if_the_client_is_gone_before_the_last_piece(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def send(client: Client, message: dict[str, Any]) -> None:
        if not message.get("more_body", True):
            raise BrokenPipeError("the client has left")
        await Client.send(client, message)

    async with pair(tmp_path) as both:
        await ask(both, "POST", "/v1/batches", answer({**BATCH, "status": "validating"}))
        await ask(both, "GET", "/v1/batches/batch_1", answer({**BATCH, "status": "completed", "output_file_id": "f-9"}))
        monkeypatch.setattr(Watching, "send", send)
        await ask(both, "GET", "/v1/files/f-9/content", lines(*[output("gpt-5.4", 5)] * 1000))
        assert (await booked(both), await awaited(both)) == ([("late", 5000, "gpt-5.4")], [])


async def test_a_response_with_its_usage_is_not_booked_again(tmp_path: Path) -> None:
    async with pair(tmp_path) as both:
        done = answer({**DONE, "background": False})
        await ask(both, "POST", "/v1/responses", done)
        await ask(both, "GET", "/v1/responses/resp_1", done)
        assert await booked(both) == [("request", 500000, "o3-deep-research")]


async def test_a_run_is_booked_when_it_is_complete_and_not_by_a_change_of_its_metadata(tmp_path: Path) -> None:
    async with pair(tmp_path) as both:
        await both.own(both.first, "thread_1")
        run, done = "/v1/threads/thread_1/runs/run_1", answer({**RUN, "status": "completed", "usage": RUN_USAGE})
        await ask(both, "POST", "/v1/threads/thread_1/runs", answer({**RUN, "status": "queued", "usage": None}))
        await ask(both, "POST", run, done)
        assert (await booked(both), await awaited(both)) == ([], ["run_1"])
        await ask(both, "GET", run, done)
        await ask(both, "GET", run, done)
        assert (await booked(both), await awaited(both)) == ([("late", 500000, "gpt-5.4")], [])


async def test_a_run_that_stops_for_its_tools_has_the_usage_of_the_stream_that_goes_on(tmp_path: Path) -> None:
    async with pair(tmp_path) as both:
        await both.own(both.first, "thread_1")
        step = {"type": "x", "object": "thread.run.step", "status": "completed", "usage": RUN_USAGE}
        created = {"type": "x", **RUN, "status": "queued", "usage": None}
        await ask(both, "POST", "/v1/threads/thread_1/runs", events(created, step))
        assert (await booked(both), await awaited(both)) == ([], ["run_1"])
        path = "/v1/threads/thread_1/runs/run_1/submit_tool_outputs"
        await ask(both, "POST", path, events({"type": "x", **RUN, "status": "completed", "usage": RUN_USAGE}))
        assert (await booked(both), await awaited(both)) == ([("late", 500000, "gpt-5.4")], [])


async def test_a_batch_is_booked_with_the_usage_of_its_object_and_its_tier(tmp_path: Path) -> None:
    async with pair(tmp_path) as both:
        both.stage.relay.prices = Prices.load(None, {"openai": "https://api.openai.com"})
        await ask(both, "POST", "/v1/batches", answer({**BATCH, "status": "validating"}))
        await ask(both, "GET", "/v1/batches/batch_1", answer({**BATCH, "status": "in_progress", "usage": USAGE}))
        await ask(both, "GET", "/v1/batches/batch_1", answer({**BATCH, "status": "completed"}))
        assert (await booked(both), await awaited(both)) == ([], ["batch_1"])
        await ask(both, "GET", "/v1/batches/batch_1", answer({**BATCH, "status": "completed", "usage": USAGE}))
        assert (await booked(both), await awaited(both)) == ([("late", 500000, "gpt-5.4")], [])
        query = select(requests.c.service_tier, requests.c.cost_nanousd).where(requests.c.kind == "late")
        rows = await both.stage.database.read(lambda connection: connection.execute(query).all())
        # 50 requests with 10,000 tokens each, so not the rates of long prompts: 500,000 x 1.25 + 40,000 x 7.50
        assert [tuple(row) for row in rows] == [("batch", 925_000_000)]


async def test_a_batch_that_counts_nothing_is_awaited_until_its_output_is_read(tmp_path: Path) -> None:
    nothing = {"input_tokens": 0, "output_tokens": 0, "total_tokens": 0}
    async with pair(tmp_path) as both:
        await ask(both, "POST", "/v1/batches", answer({**BATCH, "status": "validating"}))
        await ask(both, "GET", "/v1/batches/batch_1", answer({**BATCH, "status": "completed", "usage": nothing}))
        assert (await booked(both), await awaited(both)) == ([], ["batch_1"])


async def test_a_poll_has_the_price_of_the_model_that_was_asked_for(tmp_path: Path) -> None:
    (tmp_path / "prices.yaml").write_text("prices: {openai: {my-model: {input: 1, output: 2}}}")
    async with pair(tmp_path) as both:
        both.stage.relay.prices = Prices.load(tmp_path / "prices.yaml", {"openai": "https://api.openai.com"})
        await ask(both, "POST", "/v1/responses", answer(QUEUED), {"model": "my-model", "background": True})
        await ask(both, "GET", "/v1/responses/resp_1", answer(DONE))
        query = select(requests.c.cost_nanousd).where(requests.c.kind == "late")
        rows = await both.stage.database.read(lambda connection: list(connection.scalars(query)))
        assert rows == [1000 * USAGE["input_tokens"] + 2000 * USAGE["output_tokens"]]


async def test_requests_of_a_batch_have_the_price_of_their_own_models(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "prices.yaml").write_text("prices: {openai: {first: {service_tier: batch, input: 1, output: 2}}}")
    monkeypatch.setattr(objects, "find_requested_model", lambda *_: "first")
    async with pair(tmp_path) as both:
        both.stage.relay.prices = Prices.load(tmp_path / "prices.yaml", {"openai": "https://api.openai.com"})
        await ask(both, "POST", "/v1/batches", answer({**BATCH, "status": "validating"}))
        await ask(both, "GET", "/v1/batches/batch_1", answer({**BATCH, "status": "completed", "usage": USAGE}))
        query = select(requests.c.cost_nanousd).where(requests.c.kind == "late")
        assert await both.stage.database.read(lambda connection: list(connection.scalars(query))) == [925_000_000]


async def test_a_batch_that_failed_has_no_usage(tmp_path: Path) -> None:
    async with pair(tmp_path) as both:
        await ask(both, "POST", "/v1/batches", answer({**BATCH, "status": "validating"}))
        await ask(both, "GET", "/v1/batches/batch_1", answer({**BATCH, "status": "failed"}))
        assert (await booked(both), await awaited(both)) == ([], [])


def allow_all(both: Pair) -> None:
    """Let the provider stand for Mistral and xAI too."""
    relay = both.stage.relay
    by_name = dict(relay.routing.providers.by_name)
    provider = by_name["openai"]
    others = ("/v1/batch/jobs", "/v1/batch/jobs/{id}", "/v1/chat/deferred-completion/{id}")
    by_name["openai"] = evolve(provider, allowed_endpoints=provider.allowed_endpoints + others)
    relay.routing = Routing(Providers(by_name, by_name["openai"]), relay.routing.upstreams)


def lines(*documents: dict[str, Any], status: str = "200 OK") -> bytes:
    content = b"".join(json.dumps(one).encode() + b"\n" for one in documents)
    head = f"HTTP/1.1 {status}\r\nContent-Type: application/octet-stream\r\nContent-Length: {len(content)}\r\n\r\n"
    return head.encode() + content


def output(model: str, tokens: int) -> dict[str, Any]:
    usage = {"prompt_tokens": tokens, "completion_tokens": 1, "total_tokens": tokens + 1}
    body = {"object": "chat.completion", "model": model, "usage": usage, "service_tier": "default"}
    return {"id": "batch_req_1", "custom_id": "a", "response": {"status_code": 200, "body": body}, "error": None}


def result(model: str, tokens: int) -> dict[str, Any]:
    message = {"type": "message", "model": model, "usage": {"input_tokens": tokens, "output_tokens": 1}}
    return {"custom_id": "a", "result": {"type": "succeeded", "message": message}}


FAILED = {"custom_id": "b", "response": {"status_code": 400, "body": {"error": {"message": "x"}}}, "error": None}
ERRORED = {"custom_id": "b", "result": {"type": "errored", "error": {"type": "error"}}}


@pytest.mark.parametrize(
    ("made", "batch", "shown"),
    [
        (
            ("/v1/batches", {**BATCH, "status": "validating"}),
            "/v1/batches/batch_1",
            {**BATCH, "status": "completed", "output_file_id": "file-9"},
        ),
        (
            ("/v1/batches", {"job": {"id": "batch_1", "status": "VALIDATING"}}),
            "/v1/batches/batch_1",
            {"id": "batch_1", "status": "COMPLETED", "output_file_id": "file-9"},
        ),
        (
            ("/v1/batch/jobs", {"id": "batch_1", "object": "batch", "status": "QUEUED"}),
            "/v1/batch/jobs/batch_1",
            {"id": "batch_1", "object": "batch", "status": "SUCCESS", "output_file": "file-9"},
        ),
    ],
    ids=["OpenAI", "Together", "Mistral"],
)
async def test_the_output_of_a_batch_that_a_client_downloads_is_booked_once(
    tmp_path: Path, made: tuple[str, dict[str, Any]], batch: str, shown: dict[str, Any]
) -> None:
    async with pair(tmp_path) as both:
        allow_all(both)
        await ask(both, "POST", made[0], answer(made[1]))
        await ask(both, "GET", batch, answer(shown))
        assert (await booked(both), await awaited(both)) == ([], ["batch_1"])
        content = lines(output("gpt-5.4", 5), FAILED, output("gpt-5.4", 7))
        await ask(both, "GET", "/v1/files/file-9/content", lines(output("gpt-5.4", 5), status="206 Partial Content"))
        assert (await booked(both), await awaited(both)) == ([], ["batch_1"])
        for _ in range(2):
            await ask(both, "GET", "/v1/files/file-9/content", content)
            assert (await booked(both), await awaited(both)) == ([("late", 12, "gpt-5.4")], [])


async def test_another_file_with_the_form_of_an_output_is_not_booked(tmp_path: Path) -> None:
    async with pair(tmp_path) as both:
        await ask(both, "POST", "/v1/batches", answer({**BATCH, "status": "validating"}))
        await ask(both, "POST", "/v1/files", answer({"id": "file-8", "object": "file"}))
        await ask(both, "GET", "/v1/files/file-8/content", lines(output("gpt-5.4", 5)))
        assert (await booked(both), await awaited(both)) == ([], ["batch_1"])


@pytest.mark.parametrize(
    ("content", "rows"),
    [
        (lines(result("claude-a", 5), ERRORED, result("claude-b", 7)), [("late", 12, "claude-a")]),
        (lines(ERRORED), []),
    ],
)
async def test_the_results_of_a_message_batch_are_booked_once(
    tmp_path: Path, content: bytes, rows: list[tuple[str, int, str]]
) -> None:
    async with pair(tmp_path) as both:
        await ask(both, "POST", "/v1/messages/batches", answer({"id": "msgbatch_1", "type": "message_batch"}))
        assert await awaited(both) == ["msgbatch_1"]
        for _ in range(2):
            await ask(both, "GET", "/v1/messages/batches/msgbatch_1/results", content)
            assert (await booked(both), await awaited(both)) == (rows, [])


async def test_a_deferred_completion_is_booked_when_a_client_fetches_it(tmp_path: Path) -> None:
    done = {"id": "x", "object": "chat.completion", "model": "grok-4", "usage": RUN_USAGE}
    async with pair(tmp_path) as both:
        allow_all(both)
        both.stage.provider.script = lambda _head, _body: answer({"request_id": "req_1"})
        await both.ask(both.first, "POST", "/v1/chat/completions", {"deferred": True})
        while both.stage.ledger.busy:
            await trio.sleep(0.001)
        path = "/v1/chat/deferred-completion/req_1"
        await ask(both, "GET", path, b"HTTP/1.1 202 Accepted\r\nContent-Length: 0\r\n\r\n")
        assert (await booked(both), await awaited(both)) == ([], ["req_1"])
        for _ in range(2):
            await ask(both, "GET", path, answer(done))
            assert (await booked(both), await awaited(both)) == ([("late", 500000, "grok-4")], [])


async def test_a_completion_that_repeats_the_id_of_its_request_is_booked_at_once(tmp_path: Path) -> None:
    done = {"id": "x", "request_id": "req_1", "object": "chat.completion", "model": "glm", "usage": RUN_USAGE}
    async with pair(tmp_path) as both:
        both.stage.provider.script = lambda _head, _body: answer(done)
        await both.ask(both.first, "POST", "/v1/chat/completions", {"store": True})
        while both.stage.ledger.busy:
            await trio.sleep(0.001)
        assert (await booked(both), await awaited(both)) == ([("request", 500000, "glm")], [])
