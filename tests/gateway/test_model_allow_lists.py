"""Allow-lists of models: no request passes that names, or may name, a model that is not allowed."""

from __future__ import annotations

import gzip
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any, Final

import pytest
import trio
from attrs import define
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import select

from db import Connection
from db.queries import credentials, limits, projects, tokens
from db.records import Limit
from db.schema import projects as projects_table
from db.schema import requests
from db.schema import tokens as tokens_table
from llm_proxy.errors import InvalidJson
from llm_proxy.gateway.named_models import Named, _Members, _places, _read_quickly
from llm_proxy.gateway.routing import Routing
from llm_proxy.identifiers import new_id
from llm_proxy.prices import Prices
from llm_proxy.tokens import digest, new_secret
from tests.db.queries.factories import NOON, a_credential, a_limit, a_project, a_token
from tests.gateway import apis_yaml
from tests.gateway.stage import Client, Scene, scene

CHAT: Final = "/v1/chat/completions"
AUDIO: Final = "/v1/audio/transcriptions"
TUNING: Final = "/v1/fine_tuning/jobs"
PROVIDERS: Final = (
    *("openai", "anthropic", "gemini", "openrouter", "azure", "bedrock", "mistral", "groq", "together"),
)
JSON: Final = {"content-type": "application/json"}
FORM: Final = {"content-type": "multipart/form-data; boundary=xyz"}
LONG: Final = "x" * 200_000


def form(*fields: tuple[str, str], file: str = "sound") -> bytes:
    parts = [f'--xyz\r\nContent-Disposition: form-data; name="file"; filename="a.mp3"\r\n\r\n{file}\r\n']
    parts += [f'--xyz\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n' for name, value in fields]
    return "".join([*parts, "--xyz--\r\n"]).encode()


def graded(grader: dict[str, Any]) -> dict[str, Any]:
    return {"type": "reinforcement", "reinforcement": {"grader": grader}}


@define
class Stage:
    """A token that may use only `good*`, at every provider."""

    scene: Scene
    secret: str
    token_id: str
    project_id: str

    async def ask(
        self,
        path: str,
        body: object = None,
        headers: dict[str, str] = JSON,
        *,
        method: str = "POST",
        pieces: int = 1,
    ) -> tuple[int, str]:
        """The status, and the message of a refusal."""
        before = len(self.scene.provider.seen)
        content = b"" if body is None else body if isinstance(body, bytes) else json.dumps(body).encode()
        step = max(1, -(-len(content) // pieces))
        client = Client([content[at : at + step] for at in range(0, len(content), step)] or [b""], pieces == 1)
        raw, _, query = path.partition("?")
        framing = ("content-length", str(len(content))) if pieces == 1 else ("transfer-encoding", "chunked")
        fields = [("authorization", f"Bearer {self.secret}"), framing, *headers.items()]
        scope: dict[str, Any] = {
            "type": "http",
            "method": method,
            "raw_path": raw.encode(),
            "query_string": query.encode(),
            "headers": [(name.encode(), value.encode()) for name, value in fields],
        }
        route = self.scene.relay.route(raw.encode())
        assert route is not None
        with trio.fail_after(10):
            await self.scene.relay(route, scope, client.receive, client.send)
        status = int(client.received[0]["status"])
        # What arrives at the provider is what was admitted.
        assert len(self.scene.provider.seen) - before == (status == 200)
        answer = b"".join(message.get("body", b"") for message in client.received)
        return status, "" if status == 200 else answer.decode()

    async def allow(self, *, token: list[str] | None, project: list[str] | None = None) -> None:
        def change(connection: Connection) -> None:
            for table, identity, patterns in (
                (tokens_table, self.token_id, token),
                (projects_table, self.project_id, project),
            ):
                models = None if patterns is None else {"patterns": patterns}
                connection.execute(table.update().where(table.c.id == identity).values(models=models))

        await self.scene.database.write(change)


@asynccontextmanager
async def staged(folder: Path) -> AsyncIterator[Stage]:
    async with scene(folder) as stage:
        base = f"http://127.0.0.1:{stage.provider.port}"
        entries = "".join(f"  {name}: {{base_url: '{base}/base', auth: bearer}}\n" for name in PROVIDERS)
        providers = apis_yaml.load(
            folder, f"default_api: openai\napis:\n{entries}", PUBLIC_URL="https://llm.example.com"
        )
        stage.relay.routing = Routing(providers, dict.fromkeys(PROVIDERS, stage.pool))
        stage.provider.script = lambda _head, _body: b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}"
        secret, identity, token = new_secret(), new_id(), new_id()
        keyring, used = stage.relay.keyring, []
        stage.relay.max_request_size = 1 << 24
        # No other project uses these accounts.
        alone: dict[str, Any] = {"api_key_last4": "only", "allow_unknown_objects": True}
        project = a_project(id=identity, api_key=keyring.seal("the-real-key", identity), **alone)
        await stage.database.write(projects.create, project)
        for name in PROVIDERS:
            key = new_id()
            sealed = keyring.seal("the-real-key", key)
            one = a_credential(id=key, name=name, provider=name, api_key=sealed, api_key_last4="only")
            used.append(one)
            await stage.database.write(credentials.create, one)
        await stage.database.write(credentials.assign, identity, used)
        await stage.database.write(tokens.create, a_token(identity, id=token, digest=digest(secret)))
        made = Stage(stage, secret, token, identity)
        await made.allow(token=["good*"])
        yield made
        assert stage.relay.held.size == stage.relay.running == 0


#: Requests in the form of (path, body), where MODEL is the place of the model's name: each passes with one that is
#: allowed, and none with another one.
PLACES: Final[list[tuple[str, Any, dict[str, str]]]] = [
    (CHAT, {"model": "MODEL"}, JSON),
    (CHAT, {"model": "MODEL"}, {}),
    (CHAT, {"model": "MODEL", "messages": [{"content": LONG}]}, JSON),
    (CHAT, {"messages": [{"content": LONG * 8}], "model": "MODEL"}, JSON),
    (CHAT, b'{"mod\\u0065l":"MODEL"}', JSON),
    (CHAT + "?model=MODEL", {"model": "good"}, JSON),
    ("/openai/v1/responses", {"model": "MODEL", "input": "x"}, JSON),
    ("/v1/responses", {"model": "good", "tools": [{"type": "image_generation", "model": "MODEL"}]}, JSON),
    ("/v1/embeddings", {"model": "MODEL", "input": ["x"]}, JSON),
    ("/v1/images/generations", {"model": "MODEL"}, JSON),
    ("/v1/assistants", {"model": "MODEL"}, JSON),
    ("/v1/threads/runs", {"model": "MODEL"}, JSON),
    ("/v1/evals/e/runs", {"data_source": {"model": "MODEL"}}, JSON),
    (AUDIO, form(("model", "MODEL")), FORM),
    (AUDIO, form(("model", "MODEL"), file=LONG * 8), FORM),
    ("/anthropic/v1/messages", {"model": "MODEL"}, JSON),
    ("/anthropic/v1/messages", {"model": "good", "tools": [{"name": "advisor", "model": "MODEL"}]}, JSON),
    ("/anthropic/v1/messages/batches", {"requests": [{"params": {"model": "MODEL"}}]}, JSON),
    (
        "/anthropic/v1/messages/batches",
        {"requests": [{"params": {"model": "good"}}, {"params": {"model": "MODEL"}}]},
        JSON,
    ),
    (
        "/anthropic/v1/messages/batches",
        {"requests": [{"params": {"model": "good", "tools": [{"name": "advisor", "model": "MODEL"}]}}]},
        JSON,
    ),
    (
        "/anthropic/v1/messages/batches",
        {"requests": [{"params": {"model": "good", "fallbacks": [{"model": "good"}, {"model": "MODEL"}]}}]},
        JSON,
    ),
    (TUNING, {"model": "MODEL", "training_file": "f"}, JSON),
    (TUNING, {"model": "good", "method": graded({"type": "score_model", "model": "MODEL"})}, JSON),
    (TUNING, {"model": "good", "method": graded({"type": "multi", "graders": {"a": {"model": "MODEL"}}})}, JSON),
    (TUNING, {"model": "good", "method": graded({"type": "multi", "graders": {"_": {"model": "MODEL"}}})}, JSON),
    (TUNING, {"model": "good", "method": graded({"type": "multi", "graders": {"model": "MODEL"}})}, JSON),
    (TUNING, {"model": "good", "method": graded({"type": "multi", "graders": [{"model": "MODEL"}]})}, JSON),
    ("/gemini/v1beta/models/MODEL:generateContent", {"contents": []}, JSON),
    ("/gemini/v1beta/models/MODEL:streamGenerateContent?alt=sse", {"contents": []}, JSON),
    ("/gemini/v1beta/models/MODEL%3AgenerateContent", {"contents": []}, JSON),
    ("/gemini/v1beta/models/good:batchEmbedContents", {"requests": [{"model": "models/MODEL"}]}, JSON),
    ("/gemini/v1beta/models/good:generateContent", {"model": "models/MODEL"}, JSON),
    ("/gemini/v1beta/models/good:batchGenerateContent", {"batch": {"model": "models/MODEL"}}, JSON),
    (
        "/gemini/v1beta/models/good:batchGenerateContent",
        {"batch": {"inputConfig": {"requests": {"requests": [{"request": {"model": "models/MODEL"}}]}}}},
        JSON,
    ),
    (
        "/gemini/v1beta/models/good:batchGenerateContent",
        {"batch": {"input_config": {"requests": {"requests": [{"request": {"model": "models/MODEL"}}]}}}},
        JSON,
    ),
    ("/gemini/v1beta/cachedContents", {"model": "models/MODEL"}, JSON),
    ("/bedrock/model/MODEL/converse", {"messages": []}, JSON),
    ("/bedrock/model/MODEL/invoke-with-response-stream", {"messages": []}, JSON),
    ("/azure/deployments/MODEL/chat/completions?api-version=1", {"messages": []}, JSON),
    ("/azure/deployments/MODEL/audio/transcriptions", form(), FORM),
    ("/openrouter/v1/chat/completions", {"model": "MODEL"}, JSON),
    ("/openrouter/v1/chat/completions", {"model": "good", "models": ["good-2", "MODEL"]}, JSON),
    ("/openrouter/v1/chat/completions", {"models": ["MODEL"]}, JSON),
    ("/openrouter/v1/chat/completions", {"model": "good", "preset": "MODEL"}, JSON),
    ("/openrouter/v1/chat/completions", {"model": "good", "models": None, "plugins": [{"model": "MODEL"}]}, JSON),
    ("/openrouter/v1/chat/completions", {"model": "good", "plugins": [{"analysis_models": ["MODEL"]}]}, JSON),
    (
        "/openrouter/v1/chat/completions",
        {"model": "good", "tools": [{"parameters": {"analysis_models": ["good", "MODEL"]}}]},
        JSON,
    ),
    ("/anthropic/v1/messages", {"model": "good", "fallbacks": [{"model": "good"}, {"model": "MODEL"}]}, JSON),
    ("/openrouter/v1/messages", {"model": "good", "fallbacks": [{"model": "MODEL"}]}, JSON),
    ("/groq/v1/chat/completions", {"model": "good", "compound_custom": {"models": {"answering_model": "MODEL"}}}, JSON),
    ("/groq/v1/chat/completions", {"model": "good", "compound_custom": {"models": {"reasoning_model": "MODEL"}}}, JSON),
    ("/together/v1/chat/completions", {"model": "good", "safety_model": "MODEL"}, JSON),
    (
        "/azure/deployments/good/chat/completions",
        {"data_sources": [{"parameters": {"embedding_dependency": {"deployment_name": "MODEL"}}}]},
        JSON,
    ),
    ("/azure/v1/responses", {"model": "good"}, JSON | {"x-ms-oai-image-generation-deployment": "MODEL"}),
    ("/azure/v1/responses", {"model": "good"}, JSON | {"x-ms-oai-image_generation-deployment": "MODEL"}),
    ("/mistral/v1/agents/completions", {"agent_id": "MODEL"}, JSON),
    ("/mistral/v1/conversations/c", {"model": "MODEL"}, JSON),
]

#: Requests that are refused whatever is allowed.
BYPASSES: Final[list[tuple[str, Any, dict[str, str]]]] = [
    (CHAT, None, JSON),
    (CHAT, {}, JSON),
    (CHAT, {"model": ""}, JSON),
    (CHAT, {"model": None}, JSON),
    (CHAT, {"model": 7}, JSON),
    (CHAT, {"model": {"good": 1}}, JSON),
    (CHAT, {"model": "good "}, JSON),
    (CHAT, {"model": " good"}, JSON),
    (CHAT, {"model": "good\0bad"}, JSON),
    (CHAT, {"model": "good" * 1000}, JSON),
    (CHAT, b'{"model":"good","model":"bad"}', JSON),
    (CHAT, b'{"model":"bad","model":"good"}', JSON),
    (CHAT, b'{"model":"good","mod\\u0065l":"bad"}', JSON),
    (CHAT, b'{"model":"good","mod\\u0065l":"good"}', JSON),
    (CHAT, {"model": "good", "Model": "bad"}, JSON),
    (CHAT, {"model": "good", "MODEL": "good"}, JSON),
    (CHAT, {"model": "good", "model[0]": "bad"}, JSON),
    (CHAT, {"model": "good", "\uff4dodel": "bad"}, JSON),
    (CHAT, b'\xef\xbb\xbf{"model":"good"}', JSON),
    (CHAT, '{"model":"good"}'.encode("utf-16"), JSON),
    (CHAT, b'{"model":"good"} {"model":"bad"}', JSON),
    (CHAT, b'[{"model":"good"}]', JSON),
    (CHAT, b'{"model":"good"', JSON),
    (CHAT, gzip.compress(b'{"model":"good"}'), JSON | {"content-encoding": "gzip"}),
    (CHAT, b'{"model":"good"}', JSON | {"content-encoding": "br"}),
    (CHAT, b"model=good", {"content-type": "application/x-www-form-urlencoded"}),
    (CHAT, b'{"model":"good"}', {"content-type": "text/plain"}),
    (CHAT, form(("model", "good")), FORM),
    (CHAT + "?model=good&model=bad", {"model": "good"}, JSON),
    (CHAT + "?Model=good", {"model": "good"}, JSON),
    (CHAT + "?model=", {"model": "good"}, JSON),
    (AUDIO, form(), FORM),
    (AUDIO, form(("model", "good"), ("model", "bad")), FORM),
    (AUDIO, form(("model", "good"), ("model", "good"), file=LONG * 8), FORM),
    (AUDIO, form(("model", "good"), ("Model", "bad")), FORM),
    (AUDIO, form(("model", "good"), ("model[]", "bad")), FORM),
    (AUDIO, form(("model", "good")), {"content-type": "multipart/form-data; boundary=xyz; boundary=abc"}),
    ("/v1/batches", {"input_file_id": "file-1", "endpoint": CHAT}, JSON),
    ("/azure/v1/batches", {"model": "good", "input_file_id": "file-1"}, JSON),
    ("/v1/threads/t/runs", {"assistant_id": "a"}, JSON),
    ("/v1/threads/t/runs?model=good", {"assistant_id": "a"}, JSON),
    ("/v1/threads/t/runs", {"assistant_id": "a", "tools": [{"type": "function", "model": "good"}]}, JSON),
    ("/v1/responses", {"prompt": {"id": "p"}, "fallbacks": [{"model": "good"}]}, JSON),
    ("/v1/videos/v/remix", {"prompt": "x"}, JSON),
    ("/v1/responses", {"prompt": {"id": "p"}}, JSON),
    ("/anthropic/v1/messages/batches", {"requests": []}, JSON),
    ("/bedrock/model/other%2Fgood/converse", {}, JSON),
    ("/bedrock/model/good/converse", {"model": "bad"}, JSON),
    ("/azure/deployments/skills/chat/completions", {}, JSON),
    ("/azure/deployments/good/chat/completions", b'{"tools":[{"parameters":{"model":"bad"},"parameters":{}}]}', JSON),
    (
        "/groq/v1/chat/completions",
        b'{"model":"good","compound_custom":{"models":{"answering_model":"bad"},"models":{}}}',
        JSON,
    ),
    ("/azure/v1/responses", {}, JSON | {"x-ms-oai-image-generation-deployment": "good"}),
    ("/openrouter/v1/chat/completions", {"model": "good@preset/bad"}, JSON),
    ("/openrouter/v1/chat/completions", {"model": "good", "models": []} | {"Models": ["bad"]}, JSON),
    ("/mistral/v1/conversations/c/restart", {}, JSON),
]

#: Requests that generate nothing.
OTHERS: Final = [
    ("GET", "/v1/models", None),
    ("GET", "/v1/models/bad", None),
    ("DELETE", "/v1/files/f", None),
    ("POST", "/v1/conversations", {}),
    ("POST", "/v1/vector_stores/v/search", {"query": "x"}),
    ("POST", "/v1/responses/r/cancel", None),
    ("POST", "/v1/threads/t/messages", {"role": "user"}),
    ("POST", "/anthropic/v1/messages/count_tokens", {"model": "bad"}),
    ("POST", "/gemini/v1beta/models/bad:countTokens", {}),
]


def filled(text: Any, model: str) -> Any:
    if isinstance(text, bytes):
        return text.replace(b"MODEL", model.encode())
    return json.loads(json.dumps(text).replace("MODEL", model))


@pytest.mark.parametrize("pieces", [1, 3])
async def test_a_model_passes_only_if_it_is_allowed_in_whatever_place(tmp_path: Path, pieces: int) -> None:
    async with staged(tmp_path) as stage:
        for path, body, headers in PLACES:
            send = partial(stage.ask, pieces=pieces)
            said = await send(*(filled(part, "GOOD-1") for part in (path, body, headers)))
            assert said == (200, ""), (path, body)
            status, message = await send(*(filled(part, "bad") for part in (path, body, headers)))
            assert (status, "model_not_allowed" in message.lower()) == (403, True), (path, body, message)
            assert "Allowed models: good*." in message


@pytest.mark.parametrize("pieces", [1, 3])
async def test_a_request_whose_models_cannot_be_read_for_certain_is_refused(tmp_path: Path, pieces: int) -> None:
    async with staged(tmp_path) as stage:
        for path, body, headers in BYPASSES:
            status, message = await stage.ask(path, body, headers, pieces=pieces)
            assert (status, "model_not_allowed" in message.lower()) == (403, True), (path, body, message)
            assert "Allowed models: good*." in message


async def test_the_same_requests_pass_without_an_allow_list(tmp_path: Path) -> None:
    async with staged(tmp_path) as stage:
        await stage.allow(token=None)
        for path, body, headers in BYPASSES:
            assert (await stage.ask(path, body, headers))[0] == 200, (path, body)


async def test_an_escaped_letter_does_not_make_it_an_endpoint_that_is_not_judged(tmp_path: Path) -> None:
    async with staged(tmp_path) as stage:
        for path in ("/v1/threads/%72uns", "/v1/threads/ru%6Es", "/openai/v1/threads/%72%75%6e%73"):
            status, message = await stage.ask(path, {"assistant_id": "a", "model": "bad", "thread": {}})
            assert (status, "invalid_path" in message) == (400, True), path


async def test_endpoints_that_generate_nothing_are_not_judged(tmp_path: Path) -> None:
    async with staged(tmp_path) as stage:
        for method, path, body in OTHERS:
            assert (await stage.ask(path, body, method=method))[0] == 200, path


async def test_both_the_token_and_its_project_must_allow_a_model(tmp_path: Path) -> None:
    async with staged(tmp_path) as stage:
        await stage.allow(token=["good*"], project=["*-1"])
        asked = [(await stage.ask(CHAT, {"model": model}))[0] for model in ("good-1", "good-2", "bad-1")]
        assert asked == [200, 403, 403]
        await stage.allow(token=None, project=["*-1"])
        asked = [(await stage.ask(CHAT, {"model": model}))[0] for model in ("good-1", "good-2", "bad-1")]
        assert asked == [200, 403, 200]


async def test_a_second_model_does_not_escape_a_limit(tmp_path: Path) -> None:
    async with staged(tmp_path) as stage:
        await stage.allow(token=None)
        limit = Limit(
            id=new_id(),
            scope="token",
            subject=stage.token_id,
            metric="requests",
            period="total",
            amount=0,
            models={"patterns": ["dear*"]},
            policy="settled",
            wait_ms=0,
            warn_at=None,
            allow_unpriced=False,
            created_at=NOON,
            updated_at=NOON,
        )
        await stage.scene.database.write(limits.create, limit)
        for pieces in (1, 3):
            for path, body, headers in (
                ("/openrouter/v1/chat/completions", {"model": "m", "models": ["m", "dear-1"]}, JSON),
                (CHAT, b'{"model":"m","mod\\u0065l":"dear"}', JSON),
                (CHAT, b'{"model":"dear","model":"m"}', JSON),
                (AUDIO, form(("model", "dear"), file=LONG), FORM),
                (AUDIO, form(("model", "m"), ("model", "dear"), file=LONG), FORM),
            ):
                assert (await stage.ask(path, body, headers, pieces=pieces))[0] == 429, (path, body)
            assert (await stage.ask(CHAT, {"model": "m"}, pieces=pieces))[0] == 200
            assert (await stage.ask(AUDIO, form(("model", "m"), file=LONG), FORM, pieces=pieces))[0] == 200


async def test_endpoints_that_generate_nothing_need_no_price(tmp_path: Path) -> None:
    async with staged(tmp_path) as stage:
        await stage.allow(token=None)
        limit = a_limit(scope="token", subject=stage.token_id, metric="cost", amount=1)
        await stage.scene.database.write(limits.create, limit)
        for method, path, body in OTHERS:
            assert (await stage.ask(path, body, method=method))[0] == 200, path
        path = "/gemini/v1beta/models/bad:generateContent"
        assert (await stage.ask(path, {}))[0] == 403


async def test_what_is_billed_needs_a_price_whatever_its_answer_counts(tmp_path: Path) -> None:
    async with staged(tmp_path) as stage:
        await stage.allow(token=None)
        stage.scene.relay.prices = Prices.load(None, dict.fromkeys(("openai", "anthropic"), "http://127.0.0.1"))
        for limit in (
            a_limit(scope="token", subject=stage.token_id, metric="cost", amount=10**9),
            a_limit(scope="token", subject=stage.token_id, metric="input_tokens", amount=10**9),
        ):
            await stage.scene.database.write(limits.create, limit)
        for path, body, headers in (
            ("/v1/batches", {"input_file_id": "file-1", "endpoint": CHAT}, JSON),
            ("/v1/threads/t/runs", {"assistant_id": "a"}, JSON),
            ("/v1/threads/t/runs", {"assistant_id": "a", "model": "gpt-4o"}, JSON),
            ("/anthropic/v1/messages/batches", {"requests": [{"params": {"model": "claude-haiku-4-5"}}]}, JSON),
            (AUDIO, form(("model", "whisper-1"), file=LONG), FORM),
            ("/v1/audio/speech", {"model": "gpt-4o-mini-tts", "input": "x" * 4000}, JSON),
        ):
            assert (await stage.ask(path, body, headers))[0] == 200, path
        for path, body, headers in (
            ("/v1/audio/speech", {"model": "bad", "input": "x"}, JSON),
            ("/v1/images/generations", {"model": "bad"}, JSON),
            (AUDIO, form(("model", "bad"), file=LONG), FORM),
            ("/v1/threads/t/runs", {"assistant_id": "a", "model": "bad"}, JSON),
            ("/v1/threads/runs", b'{"assistant_id":"a","model":"gpt-4o","model":"bad"}', JSON),
            (
                "/anthropic/v1/messages/batches",
                {"requests": [{"params": {"model": model}} for model in ("claude-haiku-4-5", "bad")]},
                JSON,
            ),
        ):
            status, message = await stage.ask(path, body, headers)
            assert (status, "price" in message) == (403, True), (path, message)
        rows = await stage.scene.database.read(lambda connection: list(connection.scalars(select(requests.c.limits))))
        # The file is no text, and the text of the speech is.
        assert sorted(max(row.values()) > 500 for row in rows if row) == [False] * 5 + [True]


names = st.sampled_from(["model", "models", "Model", "tools", "input_file_id", "parameters", "x", "mod\\u0065l"])
texts = st.sampled_from(['"a"', '"b"', "null", "7", '" c"', '"model"', '"\\ud83d\\ude00"'])
documents = st.recursive(
    texts,
    lambda inner: (
        st.lists(inner, max_size=2).map(lambda items: f"[{','.join(items)}]")
        | st.lists(st.tuples(names, inner), max_size=4).map(
            lambda pairs: "{" + ",".join(f'"{name}": {value}' for name, value in pairs) + "}"
        )
    ),
    max_leaves=8,
)


@settings(max_examples=400)
@given(documents)
def test_the_quick_reading_of_a_body_finds_what_the_strict_one_finds(document: str) -> None:
    places = _places(("model", "models", "input_file_id.body.model"))

    def strict() -> list[Named]:
        reader = _Members(places)
        reader.feed(document.encode())
        reader.end()
        return reader.models

    def told(read: Callable[[], list[Named] | None]) -> object:
        try:
            return read()
        except InvalidJson as error:
            return error.message

    quick = told(lambda: _read_quickly(document.encode(), places))
    ambiguous = "The request body is ambiguous: a JSON object has the same name twice."
    if quick is not None:
        # A name that comes twice beside the places of models is no concern here.
        assert told(strict) in (quick, ambiguous)
