"""Two projects on one credential: neither reaches, lists or names what the other has created at the provider."""

from __future__ import annotations

import gzip
import json
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio
from attrs import define, field
from sqlalchemy import select

from db.queries import credentials, objects
from db.records import Credential, ProviderObject
from db.schema import provider_objects
from llm_proxy.config import Settings
from llm_proxy.gateway.objects.table import TABLE
from llm_proxy.gateway.providers import provider_file
from llm_proxy.gateway.routing import Routing
from llm_proxy.identifiers import new_id
from llm_proxy.ledger import Ledger, isolation
from llm_proxy.ledger.isolation import Isolation
from llm_proxy.tokens import new_secret
from tests.db.queries.factories import NOON, a_credential
from tests.gateway.stage import Client, Scene, add_project, scene

OK, BAD_REQUEST, FORBIDDEN, NOT_FOUND = 200, 400, 403, 404

#: Bodies that name an object, `ID`, in each place that the APIs have for it, and the endpoints that take them.
NAMING = [
    ("/v1/chat/completions", {"messages": [{"content": [{"type": "file", "file": {"file_id": "ID"}}]}]}),
    ("/v1/chat/completions", {"messages": [{"role": "assistant", "audio": {"id": "ID"}}]}),
    ("/v1/responses", {"previous_response_id": "ID"}),
    ("/v1/responses", {"conversation": "ID"}),
    ("/v1/responses", {"conversation": {"id": "ID"}}),
    ("/v1/responses", {"input": [{"role": "user", "content": [{"type": "input_file", "file_id": "ID"}]}]}),
    ("/v1/responses", {"input": [{"type": "item_reference", "id": "ID"}]}),
    ("/v1/responses", {"input": [{"id": "ID"}]}),
    ("/v1/responses", {"input": [{"id": "ID", "type": None}]}),
    ("/v1/responses", {"input": [{"type": "reasoning", "id": "ID", "summary": []}]}),
    ("/v1/responses", {"tools": [{"type": "file_search", "vector_store_ids": ["other", "ID"]}]}),
    ("/v1/responses", {"tools": [{"type": "code_interpreter", "container": "ID"}]}),
    ("/v1/responses", {"tools": [{"container": {"type": "auto", "file_ids": ["ID"]}}]}),
    ("/v1/responses", {"input": [{"type": "item_reference", "id": "ID", "role": "user"}]}),
    ("/v1/responses", {"prompt": {"variables": {"input": {"type": "input_file", "file_id": "ID"}}}}),
    ("/v1/responses", {"prompt": {"variables": {"schema": {"type": "input_image", "file_id": "ID"}}}}),
    ("/v1/responses/compact", {"previous_response_id": "ID"}),
    ("/v1/responses/input_tokens", {"previous_response_id": "ID"}),
    ("/v1/conversations", {"items": [{"content": [{"file_id": "ID"}]}]}),
    ("/v1/conversations", {"tools": [{"type": "document_library", "library_ids": ["ID"]}]}),
    ("/v1/audio/transcriptions", {"model": "m", "file_id": "ID"}),
    ("/v1/images/edits", {"images": [{"file_id": "ID"}]}),
    ("/v1/videos", {"input_reference": {"file_id": "ID"}}),
    ("/v1/batches", {"input_file_id": "ID", "endpoint": "/v1/responses"}),
    ("/v1/fine_tuning/jobs", {"training_file": "ID", "model": "m"}),
    ("/v1/fine_tuning/jobs", {"validation_file": "ID", "model": "m"}),
    ("/v1/fine_tuning/jobs", {"validation_files": ["ID"], "model": "m"}),
    ("/v1/vector_stores", {"file_ids": ["ID"]}),
    ("/v1/containers", {"name": "c", "file_ids": ["ID"]}),
    ("/v1/assistants", {"tool_resources": {"code_interpreter": {"file_ids": ["ID"]}}}),
    ("/v1/threads", {"messages": [{"attachments": [{"file_id": "ID"}]}]}),
    ("/v1/threads/runs", {"assistant_id": "ID"}),
    ("/anthropic/v1/messages", {"messages": [{"content": [{"source": {"type": "file", "file_id": "ID"}}]}]}),
    ("/anthropic/v1/messages", {"container": "ID"}),
    ("/anthropic/v1/messages", {"container": {"id": "ID"}}),
    ("/anthropic/v1/messages", {"container": {"skills": [{"type": "custom", "skill_id": "ID"}]}}),
    ("/anthropic/v1/messages/count_tokens", {"messages": [{"content": [{"source": {"file_id": "ID"}}]}]}),
    (
        "/gemini/v1beta/models/m:generateContent",
        {
            "contents": [
                {"parts": [{"fileData": {"fileUri": "https://generativelanguage.googleapis.com/v1beta/files/ID"}}]}
            ]
        },
    ),
    ("/gemini/v1/models/m:generateContent", {"contents": [{"parts": [{"file_data": {"file_uri": "files/ID"}}]}]}),
    ("/gemini/v1beta/models/m:generateContent?alt=sse&cachedContent=ID", {"contents": []}),
    ("/gemini/v1beta/models/v:predictLongRunning", {"instances": [{"video": {"uri": "files/ID"}}]}),
    ("/anthropic/v1/messages/batches", {"requests": [{"params": {"messages": [{"content": [{"file_id": "ID"}]}]}}]}),
]


def answer(body: object, status: int = OK) -> bytes:
    content = json.dumps(body).encode()
    return b"HTTP/1.1 %d X\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b" % (
        status,
        len(content),
        content,
    )


@define
class Watching(Client):
    """A client that notes what is recorded when it gets the last piece of its answer."""

    owners: Callable[[], Awaitable[dict[str, str]]] | None = None
    recorded: set[str] = field(factory=set)

    async def send(self, message: dict[str, Any]) -> None:
        if self.owners is not None and not message.get("more_body", True):
            self.recorded = set(await self.owners())
        await super().send(message)


@define
class Pair:
    """Two projects, and the provider that they share."""

    stage: Scene
    first: str
    second: str
    secrets: dict[str, str]

    async def ask(
        self,
        project: str,
        method: str,
        path: str,
        body: object = None,
        *,
        pieces: int = 1,
        kind: str = "application/json",
    ) -> tuple[int, str]:
        """The status, and the code of the proxy's error or the whole answer of the provider."""
        client = await self.start(project, method, path, body, pieces=pieces, kind=kind)
        text = b"".join(message.get("body", b"") for message in client.received)
        status = int(client.received[0]["status"])
        if status < 400:
            return status, text.decode("latin-1")
        error = json.loads(text)["error"]
        # Google's shape has the code as the reason.
        return status, error["details"][0]["reason"].lower() if error.get("status") else error.get("code", "")

    async def start(
        self,
        project: str,
        method: str,
        path: str,
        body: object = None,
        *,
        pieces: int = 1,
        kind: str = "application/json",
    ) -> Watching:
        """Send a request, and note what was recorded when the client got the end of the answer."""
        content = b"" if body is None else body if isinstance(body, bytes) else json.dumps(body).encode()
        step = max(1, -(-len(content) // pieces))
        client = Watching([content[at : at + step] for at in range(0, len(content), step)] or [b""], pieces == 1)
        client.owners = self.owners
        path, _, query = path.partition("?")
        framing = (b"content-length", b"%d" % len(content))
        if pieces > 1:
            framing = (b"transfer-encoding", b"chunked")
        scope = {
            "type": "http",
            "method": method,
            "raw_path": path.encode(),
            "query_string": query.encode(),
            "headers": [
                (b"authorization", b"Bearer " + self.secrets[project].encode()),
                (b"content-type", kind.encode()),
                framing,
            ],
        }
        route = self.stage.relay.route(path.encode())
        assert route is not None
        with trio.fail_after(10):
            await self.stage.relay(route, scope, client.receive, client.send)
        return client

    async def own(self, project: str, *ids: str) -> None:
        rows = [
            ProviderObject(provider, one, "file", project, new_id(), new_id(), NOON)
            for one in ids
            for provider in ("openai", "anthropic", "gemini")
        ]
        await self.stage.database.write(objects.record, rows)

    async def owners(self) -> dict[str, str]:
        found = provider_objects.c
        query = select(found.object_id, found.kind, found.project_id)
        rows = await self.stage.database.read(lambda connection: connection.execute(query).all())
        return {key: kind for key, kind, project in rows if project == self.first}


@asynccontextmanager
async def pair(folder: Path, *, shared: bool = True, **first: Any) -> AsyncIterator[Pair]:
    async with scene(folder) as stage:
        upstreams = dict.fromkeys(("openai", "anthropic", "gemini"), stage.pool)
        stage.relay.routing = Routing(stage.relay.routing.providers, upstreams)
        secrets: dict[str, str] = {}
        ids: list[str] = []
        used: dict[str, Credential] = {}
        for last4, fields in (("aaaa", first), ("aaaa" if shared else "bbbb", {})):
            secret = new_secret()
            identity = await add_project(stage.database, stage.relay.keyring, secret, api_key_last4=last4, **fields)
            for provider in ("anthropic", "gemini"):
                if not (ids and shared):
                    key = new_id()
                    sealed = stage.relay.keyring.seal("the-real-key", key)
                    name = f"{provider} {last4}"
                    used[provider] = a_credential(
                        id=key, name=name, provider=provider, api_key=sealed, api_key_last4=last4
                    )
                    await stage.database.write(credentials.create, used[provider])
            await stage.database.write(credentials.assign, identity, list(used.values()))
            secrets[identity] = secret
            ids.append(identity)
        stage.provider.script = lambda _head, _body: answer({"object": "anything"})
        yield Pair(stage, ids[0], ids[1], secrets)


def requests() -> list[tuple[str, str, list[str]]]:
    """A request for each row that names or lists objects: method, path, and the ids in it."""
    known = provider_file.load(Settings.load({}, {}, None)).by_name
    allowed = {name: known[name] for name in ("openai", "anthropic", "gemini")}
    found: list[tuple[str, str, list[str]]] = []
    for number, (method, row, endpoint) in enumerate(TABLE.rows):
        ids = [f"{kind}-{number}" for kind in re.findall(r"\{([a-z_]+)\}", row)]
        path = re.sub(r"\{([a-z_]+)\}", rf"\g<1>-{number}", row).replace("*", "part")
        prefixes = [name for name, provider in allowed.items() if path.encode() in provider.endpoints]
        if (ids or endpoint.account) and prefixes:
            found += [(method, f"/{prefix}{path}", ids) for prefix in prefixes]
    return found


async def leaks(both: Pair) -> list[str]:
    """Each request by which the second project reaches what is the first one's, or lists what is everybody's."""
    found = []
    for method, path, ids in requests():
        await both.own(both.first, *ids)
        status, code = await both.ask(both.second, method, path)
        expected = (NOT_FOUND, "object_not_found") if ids else (FORBIDDEN, "list_not_isolated")
        if (status, code) != expected:
            found.append(f"{method} {path}: {status} {code}")
    for pieces in (1, 5):
        for number, (path, body) in enumerate(NAMING):
            one = f"skill_{number}"
            await both.own(both.first, one)
            await both.own(both.second, "other")
            named = json.dumps(body).replace("ID", one).encode()
            status, code = await both.ask(both.second, "POST", path.replace("ID", one), named, pieces=pieces)
            if (status, code) != (NOT_FOUND, "object_not_found"):
                found.append(f"POST {path} {body}: {status} {code}")
    return found


async def test_no_request_reaches_or_lists_what_another_project_created(tmp_path: Path) -> None:
    async with pair(tmp_path) as both:
        assert await leaks(both) == []
        assert both.stage.provider.answered == 0


async def test_without_the_check_every_such_request_reaches_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Isolation, "refusal", lambda *_: None)
    async with pair(tmp_path) as both:
        assert len(await leaks(both)) == len(requests()) + 2 * len(NAMING)


async def test_a_project_reaches_and_names_what_it_created(tmp_path: Path) -> None:
    async with pair(tmp_path) as both:
        for method, path, ids in requests():
            if ids:
                await both.own(both.first, *ids)
                # The provider's answer to a deletion removes the row.
                assert (await both.ask(both.first, method, path))[0] == OK, path
        for pieces in (1, 5):
            for number, (path, body) in enumerate(NAMING):
                one = f"skill_{number}"
                await both.own(both.first, one, "other")
                named = json.dumps(body).replace("ID", one).encode()
                sent = await both.ask(both.first, "POST", path.replace("ID", one), named, pieces=pieces)
                assert sent[0] == OK, path


async def test_a_project_alone_on_its_credential_reaches_everything_but_known_objects_of_others(tmp_path: Path) -> None:
    async with pair(tmp_path, shared=False) as both:
        for method, path, _ in requests():
            assert (await both.ask(both.first, method, path))[0] == OK, path
        for pieces in (1, 5):
            for path, body in NAMING:
                assert (await both.ask(both.first, "POST", path, body, pieces=pieces))[0] == OK, path
        await both.own(both.second, "file-1")
        assert await both.ask(both.first, "GET", "/v1/files/file-1") == (NOT_FOUND, "object_not_found")


async def test_allow_unknown_objects_opens_what_is_not_recorded_and_nothing_else(tmp_path: Path) -> None:
    async with pair(tmp_path, allow_unknown_objects=True) as both:
        assert (await both.ask(both.first, "GET", "/v1/files/file-1"))[0] == OK
        assert await both.ask(both.second, "GET", "/v1/files/file-1") == (NOT_FOUND, "object_not_found")
        await both.own(both.second, "file-2")
        assert await both.ask(both.first, "GET", "/v1/files/file-2") == (NOT_FOUND, "object_not_found")
        assert (await both.ask(both.first, "GET", "/v1/files/%66ile-2"))[0] == BAD_REQUEST
        assert await both.ask(both.first, "GET", "/v1/files") == (FORBIDDEN, "list_not_isolated")


async def test_an_endpoint_that_is_not_in_the_table_passes_for_a_project_alone_only(tmp_path: Path) -> None:
    for shared, status in ((True, FORBIDDEN), (False, OK)):
        folder = tmp_path / str(shared)
        folder.mkdir()
        async with pair(folder, shared=shared) as both:
            assert not TABLE.find("POST", b"/v1/models")[0].known
            assert (await both.ask(both.first, "POST", "/v1/models", {}))[0] == status


#: What a project creates, and in which answers: the request, the answer, and the ids and kinds that become its own.
CREATIONS: list[tuple[str, str, dict[str, Any], dict[str, str]]] = [
    ("POST", "/v1/files", {"id": "file-1", "object": "file"}, {"file-1": "file"}),
    ("POST", "/v1/uploads", {"id": "upload_1", "file": None}, {"upload_1": "upload"}),
    ("POST", "/v1/uploads/own/complete", {"id": "own", "file": {"id": "file-2"}}, {"file-2": "file"}),
    ("POST", "/v1/batches", {"id": "batch_1", "output_file_id": None}, {"batch_1": "batch"}),
    (
        "GET",
        "/v1/batches/own",
        {"id": "own", "output_file_id": "file-3", "error_file_id": "file-4"},
        {"file-3": "batch_output", "file-4": "file"},
    ),
    (
        "POST",
        "/v1/responses",
        {
            "id": "resp_1",
            "output": [{"id": "msg_1", "content": []}, {"id": "ci_1", "container_id": "cntr_1"}],
            "tools": [{"parameters": {"id": "file-of-another"}}],
            "metadata": {"id": "file-of-another"},
        },
        {"resp_1": "response", "msg_1": "item", "ci_1": "item", "cntr_1": "container"},
    ),
    ("POST", "/v1/conversations", {"id": "conv_1"}, {"conv_1": "conversation"}),
    (
        "POST",
        "/v1/conversations/own",
        {"conversation_id": "conv_2", "outputs": [{"content": [{"file_id": "file-6"}]}, {"content": "file-7"}]},
        {"conv_2": "conversation", "file-6": "file"},
    ),
    ("POST", "/v1/conversations/own/items", {"data": [{"id": "msg_2"}]}, {"msg_2": "item"}),
    (
        "POST",
        "/v1/chat/completions",
        {"id": "chatcmpl-1", "choices": [{"message": {"audio": {"id": "audio_1"}}}]},
        {"chatcmpl-1": "completion", "audio_1": "audio"},
    ),
    ("POST", "/v1/videos", {"id": "video_1"}, {"video_1": "video"}),
    ("POST", "/v1/videos/own/remix", {"id": "video_2"}, {"video_2": "video"}),
    ("POST", "/v1/fine_tuning/jobs", {"id": "ftjob-1"}, {"ftjob-1": "job"}),
    ("GET", "/v1/fine_tuning/jobs/own", {"id": "own", "result_files": ["file-5"]}, {"file-5": "file"}),
    ("POST", "/v1/vector_stores", {"id": "vs_1"}, {"vs_1": "vector_store"}),
    ("POST", "/v1/vector_stores/own/file_batches", {"id": "vsfb_1"}, {"vsfb_1": "file_batch"}),
    ("POST", "/v1/containers", {"id": "cntr_2"}, {"cntr_2": "container"}),
    ("POST", "/v1/assistants", {"id": "asst_1"}, {"asst_1": "assistant"}),
    ("POST", "/v1/threads", {"id": "thread_1"}, {"thread_1": "thread"}),
    ("POST", "/v1/threads/own/runs", {"id": "run_1", "thread_id": "own"}, {"run_1": "run"}),
    ("POST", "/v1/threads/runs", {"id": "run_2", "thread_id": "thread_2"}, {"run_2": "run", "thread_2": "thread"}),
    ("POST", "/anthropic/v1/files", {"id": "file_011", "type": "file"}, {"file_011": "file"}),
    ("POST", "/anthropic/v1/messages/batches", {"id": "msgbatch_1"}, {"msgbatch_1": "message_batch"}),
    ("POST", "/anthropic/v1/skills", {"id": "skill_1"}, {"skill_1": "skill"}),
    (
        "POST",
        "/gemini/upload/v1beta/files",
        {"file": {"name": "files/abc-1", "uri": "https://x/v1beta/files/abc-1"}},
        {"abc-1": "named_file"},
    ),
]


@pytest.mark.parametrize("coding", ["identity", "gzip"])
async def test_what_an_answer_shows_as_created_is_recorded_before_the_client_has_it(
    tmp_path: Path, coding: str
) -> None:
    async with pair(tmp_path) as both:
        for method, path, shown, ids in CREATIONS:
            await both.own(both.first, "own")
            before = await both.owners()
            if coding != "identity" and path.endswith("/messages/batches"):
                continue  # such an answer is edited, and not accepted
            text = json.dumps(shown).encode()
            content = text if coding == "identity" else gzip.compress(text)
            head = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Encoding: %b" % coding.encode()
            whole = b"%b\r\nContent-Length: %d\r\n\r\n%b" % (head, len(content), content)
            both.stage.provider.script = lambda _head, _body, whole=whole: whole
            body: object = {"store": True} if method == "POST" else None
            client = await both.start(both.first, method, path, body)
            after = await both.owners()
            assert {key: kind for key, kind in after.items() if key not in before} == ids, path
            assert client.recorded == ids.keys() | before.keys(), path


async def test_the_id_of_a_stream_is_recorded_before_the_client_has_its_first_event(tmp_path: Path) -> None:
    async with pair(tmp_path) as both:
        event = b'data: {"type":"response.created","response":{"id":"resp_1"}}\n\n'
        head = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nContent-Length: %d\r\n\r\n"
        stream = event + b"data: {}\n\n" * 3
        both.stage.provider.script = lambda _head, _body: head % len(stream) + stream
        client = await both.start(both.first, "POST", "/v1/responses", {"stream": True})
        assert "resp_1" in client.recorded
        assert b"".join(message.get("body", b"") for message in client.received) == stream
        assert (await both.ask(both.second, "GET", "/v1/responses/resp_1"))[0] == NOT_FOUND
        assert (await both.ask(both.first, "GET", "/v1/responses/resp_1"))[0] == OK


async def test_what_cannot_be_recorded_in_time_is_recorded_with_the_settlement(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail(*_: object) -> bool:
        return False

    monkeypatch.setattr(Ledger, "record", fail)
    async with pair(tmp_path) as both:
        both.stage.provider.script = lambda _head, _body: answer({"id": "file-1"})
        client = await both.start(both.first, "POST", "/v1/files", {})
        assert client.recorded == set()
        assert (await both.ask(both.first, "GET", "/v1/files/file-1"))[0] == OK
        assert await both.owners() == {"file-1": "file"}


@pytest.mark.parametrize(("status", "left"), [(200, set()), (404, {"file-1"}), (500, {"file-1"})])
async def test_an_object_is_forgotten_when_the_provider_has_deleted_it(
    tmp_path: Path, status: int, left: set[str]
) -> None:
    async with pair(tmp_path) as both:
        await both.own(both.first, "file-1")
        both.stage.provider.script = lambda _head, _body: answer({"error": {}}, status)
        await both.start(both.first, "DELETE", "/openai/v1/files/file-1")
        await both.ask(both.first, "GET", "/v1/models")
        found = provider_objects.c
        query = select(found.object_id).where(found.provider == "openai")
        assert set(await both.stage.database.read(lambda connection: connection.scalars(query).all())) == left


@pytest.mark.parametrize("pieces", [1, 3])
async def test_a_body_in_which_an_id_could_hide_is_refused_only_where_others_use_the_account(
    tmp_path: Path, pieces: int
) -> None:
    twice = b'{"previous_response_id": "a", "previous_response_id": "b"}'
    for shared, expected in ((True, 400), (False, OK)):
        folder = tmp_path / str(shared)
        folder.mkdir()
        async with pair(folder, shared=shared) as both:
            assert (await both.ask(both.first, "POST", "/v1/responses", twice, pieces=pieces))[0] == expected
            text = b'{"messages": [], "file_id": 1}'
            status, _ = await both.ask(
                both.first, "POST", "/v1/chat/completions", text, pieces=pieces, kind="text/plain"
            )
            assert status == expected


async def test_requests_without_objects_read_nothing_more_of_the_database(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(isolation, "read", None)
    async with pair(tmp_path) as both:
        for path in ("/v1/chat/completions", "/v1/embeddings", "/anthropic/v1/messages"):
            body = {"model": "m", "messages": [{"role": "user", "content": "hello"}]}
            assert (await both.ask(both.first, "POST", path, body))[0] == OK
        assert (await both.ask(both.first, "GET", "/v1/models"))[0] == OK


def upload(*lines: object, purpose: str = "batch", name: str = '; filename="in.jsonl"', first: bool = True) -> bytes:
    """A form with a file of these lines."""
    texts = [line if isinstance(line, bytes) else json.dumps(line).encode() for line in lines]
    parts = [b'name="purpose"\r\n\r\n' + purpose.encode(), b'name="file"%b\r\n\r\n' % name.encode() + b"\n".join(texts)]
    body = b"".join(
        b"--b\r\nContent-Disposition: form-data; " + part + b"\r\n" for part in parts[:: 1 if first else -1]
    )
    return body + b"--b--\r\n"


FORM = "multipart/form-data; boundary=b"
#: Lines of a batch's input that name an object, `ID`.
LINES: list[Any] = [
    {"custom_id": "1", "url": "/v1/responses", "body": {"previous_response_id": "ID"}},
    {"custom_id": "1", "url": "/v1/responses", "body": {"input": [{"type": "item_reference", "id": "ID"}]}},
    {"url": "/v1/responses", "body": {"input": [{"content": [{"type": "input_file", "file_id": "ID"}]}]}},
    {"url": "/v1/chat/completions", "body": {"messages": [{"content": [{"file": {"file_id": "ID"}}]}]}},
    {"url": "/v1/chat/completions", "body": {"messages": [{"audio": {"id": "ID"}}]}},
    b'{"body": {"previous_\\u0072esponse_id": "ID"}}',
]


@pytest.mark.parametrize("pieces", [1, 9])
@pytest.mark.parametrize("first", [True, False])
async def test_the_input_of_a_batch_cannot_name_what_another_project_created(
    tmp_path: Path, pieces: int, *, first: bool
) -> None:
    async with pair(tmp_path) as both:
        await both.own(both.first, "file-1")
        for line in LINES:
            body = upload({"body": {"input": "hello"}}, line, {}, first=first).replace(b'"ID"', b'"file-1"')
            call = ("POST", "/openai/v1/files", body)
            found = await both.ask(both.second, *call, pieces=pieces, kind=FORM)
            assert found == (NOT_FOUND, "object_not_found"), line
            assert (await both.ask(both.first, *call, pieces=pieces, kind=FORM))[0] == OK, line


@pytest.mark.parametrize("pieces", [1, 9])
@pytest.mark.parametrize(
    ("body", "status"),
    [
        (upload({"body": {"input": "batch", "metadata": {"file_id": "file-1"}}}), OK),
        (upload({"previous_response_id": "file-1"}, purpose="fine-tune"), OK),
        (upload(b'%PDF batch "id" { file_id', purpose="user_data"), OK),
        (upload(b'{"file_id": "a", "file_id": "b"}'), 400),
        (upload(b'{"body": {}}\r{"file_id": "file-1"}'), 400),
        (upload({"file_id": "file-1"}, name=""), 400),
        (upload({"file_id": "file-1"}, purpose="batch-api"), NOT_FOUND),
    ],
)
async def test_a_file_is_read_if_it_is_for_a_batch(tmp_path: Path, pieces: int, body: bytes, status: int) -> None:
    async with pair(tmp_path) as both:
        await both.own(both.first, "file-1")
        assert (await both.ask(both.second, "POST", "/openai/v1/files", body, pieces=pieces, kind=FORM))[0] == status


async def test_the_input_of_a_batch_is_not_read_for_a_project_alone(tmp_path: Path) -> None:
    async with pair(tmp_path, shared=False) as both:
        for body in (upload({"previous_response_id": "x"}), upload(b'{"id": 1, "id": 2}')):
            assert (await both.ask(both.second, "POST", "/openai/v1/files", body, kind=FORM))[0] == OK


async def test_the_input_of_a_batch_cannot_be_uploaded_in_parts_while_others_use_the_account(tmp_path: Path) -> None:
    for shared, status in ((True, 400), (False, OK)):
        folder = tmp_path / str(shared)
        folder.mkdir()
        async with pair(folder, shared=shared) as both:
            for pieces in (1, 3):
                begun = await both.ask(both.first, "POST", "/v1/uploads", {"purpose": "batch"}, pieces=pieces)
                assert begun[0] == status
                assert (await both.ask(both.first, "POST", "/v1/uploads", {"purpose": "user_data"}))[0] == OK
