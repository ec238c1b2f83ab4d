from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest

from llm_proxy.cli.commands.demo.provider import DemoProvider
from llm_proxy.cli.commands.demo.tour import Stream
from tests.harness.server import ROOT

STEPS = [
    "A provider, and a proxy before it",
    "A project has the provider's key, and issues a token",
    "A chat completion",
    "Another model, streamed: every piece is forwarded as it arrives",
    "A third request is refused: the token is used up",
    "The ledger has a row for each admitted request",
    "The ledger is correct",
    "Who spent what: llm-proxy manage usage --group-by project,model",
    "A token with a budget of $0.0003 per month, until it is spent",
    "What is used of each limit: llm-proxy manage limit list",
]


TEXT = "This answer comes from a script; no model was asked. You said: “{}”"


@contextmanager
def demo(folder: Path, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """The demo in a process of its own, in a folder of its own, without the developer's settings."""
    process = subprocess.Popen(
        [sys.executable, "-m", "llm_proxy", "demo", *arguments],
        cwd=folder,
        env={
            "PATH": os.environ["PATH"],
            "PYTHONPATH": str(ROOT),
            "TMPDIR": str(folder),
            "HTTP_PROXY": "http://127.0.0.1:9",
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def test_the_tour_shows_everything_and_ends(tmp_path: Path) -> None:
    with demo(tmp_path, "--once") as process:
        output, errors = process.communicate(timeout=60)

    assert (process.returncode, errors) == (0, "")
    assert re.findall(r"^(?: \d|\d\d)  (.*)$", output, re.MULTILINE) == STEPS
    assert output.count("This answer comes from a script; no model was asked.") == 2
    assert "429 request_limit_exceeded" in output
    assert re.search(r"^    …\w{8}  ok          200  gpt-5.4-mini  no      15   28 ", output, re.MULTILINE)
    assert re.search(r"^    …\w{8}  ok          200  gpt-5.4-nano  yes     15   28 ", output, re.MULTILINE)
    assert "✓ counter 2 = settled 2 + in flight 0, and the same by the hourly sums" in output
    # 15 and 28 tokens at 0.75 and 4.50 USD, and at 0.20 and 1.25 USD, for a million.
    assert re.search(r"^    demo     gpt-5.4-mini         1     15      28  \$0.000137 ", output, re.MULTILINE)
    assert re.search(r"^    demo     gpt-5.4-nano         1     15      28  \$0.000038 ", output, re.MULTILINE)
    assert re.search(r"^    total                         2     30      56  \$0.000175$", output, re.MULTILINE)
    # The budget is reached by the third request, and the fourth is refused.
    used = re.findall(r"^    200, and \$(\S+) of \$0.0003 are used$", output, re.MULTILINE)
    assert used == ["0.00013725", "0.0002745", "0.00041175"]
    assert "    429 budget_exceeded\n" in output
    listed = r"^    token budget  cost    month   \$0.00041175  \$0.0003  \d{4}-\d\d-01 00:00:00Z$"
    assert re.search(listed, output, re.MULTILINE)
    # Nothing for a terminal in a pipe, nothing wider than one, nothing left behind.
    assert "\x1b" not in output
    assert max(map(len, output.splitlines())) <= 80
    assert list(tmp_path.iterdir()) == []


def test_it_serves_until_ctrl_c_and_accepts_the_token_for_the_user(tmp_path: Path) -> None:
    with demo(tmp_path) as process:
        assert process.stdout is not None
        shown = ""
        for line in process.stdout:
            shown += line
            if "Ctrl-C ends the demo" in line:
                break
        url = re.search(r"curl -N (http://127\.0\.0\.1:\d+/v1/chat/completions)", shown)
        token = re.search(r"Bearer (sk-[\w-]{43})", shown)
        body = re.search(r"-d '(\{.*?\}\]\})'", shown, re.DOTALL)
        assert url
        assert token
        assert body
        request = urllib.request.Request(  # noqa: S310 (a URL of our own)
            url[1], body[1].encode(), {"Authorization": f"Bearer {token[1]}", "Content-Type": "application/json"}
        )
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=30) as response:
            events = response.read().decode()
        assert json.loads(events.split("\n")[0].removeprefix("data: "))["object"] == "chat.completion.chunk"
        assert events.rstrip().endswith("data: [DONE]")

        process.send_signal(signal.SIGINT)
        rest, errors = process.communicate(timeout=30)

    assert (process.returncode, rest, errors) == (0, "", "")
    assert list(tmp_path.iterdir()) == []


def test_an_address_that_is_taken_is_one_line(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        with demo(tmp_path, "--once", "--addr", address) as process:
            output, errors = process.communicate(timeout=60)

    assert (process.returncode, output) == (1, "")
    assert errors == (
        f"error: cannot listen on {address}: Address already in use; choose another address with --addr\n"
    )


def test_streamed_text_is_wrapped_piece_by_piece(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "20")
    stream = Stream()

    for piece in ["One", " two", " three", " four", " five", "\x1b[2J", " six"]:
        stream.write(piece)

    assert capsys.readouterr().out.splitlines() == [
        "    One two three",
        "    four five\\x1b[2J",
        "    six",
    ]


@pytest.fixture
async def provider() -> AsyncIterator[httpx2.AsyncClient]:
    """A client of the demo's provider, without a network."""
    app: Any = DemoProvider("sk-real", 0.01)
    transport = httpx2.ASGITransport(app)
    async with httpx2.AsyncClient(transport=transport, base_url="http://provider/v1/") as client:
        yield client


# OpenAI's SDK stops reading at `[DONE]` and leaves its own generators to the garbage collector.
@pytest.mark.filterwarnings("ignore:Async generator 'openai:ResourceWarning")
@pytest.mark.filterwarnings("ignore:Async generator 'httpx2:ResourceWarning")
@pytest.mark.parametrize("content", ["Hello", [{"type": "text", "text": "Hello"}]])
async def test_the_provider_streams_the_same_text_as_without_streaming(
    provider: httpx2.AsyncClient, content: object, autojump_clock: object
) -> None:
    import openai  # noqa: PLC0415 (it takes a second, in each process that collects this file)

    gpt = openai.AsyncOpenAI(api_key="sk-real", base_url=provider.base_url, http_client=provider, max_retries=0)
    ask: Any = {"model": "gpt-5.4-mini", "messages": [{"role": "user", "content": content}]}
    plain = await gpt.chat.completions.create(**ask)
    stream = await gpt.chat.completions.create(**ask, stream=True, stream_options={"include_usage": True})
    chunks = [chunk async for chunk in stream]
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks[:-1])
    assert text == plain.choices[0].message.content == TEXT.format("Hello")
    assert chunks[-1].usage == plain.usage
    bare = await gpt.chat.completions.create(**ask, stream=True)
    assert [chunk.usage async for chunk in bare] == [None] * (len(chunks) - 1)


@pytest.mark.parametrize(
    ("path", "key", "body", "status"),
    [
        ("chat/completions", "sk-proxy-token", b"{}", 401),
        ("models", "sk-real", b"", 404),
        ("chat/completions", "sk-real", b"{", 400),
        ("chat/completions", "sk-real", b"\xff", 400),
        ("chat/completions", "sk-real", b'{"model": "m", "messages": []}', 400),
        ("chat/completions", "sk-real", b'{"messages": [{"content": "Hello"}]}', 400),
    ],
)
async def test_the_provider_refuses_in_the_form_of_openai_what_it_cannot_answer(
    provider: httpx2.AsyncClient, path: str, key: str, body: bytes, status: int
) -> None:
    response = await provider.post(path, content=body, headers={"Authorization": f"Bearer {key}"})
    assert response.status_code == status
    assert response.json()["error"]["message"]
