"""The model that a request names."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import trio
from sqlalchemy import select

from db.schema import requests
from llm_proxy.config import Settings
from llm_proxy.gateway.inbound import ENDS, Inbound
from llm_proxy.gateway.providers import provider_file
from llm_proxy.gateway.providers.provider import Provider, Route
from llm_proxy.gateway.requested_model import requested_model
from llm_proxy.secrets.encryption import KeyRing
from tests.gateway.stage import Client, scene

CHAT = b"/v1/chat/completions"
FORM = (b"content-type", b"multipart/form-data; boundary=xyz")
TEXT = 'a model: {"model":"decoy"}, [\\" ' * (ENDS // 10)


@pytest.fixture(scope="module")
def provider(tmp_path_factory: pytest.TempPathFactory) -> Provider:
    path = tmp_path_factory.mktemp("apis") / "apis.yaml"
    path.write_text("""
        apis:
          openrouter:
            allowed_endpoints: [/v1/chat/completions, "/v1/models/{model}", "/model/{model}/invoke", /v1/audio/x]
    """)
    return provider_file.load(Settings.load({"API_CONFIG_PATH": str(path)}, {}, None)).default


async def asked(
    provider: Provider,
    *pieces: bytes,
    path: bytes = CHAT,
    header: tuple[bytes, bytes] = (b"content-type", b"application/json"),
    whole: bool = True,
    passed: bool = True,
) -> str:
    """Let a body arrive in pieces, and pass if there are several; unless it is `whole`, its last one does not come."""
    waiting = list(pieces)

    async def receive() -> Any:
        return {"type": "http.request", "body": waiting.pop(0), "more_body": bool(waiting) or not whole}

    scope = {
        "method": "POST",
        "raw_path": path,
        "query_string": b"",
        "headers": [header, (b"transfer-encoding", b"chunked")],
    }
    inbound = Inbound("0190", trio.current_time(), Route(None, path, "openai"), scope, receive, 1 << 24)
    for _ in pieces:
        await inbound._take()
    if len(pieces) > 1 and passed:
        with trio.move_on_after(0):
            async for _ in inbound:
                pass
    return requested_model(inbound, provider)


@pytest.mark.parametrize(
    ("body", "model"),
    [
        (b'{"model":"gpt-5.4-mini","stream":true}', "gpt-5.4-mini"),
        (b' \r\n{ "messages": [{"model": "no"}], "model" : "gpt-\\u0035" }\n', "gpt-5"),
        (b'{"model":"first","model":"last"}', "last"),
        (b'{"models":["a","b"],"stream":true}', "a"),
        (b'{"preset":"p","models":[],"model":null}', "p"),
        (b'{"model":7}', ""),
        (b'{"model":["a"]}', "a"),
        (b'{"model":"cut', ""),
        (b'{"model":"line\\u0000break\\n"}', "linebreak"),
        (b"[]", ""),
        (b"", ""),
        (b"\xff\xfe{", ""),
        (b"\x1f\x8b\x08", ""),
        (b"[" * 200_000, ""),
    ],
)
async def test_model_of_a_body_is_its_member(provider: Provider, body: bytes, model: str) -> None:
    assert await asked(provider, body) == model


@pytest.mark.parametrize(
    ("path", "model"),
    [(b"/v1/models/gpt-4o", "gpt-4o"), (b"/model/arn%3Aaws%2Fx/invoke", "arn:aws/x")],
)
async def test_model_in_the_path_comes_before_the_body(provider: Provider, path: bytes, model: str) -> None:
    assert await asked(provider, b'{"model":"other"}', path=path) == model
    assert await asked(provider, b"", path=path) == model


@pytest.mark.parametrize(
    ("path", "document", "model"),
    [
        (b"/v1/messages/batches", {"requests": [{"custom_id": "a", "params": {"model": "claude"}}]}, "claude"),
        (b"/v1/messages/batches", {"requests": [7, {"params": 7}, {"params": {"model": "later"}}]}, "later"),
        (b"/v1/evals", {"data_source": {"model": "o"}}, "o"),
        (b"/v1/evals", {"data_source": "model"}, ""),
        (b"/v1/conversations", {"agent_id": "ag:1"}, "ag:1"),
        (b"/v1/batches", {"input_file_id": "file-1"}, ""),
    ],
)
async def test_model_is_where_the_entry_says(provider: Provider, path: bytes, document: object, model: str) -> None:
    places = {
        "/v1/messages/batches": ("requests.params.model",),
        "/v1/evals": ("data_source.model",),
        "/v1/conversations": ("model", "agent_id"),
        "/v1/batches": ("input_file_id.body.model",),
    }
    entry = provider_file._provider(
        "x",
        provider_file._BuiltIn(allowed_endpoints=tuple(places), models=places),
        (provider.origin, b""),
        Settings.load({}, {}, None),
    )
    assert await asked(entry, json.dumps(document).encode(), path=path) == model


@pytest.mark.parametrize("passed", [True, False])
@pytest.mark.parametrize("size", [100, 4096, 65536])
@pytest.mark.parametrize(
    "document",
    [
        {"model": "m", "messages": [{"content": TEXT}]},
        {"messages": [{"content": TEXT, "model": "no"}], "model": "m", "tools": [{"model": {"model": "no"}}]},
        {"messages": [{"content": TEXT}], "tools": {"n": 1, "model": "no"}, "model": "m"},
        {"x": [{"model": "no"}], "model": "m", "messages": TEXT * 2},
    ],
)
async def test_model_of_a_long_body_is_found_near_its_ends(
    provider: Provider, document: object, size: int, *, passed: bool
) -> None:
    body = json.dumps(document, separators=(",", ":")).encode()
    pieces = [body[start : start + size] for start in range(0, len(body), size)]
    assert len(body) > ENDS
    assert await asked(provider, *pieces, passed=passed) == "m"


async def test_model_far_from_both_ends_of_a_long_body_is_unknown(provider: Provider) -> None:
    body = json.dumps({"a": TEXT * 2, "model": "m", "b": TEXT * 2}).encode()
    assert await asked(provider, body[:70_000], body[70_000:]) == ""


async def test_model_is_known_although_the_client_left_during_its_upload(provider: Provider) -> None:
    assert await asked(provider, b'{"model":"m","messages":[', b'{"content":"', whole=False) == "m"
    assert await asked(provider, b'{"messages":[{"model":"m"},', b'{"content":"', whole=False) == ""
    assert await asked(provider, b'{"model":"m', b"", whole=False) == ""


async def test_model_that_is_twice_in_a_long_body_is_the_last_near_its_end_else_the_first(provider: Provider) -> None:
    first, second = b'{"model":"a","model":"b","x":"' + TEXT.encode().replace(b'"', b""), b'","model":"c"}'
    assert await asked(provider, first.replace(b"\\", b""), second) == "c"
    assert await asked(provider, first.replace(b"\\", b""), second, whole=False) == "a"


def form(*parts: tuple[str, bytes]) -> bytes:
    return b"".join(b"--xyz\r\n%b\r\n\r\n%b\r\n" % (head.encode(), content) for head, content in parts) + b"--xyz--\r\n"


FIELD = ('Content-Disposition: form-data; name="model"', b"whisper-1")
FILE = 'Content-Disposition: form-data; name="file"; filename="a.mp3"\r\nContent-Type: audio/mpeg'


@pytest.mark.parametrize("length", [10, 100_000])
@pytest.mark.parametrize("order", [1, -1])
async def test_model_of_a_form_is_its_field_before_or_after_the_file(
    provider: Provider, length: int, order: int
) -> None:
    body = form(*[FIELD, (FILE, b"\r\n--xy" * (length // 6))][::order])
    pieces = [body[start : start + 4096] for start in range(0, len(body), 4096)]
    assert await asked(provider, *pieces, path=b"/v1/audio/x", header=FORM) == "whisper-1"


async def test_ledger_has_the_model_of_a_request_that_was_rejected_or_found_no_provider(tmp_path: Path) -> None:
    async with scene(tmp_path) as stage:
        stage.provider.script = lambda _head, _body: b"HTTP/1.1 400 Bad\r\nContent-Length: 0\r\n\r\n"
        await stage.request(Client([b'{"model":"rejected"}']), chunked=False, told=True)
        await stage.request(Client([b'{"model":"in pieces",', b'"messages":[]}']), chunked=True, told=True)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(KeyRing, "open", lambda *_: "a key\nthat cannot be sent")
            await stage.request(Client([b'{"model":"never sent"}']), chunked=False, told=True)
        secret = stage.secret.decode()
        await stage.request(Client([b'{"model":"%b"}' % stage.secret]), chunked=False, told=True)
        await stage.ledger.drain()
        query = select(requests.c.requested_model, requests.c.outcome).order_by(requests.c.id)
        rows = [tuple(row) for row in await stage.database.read(lambda connection: connection.execute(query).all())]
    assert rows[:3] == [("rejected", "rejected"), ("in pieces", "rejected"), ("never sent", "void")]
    assert secret not in rows[3][0]
