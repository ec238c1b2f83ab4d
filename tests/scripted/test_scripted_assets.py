"""Models, embeddings, files, images and audio, read by OpenAI's SDK."""

from __future__ import annotations

import base64
import struct
from typing import Any

import httpx2
import openai
import pytest

from tests.scripted.conversation import MODEL, bearer
from tests.scripted.provider import ScriptedProvider


async def test_embeddings_are_the_same_in_both_encodings(client: httpx2.AsyncClient, gpt: openai.AsyncOpenAI) -> None:
    ask = {"model": "text-embedding-scripted", "input": ["one", "two"], "dimensions": 8}
    plain = (await client.post("/v1/embeddings", json=ask, headers=bearer())).json()
    packed = (await client.post("/v1/embeddings", json=ask | {"encoding_format": "base64"}, headers=bearer())).json()
    first = struct.unpack("<8f", base64.b64decode(packed["data"][0]["embedding"]))
    assert first == pytest.approx(plain["data"][0]["embedding"])
    assert sum(value * value for value in first) == pytest.approx(1.0)
    assert plain["data"][0]["embedding"] != plain["data"][1]["embedding"]
    through_sdk = await gpt.embeddings.create(model="text-embedding-scripted", input="one", dimensions=8)
    assert through_sdk.data[0].embedding == pytest.approx(first)
    assert through_sdk.usage.total_tokens == 1


async def test_embeddings_take_token_ids(gpt: openai.AsyncOpenAI) -> None:
    answer = await gpt.embeddings.create(model="text-embedding-scripted", input=[1, 2, 3], dimensions=4)
    assert answer.usage.prompt_tokens == 3


async def test_files_come_back_byte_for_byte(gpt: openai.AsyncOpenAI) -> None:
    content = bytes(range(256)) + b"\r\n--\r\n\r\n"
    uploaded = await gpt.files.create(file=("data.bin", content), purpose="assistants")
    assert (uploaded.bytes, uploaded.filename, uploaded.purpose) == (len(content), "data.bin", "assistants")
    assert (await gpt.files.content(uploaded.id)).content == content
    assert (await gpt.files.retrieve(uploaded.id)).id == uploaded.id
    assert [file.id async for file in gpt.files.list()] == [uploaded.id]
    assert (await gpt.files.delete(uploaded.id)).deleted
    with pytest.raises(openai.NotFoundError):
        await gpt.files.retrieve(uploaded.id)


async def test_oldest_file_goes_when_the_store_is_full(
    gpt: openai.AsyncOpenAI, monkeypatch: pytest.MonkeyPatch, provider: ScriptedProvider
) -> None:
    handler: Any = next(handler for _, path, _, handler in provider._routes if path.pattern == "/v1/files")
    monkeypatch.setattr(handler.__self__, "limit", 10)
    names = [(await gpt.files.create(file=("f", content), purpose="batch")).id for content in (b"123456", b"abcdef")]
    assert [file.id async for file in gpt.files.list()] == names[1:]


async def test_openai_models_are_listed(gpt: openai.AsyncOpenAI) -> None:
    assert MODEL in [model.id async for model in gpt.models.list()]
    assert (await gpt.models.retrieve(MODEL)).id == MODEL
    with pytest.raises(openai.NotFoundError):
        await gpt.models.retrieve("gpt-of-tomorrow")


async def test_images_and_audio_have_the_shape_of_the_sdk(gpt: openai.AsyncOpenAI) -> None:
    image = await gpt.images.generate(model="i", prompt="a cat", n=2)
    assert image.data is not None
    assert base64.b64decode(image.data[1].b64_json or "").startswith(b"\x89PNG")
    speech = await gpt.audio.speech.create(model="s", input="hi", voice="alloy")
    assert speech.content[:4] == b"RIFF"
    assert int.from_bytes(speech.content[4:8], "little") == len(speech.content) - 8
    heard = await gpt.audio.transcriptions.create(model="t", file=("a.wav", speech.content))
    assert f"{len(speech.content)} bytes" in heard.text
