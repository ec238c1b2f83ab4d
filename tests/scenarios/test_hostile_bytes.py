"""Three thousand mutated requests against the whole proxy, most of them with a token that opens it."""

from __future__ import annotations

import statistics
import time
from random import Random
from typing import TYPE_CHECKING, Any

import trio

from tests.databases.kinds import on
from tests.harness.deployment import Deployment, chat_body
from tests.harness.server import MANAGEMENT_TOKEN
from tests.scenarios import aftermath, ledger_checks
from tests.server.mutations import SEEDS, attack, mutated

if TYPE_CHECKING:
    from db.dsn.target import Target

REQUESTS = 3000
#: Waves of so many requests at most: on a busy machine most clients leave before their requests are read, so that one
#: wave may be too little to prove anything.
WAVES = 5
AT_ONCE = 16
SEED = 42
#: More than so many requests must be in the ledger.
ENOUGH = REQUESTS / 20
#: Seconds for which a client waits before it leaves: too short for an answer, just enough, or plenty.
WAITS = (0, 0.02, 0.15)
#: Good requests after a wave; the seconds that they may take (their median), and until all is as it was.
PROBES = 5
PROMPT = 0.1
CALM = 10.0

CHAT = b"/v1/chat/completions"


def credentials(data: bytes, secret: str) -> bytes:
    """Give a request to the bare server a token, or the management token where it goes there."""
    token = MANAGEMENT_TOKEN if b" /manage" in data else secret
    return data.replace(b"Host: a\r\n", f"Host: a\r\nAuthorization: Bearer {token}\r\n".encode())


def requests(secret: str) -> list[bytes]:
    """What is mutated: chat completions in every framing, and calls of the control plane."""
    json = b"Host: a\r\nContent-Type: application/json\r\nConnection: close\r\n"
    post, body = b"POST %b HTTP/1.1\r\n%b" % (CHAT, json), chat_body()
    streamed = b"Content-Length: %d\r\n\r\n%b" % (len(chat_body(stream=True)), chat_body(stream=True))
    chats = [
        post + b"Content-Length: %d\r\n\r\n%b" % (len(body), body),
        post + b"Transfer-Encoding: chunked\r\n\r\n%x\r\n%b\r\n0\r\n\r\n" % (len(body), body),
        post + streamed,
        post + b"x-scripted-gap: 0.01\r\n" + streamed,
        b"GET /v1/models?limit=3 HTTP/1.1\r\nHost: a\r\nx-scripted-delay: 0.01\r\n\r\n",
        b"GET /manage/tokens?limit=3 HTTP/1.1\r\nHost: a\r\n\r\n",
        b'POST /manage/projects HTTP/1.1\r\n%bContent-Length: 12\r\n\r\n{"name": ""}' % json,
    ]
    framed = [seed.replace(b" / HTTP", b" %b HTTP" % CHAT).replace(b" / ICE", b" %b ICE" % CHAT) for seed in SEEDS]
    return [credentials(data, secret) for data in [*framed[:9], *chats, *framed[9:]]]


async def attack_all(deployment: Deployment, secret: str, random: Random) -> None:
    wires = mutated(random, REQUESTS, requests(secret))

    async def attacker() -> None:
        for data in wires:
            await attack(deployment.server.port, data, random, WAITS)

    async with trio.open_nursery() as nursery:
        for _ in range(AT_ONCE):
            nursery.start_soon(attacker)


async def seconds_of_a_request(deployment: Deployment, secret: str) -> float:
    began = time.monotonic()
    answer = await deployment.chat(secret)
    took = time.monotonic() - began
    assert answer.status == 200
    return took


@on("sqlite")
def test_hostile_bytes_do_not_affect_other_clients(
    own_deployment: Deployment, migrated_env: dict[str, str], migrated_target: Target
) -> None:
    deployment, server = own_deployment, own_deployment.server
    token, good = deployment.new_token(), deployment.new_secret()
    trio.run(seconds_of_a_request, deployment, good)
    before = aftermath.at_rest(server, deployment.upstream)

    random, rows, took = Random(SEED), list[dict[str, Any]](), list[float]()
    for _ in range(WAVES):
        trio.run(attack_all, deployment, token["token"], random)

        assert server.process.running, server.output
        took += [trio.run(seconds_of_a_request, deployment, good) for _ in range(PROBES)]
        assert statistics.median(took[-PROBES:]) < PROMPT
        aftermath.assert_nothing_left(server, deployment.upstream, before, within=CALM)
        rows = [row for row in aftermath.every_row(server) if row["token_id"] == token["id"]]
        if len(rows) > ENOUGH:
            break

    found = aftermath.outcomes(rows)
    # Most are refused before they cost anything; the others must be enough to prove something.
    assert sum(found.values()) > ENOUGH
    assert found["ok", 200]
    # Never a fault of the proxy's own.
    assert {outcome for outcome, _ in found} <= {"ok", "rejected", "client_closed", "void"}
    counted = sum(row["outcome"] != "void" for row in rows)
    assert aftermath.counter(server, token["id"]) == counted
    # The provider never saw a request that is not in the ledger; it does not count incomplete requests.
    answered = sum(row["outcome"] in {"ok", "rejected"} for row in rows)
    assert answered <= deployment.upstream.counts()["requests"] - len(took) - 1 <= counted

    assert server.stop() == 0, server.output
    assert "in_flight" not in ledger_checks.outcomes(migrated_target)
    ledger_checks.verify(migrated_env)
    for word in ("Traceback", "unexpected failure", "a request failed inside the proxy", token["token"]):
        assert word not in server.output
