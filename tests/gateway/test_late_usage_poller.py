"""The poller of late usage, against a provider with a script."""
# ruff: noqa: ASYNC110 (the test looks at the ledger from outside, where there is no event)

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import trio
from attrs import define, field
from sqlalchemy import select, update

from db.queries import ledger as queries
from db.schema import credentials, provider_objects, requests
from llm_proxy.gateway.late_usage import LateUsagePoller
from llm_proxy.gateway.usage.results import KEPT
from llm_proxy.identifiers import new_id
from llm_proxy.ledger.late import LOST_AFTER
from llm_proxy.prices import Prices
from tests.gateway.test_isolation import Pair, answer, pair
from tests.gateway.test_late_usage import (
    BATCH,
    DONE,
    ERRORED,
    LATE,
    QUEUED,
    RUN,
    RUN_USAGE,
    USAGE,
    allow_all,
    ask,
    awaited,
    booked,
    lines,
    output,
    result,
)

NOT_FOUND = answer({"error": {"message": "sk-secret"}}, 404)


@define
class Asked:
    """A poller, and what the provider was asked by it."""

    both: Pair
    poller: LateUsagePoller
    answers: dict[str, bytes] = field(factory=dict)
    heads: list[str] = field(factory=list)

    @property
    def paths(self) -> list[str]:
        return [head.split(" ")[1] for head in self.heads]

    def script(self, head: bytes, _body: bytes) -> bytes:
        self.heads.append(head.decode())
        return self.answers.get(self.paths[-1], NOT_FOUND)

    async def poll(self, **answers: bytes) -> tuple[list[tuple[str, int, str]], list[str]]:
        """One pass; then the rows with usage, and the objects whose usage is to come."""
        self.heads.clear()
        self.both.stage.provider.script = self.script
        with trio.fail_after(20):
            await self.poller.ask_all()
        return await booked(self.both), await awaited(self.both)

    def count(self, result: str) -> int:
        text = self.both.stage.relay.metrics.render()[0].decode()
        (line,) = (
            one for one in text.splitlines() if one.startswith(f'llm_proxy_late_usage_total{{result="{result}"}}')
        )
        return int(float(line.split(" ")[1]))


@asynccontextmanager
async def asked(folder: Path, interval: float = 0) -> AsyncIterator[Asked]:
    async with pair(folder) as both:
        allow_all(both)
        both.stage.relay.prices = Prices.load(None, {"openai": "https://api.openai.com"})
        worker = both.stage.ledger._worker.id
        poller = LateUsagePoller(
            both.stage.database, both.stage.relay, worker, interval=interval, dead_after=timedelta(minutes=1)
        )
        yield Asked(both, poller)


async def make_older(both: Pair, age: timedelta) -> None:
    made = datetime.now(UTC) - age
    await both.stage.database.write(
        lambda connection: connection.execute(update(provider_objects).values(created_at=made))
    )


async def test_a_background_response_that_nobody_polls_is_booked_when_it_is_complete(tmp_path: Path) -> None:
    async with asked(tmp_path) as one:
        await ask(one.both, "POST", "/v1/responses", answer(QUEUED))
        one.answers["/v1/responses/resp_1"] = answer({**QUEUED, "status": "in_progress"})
        assert await one.poll() == ([], ["resp_1"])
        one.answers["/v1/responses/resp_1"] = answer({**DONE, "output": ["x" * 100_000]})
        assert await one.poll() == (LATE, [])
        assert "authorization: bearer the-real-key" in one.heads[0].lower()
        assert await one.poll() == (LATE, [])
        assert (one.paths, one.count("booked"), one.count("failed")) == ([], 1, 0)
        found = requests.c
        query = select(found.token_id, found.worker_id, found.path, found.cost_basis).where(found.kind == "late")
        row, made = await one.both.stage.database.read(
            lambda connection: (
                connection.execute(query).one(),
                connection.execute(select(provider_objects.c.token_id)).scalar(),
            )
        )
        assert tuple(row) == (made, one.poller._worker_id, "/v1/responses/resp_1", "price")
        assert await one.both.stage.database.read(queries.verify) == []


async def test_a_response_that_is_complete_without_usage_is_booked_as_unpriced(tmp_path: Path) -> None:
    async with asked(tmp_path) as one:
        await ask(one.both, "POST", "/v1/responses", answer(QUEUED))
        one.answers["/v1/responses/resp_1"] = answer({**QUEUED, "status": "completed"})
        assert await one.poll() == ([], [])
        found = requests.c
        query = select(found.usage_details, found.cost_nanousd).where(found.kind == "late")
        row = await one.both.stage.database.read(lambda connection: connection.execute(query).one())
        assert tuple(row) == ({}, None)


async def test_a_run_is_asked_for_in_its_thread_with_the_header_of_its_api(tmp_path: Path) -> None:
    async with asked(tmp_path) as one:
        run = {**RUN, "status": "queued", "usage": None}
        await ask(one.both, "POST", "/v1/threads/runs", answer(run))
        path = "/v1/threads/thread_1/runs/run_1"
        one.answers[path] = answer({**RUN, "status": "completed", "usage": RUN_USAGE})
        assert await one.poll() == ([("late", 500000, "gpt-5.4")], [])
        assert one.paths == [path]
        assert "openai-beta: assistants=v2" in one.heads[0].lower()


async def test_a_run_in_a_thread_that_was_there_before_is_asked_for(tmp_path: Path) -> None:
    async with asked(tmp_path) as one:
        await one.both.own(one.both.first, "thread_1")
        await ask(one.both, "POST", "/v1/threads/thread_1/runs", answer({**RUN, "status": "queued", "usage": None}))
        one.answers["/v1/threads/thread_1/runs/run_1"] = answer({**RUN, "status": "expired", "usage": RUN_USAGE})
        assert await one.poll() == ([("late", 500000, "gpt-5.4")], [])


async def test_a_batch_with_usage_is_booked_by_its_description(tmp_path: Path) -> None:
    async with asked(tmp_path) as one:
        await ask(one.both, "POST", "/v1/batches", answer({**BATCH, "status": "validating"}))
        one.answers["/v1/batches/batch_1"] = answer({**BATCH, "status": "in_progress", "usage": USAGE})
        assert await one.poll() == ([], ["batch_1"])
        one.answers["/v1/batches/batch_1"] = answer(
            {**BATCH, "status": "completed", "usage": USAGE, "output_file_id": "file-9"}
        )
        assert await one.poll() == ([("late", 500000, "gpt-5.4")], [])
        assert one.paths == ["/v1/batches/batch_1"]


@pytest.mark.parametrize(
    ("path", "ended"),
    [
        ("/v1/batches", {**BATCH, "status": "completed", "output_file_id": "file-9"}),
        ("/v1/batches", {**BATCH, "status": "expired", "output_file_id": "file-9"}),
        ("/v1/batches", {"id": "batch_1", "status": "COMPLETED", "output_file_id": "file-9"}),
        ("/v1/batch/jobs", {"id": "batch_1", "object": "batch", "status": "SUCCESS", "output_file": "file-9"}),
    ],
)
async def test_the_results_of_a_batch_without_usage_are_read(tmp_path: Path, path: str, ended: dict[str, Any]) -> None:
    async with asked(tmp_path) as one:
        await ask(one.both, "POST", path, answer({**BATCH, "status": "validating"}))
        one.answers[f"{path}/batch_1"] = answer(ended)
        long = output("gpt-5.4", 7)
        long["response"]["body"]["choices"] = ["x" * 100_000]
        one.answers["/v1/files/file-9/content"] = lines(output("gpt-5.4", 5), *[long] * 20)
        assert await one.poll() == ([("late", 145, "gpt-5.4")], [])
        assert one.paths == [f"{path}/batch_1", "/v1/files/file-9/content"]


async def test_a_batch_that_failed_or_has_no_results_is_not_awaited_any_more(tmp_path: Path) -> None:
    async with asked(tmp_path) as one:
        await ask(one.both, "POST", "/v1/batches", answer({**BATCH, "status": "validating"}))
        one.answers["/v1/batches/batch_1"] = answer({**BATCH, "status": "failed"})
        assert await one.poll() == ([], [])
        assert (one.count("booked"), one.count("failed")) == (0, 0)


@pytest.mark.parametrize(
    ("results", "rows"),
    [
        (lines(result("claude-a", 5), ERRORED, result("claude-b", 7)), [("late", 12, "claude-a")]),
        (lines(ERRORED), []),
    ],
)
async def test_the_results_of_a_message_batch_are_read_when_it_has_ended(
    tmp_path: Path, results: bytes, rows: list[tuple[str, int, str]]
) -> None:
    async with asked(tmp_path) as one:
        made = {"id": "msgbatch_1", "type": "message_batch"}
        await ask(one.both, "POST", "/anthropic/v1/messages/batches", answer(made))
        path = "/v1/messages/batches/msgbatch_1"
        one.answers[path] = answer({**made, "processing_status": "in_progress"})
        assert await one.poll() == ([], ["msgbatch_1"])
        assert one.paths == [path]
        one.answers[path] = answer({**made, "processing_status": "ended"})
        one.answers[f"{path}/results"] = results
        assert await one.poll() == (rows, [])
        assert all("anthropic-version: 2023-06-01" in head.lower() for head in one.heads)
        assert all("x-api-key: the-real-key" in head.lower() for head in one.heads)


async def test_results_with_a_line_that_is_too_long_are_a_failure(tmp_path: Path) -> None:
    async with asked(tmp_path) as one:
        await ask(one.both, "POST", "/v1/batches", answer({**BATCH, "status": "validating"}))
        one.answers["/v1/batches/batch_1"] = answer({**BATCH, "status": "completed", "output_file_id": "file-9"})
        long = output("gpt-5.4", 7)
        long["response"]["body"]["choices"] = ["x" * (KEPT + 1)]
        one.answers["/v1/files/file-9/content"] = lines(output("gpt-5.4", 5), long)
        assert await one.poll() == ([], ["batch_1"])
        assert one.count("failed") == 1


async def test_a_deferred_completion_is_never_asked_for(tmp_path: Path) -> None:
    async with asked(tmp_path) as one:
        one.both.stage.provider.script = lambda _head, _body: answer({"request_id": "req_1"})
        await one.both.ask(one.both.first, "POST", "/v1/chat/completions", {"deferred": True})
        while one.both.stage.ledger.busy:
            await trio.sleep(0.001)
        assert await one.poll() == ([], ["req_1"])
        assert one.heads == []


async def test_a_failure_is_logged_once_without_the_text_of_the_provider(tmp_path: Path) -> None:
    async with asked(tmp_path) as one:
        await ask(one.both, "POST", "/v1/responses", answer(QUEUED))
        for _ in range(3):
            assert await one.poll() == ([], ["resp_1"])
            assert one.paths == ["/v1/responses/resp_1"]
        assert one.count("failed") == 1
        logged = [json.loads(line) for line in (tmp_path / "log").read_text().splitlines()]
        (failure,) = (line for line in logged if line.get("object_id") == "resp_1")
        assert failure["reason"] == "the provider answered 404"
        assert not any(secret in (tmp_path / "log").read_text() for secret in ("sk-secret", "the-real-key"))


async def test_an_object_is_asked_for_less_and_less_often(tmp_path: Path) -> None:
    async with asked(tmp_path, interval=1000) as one:
        await ask(one.both, "POST", "/v1/responses", answer(QUEUED))
        await one.poll()
        assert len(one.heads) == 1
        await one.poll()
        assert one.heads == []
        (waiting,) = one.poller._waiting.values()
        waits = []
        for _ in range(3):
            waiting.due = 0
            await one.poll()
            waits.append(waiting.wait)
        assert waits == [3600, 3600, 3600]


async def test_an_object_is_lost_after_its_deadline_and_is_counted_once(tmp_path: Path) -> None:
    async with asked(tmp_path) as one:
        await ask(one.both, "POST", "/v1/responses", answer(QUEUED))
        await one.poller._count_lost()
        await make_older(one.both, LOST_AFTER)
        for _ in range(2):
            assert await one.poll() == ([], ["resp_1"])
            await one.poller._count_lost()
            assert (one.heads, one.count("lost")) == ([], 1)


async def test_a_client_and_the_poller_that_see_the_usage_at_once_book_it_once(tmp_path: Path) -> None:
    async with asked(tmp_path) as one:
        await ask(one.both, "POST", "/v1/responses", answer(QUEUED))
        one.answers["/v1/responses/resp_1"] = answer(DONE)
        one.both.stage.provider.script = one.script
        async with trio.open_nursery() as nursery:
            nursery.start_soon(one.poller.ask_all)
            nursery.start_soon(one.both.ask, one.both.first, "GET", "/v1/responses/resp_1")
        while one.both.stage.ledger.busy:
            await trio.sleep(0.001)
        assert (await booked(one.both), await awaited(one.both), one.count("booked")) == (LATE, [], 1)


async def test_usage_that_a_client_sees_is_counted_and_logged_too(tmp_path: Path) -> None:
    async with asked(tmp_path) as one:
        await ask(one.both, "POST", "/v1/responses", answer(QUEUED))
        for _ in range(2):
            await ask(one.both, "GET", "/v1/responses/resp_1", answer(DONE))
        assert one.count("booked") == 1
        logged = [json.loads(line) for line in (tmp_path / "log").read_text().splitlines()]
        (line,) = (line for line in logged if line["event"] == "late usage was booked")
        assert (line["project_id"], line["input_tokens"]) == (one.both.first, 500000)


async def test_only_the_first_live_worker_asks(tmp_path: Path) -> None:
    async with asked(tmp_path, interval=0.001) as one:
        await ask(one.both, "POST", "/v1/responses", answer(QUEUED))
        one.answers["/v1/responses/resp_1"] = answer(DONE)
        one.both.stage.provider.script = one.script
        other = LateUsagePoller(
            one.both.stage.database, one.both.stage.relay, new_id(), interval=0.001, dead_after=timedelta(minutes=1)
        )
        async with trio.open_nursery() as nursery:
            nursery.start_soon(other.run)
            for _ in range(20):
                await one.both.stage.database.read(lambda connection: connection.execute(select(requests.c.id)).all())
            assert (one.heads, await booked(one.both)) == ([], [])
            nursery.start_soon(one.poller.run)
            with trio.fail_after(5):
                while not await booked(one.both):
                    await trio.sleep(0.001)
            nursery.cancel_scope.cancel()


async def test_a_key_that_is_not_active_is_not_used(tmp_path: Path) -> None:
    async with asked(tmp_path) as one:
        made = {"id": "msgbatch_1", "type": "message_batch"}
        await ask(one.both, "POST", "/anthropic/v1/messages/batches", answer(made))
        await one.both.stage.database.write(
            lambda connection: connection.execute(update(credentials).values(active=False))
        )
        assert await one.poll() == ([], ["msgbatch_1"])
        assert (one.heads, one.count("failed")) == ([], 1)
