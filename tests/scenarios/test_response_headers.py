"""Which headers of a response reach the client, from a provider that sends all that there are."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager
from functools import partial

import trio

from tests.databases.kinds import Kind
from tests.databases.scratch import Databases
from tests.harness import client
from tests.harness.deployment import UPSTREAM_KEY
from tests.harness.server import running_server

OURS = {"x-llm-proxy-request-id", "x-llm-proxy-overhead-ms"}
PLAIN = "plain"
STREAMED = "streamed"

#: A response with everything that must not go further, between what must.
_FIELDS = [
    ("X-First", "1"),
    ("X-Internal", "secret"),
    ("Set-Cookie", "a=1; Path=/"),
    ("Connection", "X-Internal, X-Absent"),
    ("x-b", "2"),
    ("Set-Cookie", "b=2"),
    ("Keep-Alive", "timeout=5"),
    ("X-B", "1"),
    ("Proxy-Authenticate", "Basic"),
    ("Proxy-Authentication-Info", "x"),
    ("Upgrade", "h2c"),
    ("TE", "trailers"),
    ("SERVER", "edge/1"),
    ("Alt-Svc", "clear"),
    ("X-Latin", "caf\xe9"),
    ("OpenAI-Organization", "org-1"),
    ("Anthropic-Workspace-Id", "wrkspc_1"),
    # A provider has no say in what the proxy says about itself.
    ("X-LLM-Proxy-Request-ID", "forged"),
    ("X-LLM-Proxy-Overhead-Ms", "0"),
    ("X-Empty", ""),
    ("X-Last", "."),
]
_CROSSING = [("x-first", "1"), ("x-b", "2"), ("x-b", "1"), ("x-latin", "caf\xe9"), ("x-empty", ""), ("x-last", ".")]
_BODY = bytes(range(256)) * 40


def response(shape: str) -> bytes:
    """A whole response with these fields and this body."""
    head = "".join(f"{name}: {value}\r\n" for name, value in _FIELDS)
    if shape == STREAMED:
        framing = "Trailer: X-Checksum\r\nTransfer-Encoding: chunked\r\n"
        body = b"%x\r\n%b\r\n0\r\nX-Checksum: 1\r\n\r\n" % (len(_BODY), _BODY)
    else:
        framing = f"Content-Length: {len(_BODY)}\r\n"
        body = _BODY
    return f"HTTP/1.1 203 Odd\r\n{head}{framing}\r\n".encode("latin-1") + body


@asynccontextmanager
async def provider_of(answers: dict[bytes, bytes]) -> AsyncIterator[str]:
    """A provider with an answer for each path."""

    async def handler(stream: trio.SocketStream) -> None:
        request = await stream.receive_some()
        await stream.send_all(answers[request.split(b" ")[1]])

    async with trio.open_nursery() as nursery:
        (listener,) = await nursery.start(partial(trio.serve_tcp, handler, 0, host="127.0.0.1"))
        yield f"http://127.0.0.1:{listener.socket.getsockname()[1]}"
        nursery.cancel_scope.cancel()


async def test_hop_by_hop_response_headers_are_stripped(databases: Databases) -> None:
    answers = {f"/v1/models/{shape}".encode(): response(shape) for shape in (PLAIN, STREAMED)}
    received: dict[str, client.Response] = {}
    async with provider_of(answers) as url:
        with ExitStack() as stack:
            scratch = stack.enter_context(databases.migrated(Kind.SQLITE))
            server = stack.enter_context(running_server(scratch.env, {"OPENAI_API_URL": url}))
            project = server.manage("POST", "/projects", {"name": "odd", "api_key": UPSTREAM_KEY})
            token = server.manage("POST", "/tokens", {"project_id": project["id"]})["token"]
            # One connection for both: what the provider says of its own is no business of ours.
            async with client.connect(server.url) as connection:
                for shape in (PLAIN, STREAMED):
                    await connection.request("GET", f"/v1/models/{shape}", [("Authorization", f"Bearer {token}")])
                    received[shape] = await connection.response()
            assert await server.stopped() == 0
    for answer in received.values():
        assert (answer.status, answer.body, answer.complete) == (203, _BODY, True)
        added = {*OURS, "x-request-id", "content-length", "transfer-encoding", "date"}
        assert [field for field in answer.headers if field[0] not in added] == _CROSSING
        for name in OURS:
            assert len([value for known, value in answer.headers if known == name]) == 1
        assert answer.header("x-llm-proxy-request-id") != "forged"
    assert received[PLAIN].header("content-length") == str(len(_BODY))
