"""Sixty clients that disconnect all the time leave no resources, and the next clients are served at once."""

from __future__ import annotations

import time
from collections import Counter
from random import Random
from typing import TYPE_CHECKING, Any

import trio

from tests.databases.kinds import on
from tests.harness import client
from tests.harness.deployment import Deployment, chat_body, chat_headers
from tests.scenarios import aftermath, ledger_checks

if TYPE_CHECKING:
    from db.dsn.target import Target

CLIENTS = 60
SECONDS = 10.0
#: Storms at most: one may prove too little, because most clients of a busy machine leave before they are read.
STORMS = 4
#: Longest time that a client of the storm stays, in seconds.
SOON = 0.02
#: Requests after the storm, all at once, and the seconds that each may take beyond what it took before the storm twice.
CALM_REQUESTS = 40
PROMPT = 1.0
#: Seconds until nothing is left of the storm.
GONE = 2.0


async def disconnect(deployment: Deployment, secret: str, random: Random) -> None:
    """Send one request and disconnect soon after, with FIN or RST."""
    pace = random.choice([(), (("x-scripted-delay", "0.01"),), (("x-scripted-gap", "0.002"),)])
    try:
        async with client.connect(deployment.server.url) as connection:
            await connection.request(
                "POST", "/v1/chat/completions", chat_headers(secret, *pace), chat_body(stream=random.random() < 0.5)
            )
            with trio.move_on_after(random.uniform(0, SOON)):
                await connection.receive_all()
            if random.random() < 0.5:
                connection.reset()
    except (OSError, trio.BrokenResourceError):
        pass


async def storm(deployment: Deployment, secret: str, random: Random) -> int:
    """Return how many requests there were."""
    made = 0

    async def restless() -> None:
        nonlocal made
        while True:
            await disconnect(deployment, secret, random)
            made += 1

    with trio.move_on_after(SECONDS):
        async with trio.open_nursery() as nursery:
            for _ in range(CLIENTS):
                nursery.start_soon(restless)
    return made


def disconnected(found: Counter[tuple[str, int | None]]) -> int:
    """How many admitted requests ended because their client disconnected."""
    return found["client_closed", 200] + found["client_closed", None]


async def calm(deployment: Deployment, secret: str) -> list[tuple[client.Response, float]]:
    """Requests that stay, each with the seconds that it took."""
    answers: list[tuple[client.Response, float]] = []

    async def one() -> None:
        began = trio.current_time()
        answer = await deployment.chat(secret)
        answers.append((answer, trio.current_time() - began))

    async with trio.open_nursery() as nursery:
        for _ in range(CALM_REQUESTS):
            nursery.start_soon(one)
    return answers


@on("sqlite")
def test_a_storm_of_disconnects_leaves_no_resources(
    own_deployment: Deployment, migrated_env: dict[str, str], migrated_target: Target
) -> None:
    deployment, server, upstream = own_deployment, own_deployment.server, own_deployment.upstream
    token = deployment.new_token()
    usual = max(took for _, took in trio.run(calm, deployment, token["token"]))
    before = aftermath.at_rest(server, upstream)

    random, made, found = Random(7), 0, Counter[tuple[str, int | None]]()
    rows: list[dict[str, Any]] = []
    for _ in range(STORMS):
        made += trio.run(storm, deployment, token["token"], random)
        over = time.monotonic()
        upstream.wait(timeout=GONE, in_flight=0)
        answers = trio.run(calm, deployment, token["token"])
        aftermath.assert_nothing_left(server, upstream, before, within=GONE)
        assert time.monotonic() - over < GONE + 2 * usual + PROMPT + GONE

        assert [(answer.status, answer.complete) for answer, _ in answers] == [(200, True)] * CALM_REQUESTS
        assert max(took for _, took in answers) < 2 * usual + PROMPT

        rows = list(aftermath.every_row(server))
        found = aftermath.outcomes(rows)
        if made > CLIENTS * SECONDS and disconnected(found) > CLIENTS:
            break

    assert {outcome for outcome, _ in found} == {"ok", "client_closed", "void"}
    assert made > CLIENTS * SECONDS, "too little of a storm to prove anything"
    assert disconnected(found) > CLIENTS
    counted = sum(row["outcome"] != "void" for row in rows)
    assert aftermath.counter(server, token["id"]) == counted
    assert upstream.counts()["requests"] <= counted

    assert server.stop() == 0, server.output
    assert "in_flight" not in ledger_checks.outcomes(migrated_target)
    ledger_checks.verify(migrated_env)
    assert "Traceback" not in server.output
