"""A client closes as soon as it has the last event of its stream, and the provider ends the body 10 ms later.

That is what SDKs do: they read no further than `data: [DONE]`. Nothing was missed, so every request is `ok`, with its
usage, and the provider's connection is used again.
"""

from __future__ import annotations

import socketserver
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.databases.kinds import Kind
from tests.databases.scratch import Databases
from tests.harness import client
from tests.harness.deployment import UPSTREAM_KEY, chat_body, chat_headers
from tests.harness.server import Server, running_server
from tests.scenarios import aftermath, ledger_checks

TIMES = 10
EVENTS = (
    b'data: {"model":"m","choices":[],"usage":{"prompt_tokens":7,"completion_tokens":3}}\n\n',
    b"data: [DONE]\n\n",
)


class Provider(socketserver.StreamRequestHandler):
    """Streams the events, and ends the body a little later."""

    connections = 0

    def handle(self) -> None:
        type(self).connections += 1
        while self.rfile.readline():
            length = 0
            while (line := self.rfile.readline()) not in (b"\r\n", b""):
                if line.lower().startswith(b"content-length:"):
                    length = int(line.partition(b":")[2])
            self.rfile.read(length)
            self.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n")
            self.wfile.write(b"Transfer-Encoding: chunked\r\n\r\n")
            for event in EVENTS:
                self.wfile.write(b"%x\r\n%b\r\n" % (len(event), event))
            time.sleep(0.01)
            self.wfile.write(b"0\r\n\r\n")


@contextmanager
def provider() -> Iterator[str]:
    Provider.connections = 0
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Provider) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


@pytest.fixture(scope="module")
def server(databases: Databases) -> Iterator[Server]:
    with provider() as url, databases.migrated(Kind.SQLITE) as scratch:
        with running_server(scratch.env, {"OPENAI_API_URL": url}) as server:
            yield server
            assert server.stop() == 0, server.output
        ledger_checks.verify(scratch.env)


@pytest.mark.parametrize("leave", ["close", "reset"])
async def test_client_that_closes_after_the_last_event_has_outcome_ok(server: Server, leave: str) -> None:
    project = server.manage("POST", "/projects", {"name": leave, "api_key": UPSTREAM_KEY})
    token = server.manage("POST", "/tokens", {"project_id": project["id"]})
    before = Provider.connections
    for number in range(1, TIMES + 1):
        async with client.connect(server.url) as connection:
            body = chat_body(stream=True)
            await connection.request("POST", "/v1/chat/completions", chat_headers(token["token"]), body)
            received = b""
            while b"[DONE]\n\n" not in received:
                received += await connection.receive()
            if leave == "reset":
                connection.reset()
        aftermath.settled(server, token["id"], number)
    rows = aftermath.settled(server, token["id"], TIMES)
    assert {(row["outcome"], row["input_tokens"], row["output_tokens"]) for row in rows} == {("ok", 7, 3)}
    assert Provider.connections - before <= 1, "connections were not used again"
