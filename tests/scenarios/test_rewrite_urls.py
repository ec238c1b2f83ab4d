"""Vendors' SDKs follow the URLs in answers, and reach the proxy by them: batches of Anthropic, uploads to Gemini."""

from __future__ import annotations

import http.client
import io
import json
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any, ClassVar

import anthropic
import pytest
import yaml
from google import genai

from benchmarks.ports import free_port
from tests.databases.kinds import Kind
from tests.databases.scratch import Databases
from tests.harness.deployment import UPSTREAM_KEY
from tests.harness.server import Server, running_server
from tests.harness.vendor import served

pytestmark = [pytest.mark.filterwarnings("ignore"), pytest.mark.usefixtures("closed_connections")]

BATCH = "msgbatch_013Zva2CMHLNnXjNJJKqJ2EF"
RESULT = {"custom_id": "one", "result": {"type": "canceled"}}
ASK: Any = {"model": "m", "max_tokens": 9, "messages": [{"role": "user", "content": "Hello"}]}
UPLOAD_ID = "ABgVH88-_x"


def _batch(own: str, *, ended: bool) -> dict[str, Any]:
    """https://docs.claude.com/en/api/retrieving-message-batches."""
    counts = {"processing": 0, "succeeded": 0, "errored": 0, "canceled": 1, "expired": 0}
    return {
        "id": BATCH,
        "type": "message_batch",
        "processing_status": "ended" if ended else "in_progress",
        "request_counts": counts,
        "ended_at": "2026-08-20T18:37:24.100435Z" if ended else None,
        "created_at": "2026-08-20T18:37:24.100435Z",
        "expires_at": "2026-08-21T18:37:24.100435Z",
        "archived_at": None,
        "cancel_initiated_at": None,
        "results_url": f"{own}/v1/messages/batches/{BATCH}/results" if ended else None,
    }


class Vendor(BaseHTTPRequestHandler):
    """Answers as Anthropic and Google do, to requests with the provider's key only."""

    protocol_version = "HTTP/1.1"
    seen: ClassVar[list[str]] = []
    uploaded: ClassVar[bytearray] = bytearray()

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("content-length", 0)))
        self.seen.append(f"{self.command} {self.path}")
        own = f"http://127.0.0.1:{self.connection.getsockname()[1]}"
        path, command = self.path.partition("?")[0], self.headers.get("x-goog-upload-command", "")
        if UPSTREAM_KEY not in (self.headers.get("x-api-key"), self.headers.get("x-goog-api-key")):
            self._answer({"error": "not the key"}, status=401)
        elif path.endswith("/results"):
            self._answer(RESULT, kind="application/x-jsonl")
        elif path.startswith("/v1/messages/batches"):
            batch = _batch(own, ended=self.command == "GET" or path.endswith("/cancel"))
            if self.command == "DELETE":
                self._answer({"id": BATCH, "type": "message_batch_deleted"})
            elif self.command == "GET" and path.endswith("/batches"):
                self._answer({"data": [batch], "has_more": False, "first_id": BATCH, "last_id": BATCH})
            else:
                self._answer(batch)
        elif command == "start":
            url = f"{own}{path}?upload_id={UPLOAD_ID}&upload_protocol=resumable"
            self._answer(None, {"x-goog-upload-url": url, "x-goog-upload-status": "active"})
        elif command and self.path == f"{path}?upload_id={UPLOAD_ID}&upload_protocol=resumable":
            self.uploaded.extend(body)
            final = "finalize" in command
            content = {"file": self._file(own)} if final else None
            self._answer(content, {"x-goog-upload-status": "final" if final else "active"})
        elif path.endswith(":generateContent"):
            self._answer({"candidates": [{"content": {"role": "model", "parts": [{"text": "Hi"}]}}]})
        else:
            self._answer({} if self.command == "DELETE" else self._file(own))

    def do_GET(self) -> None:
        self.do_POST()

    def do_DELETE(self) -> None:
        self.do_POST()

    def _file(self, own: str) -> dict[str, Any]:
        return {"name": "files/abc-123", "uri": f"{own}/v1beta/files/abc-123", "mimeType": "text/plain"}

    def _answer(
        self, content: object, headers: dict[str, str] | None = None, status: int = 200, kind: str = "application/json"
    ) -> None:
        text = b"" if content is None else json.dumps(content).encode()
        self.send_response(status)
        for name, value in {"content-type": kind, "etag": '"1"', **(headers or {})}.items():
            self.send_header(name, value)
        self.send_header("content-length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, *_: Any) -> None:
        pass


@contextmanager
def serving(
    databases: Databases, folder: Path, *, public: bool, projects: int = 2
) -> Iterator[tuple[Server, list[str]]]:
    """A server, and the tokens of projects that use one credential at each provider."""
    Vendor.seen.clear()
    Vendor.uploaded.clear()
    port = free_port()
    settings = {"API_CONFIG_PATH": str(folder / "providers.yaml"), "LOG_LEVEL": "debug"}
    if public:
        settings["PUBLIC_URL"] = f"http://localhost:{port}"
    with ExitStack() as stack:
        url = stack.enter_context(served(Vendor))
        apis = {name: {"base_url": url} for name in ("openai", "anthropic", "gemini")}
        (folder / "providers.yaml").write_text(yaml.safe_dump({"apis": apis}))
        scratch = stack.enter_context(databases.migrated(Kind.SQLITE))
        server = stack.enter_context(running_server(scratch.env, settings, port=port))
        for name in apis:
            server.manage("POST", "/credentials", {"name": name, "provider": name, "api_key": UPSTREAM_KEY})
        tokens = []
        for number in range(projects):
            project = server.manage("POST", "/projects", {"name": str(number), "credentials": list(apis)})
            tokens.append(server.manage("POST", "/tokens", {"project_id": project["id"]})["token"])
        yield server, tokens
        for secret in (*tokens, UPSTREAM_KEY, "llm-proxy-session"):
            assert secret not in server.output
            assert secret not in json.dumps(server.manage("GET", "/requests"))


def public_url(server: Server) -> str:
    """Not the address by which the tests call it."""
    return server.url.replace("127.0.0.1", "localhost")


def post(server: Server, target: str, headers: dict[str, str]) -> tuple[int, Any, str | None]:
    """Status, content and upload URL of the answer to a request without any other header."""
    connection = http.client.HTTPConnection(server.host, server.port)
    try:
        connection.request("POST", target, b"{}", headers)
        response = connection.getresponse()
        return response.status, json.loads(response.read() or b"null"), response.getheader("x-goog-upload-url")
    finally:
        connection.close()


def claude(server: Server, token: str) -> anthropic.Anthropic:
    return anthropic.Anthropic(base_url=server.url, api_key=token, max_retries=0)


def gemini(server: Server, token: str) -> Any:
    options: Any = {"base_url": f"{server.url}/gemini"}
    return genai.Client(api_key=token, http_options=options)


@pytest.mark.parametrize("beta", [False, True])
def test_anthropics_sdk_works_with_batches(databases: Databases, tmp_path: Path, beta: bool) -> None:
    with serving(databases, tmp_path, public=True) as (server, tokens):
        one, two = (
            client.beta.messages.batches if beta else client.messages.batches
            for client in (claude(server, token) for token in tokens)
        )
        batch = one.create(requests=[{"custom_id": "one", "params": ASK}])
        assert (batch.id, batch.results_url) == (BATCH, None)
        raw = one.with_raw_response.retrieve(BATCH)
        public = public_url(server)
        # The project's default provider is OpenAI, and the SDK has called the proxy by another name.
        assert raw.parse().results_url == f"{public}/anthropic/v1/messages/batches/{BATCH}/results"
        assert raw.headers["x-llm-proxy-edited"] == "rewrite_urls"
        assert "etag" not in raw.headers
        assert [result.model_dump() for result in one.results(BATCH)] == [RESULT]
        assert str(one.cancel(BATCH).results_url).startswith(f"{public}/anthropic/")
        for call in (two.retrieve, two.results, two.cancel, two.delete):
            with pytest.raises(anthropic.NotFoundError, match="no object with the id"):
                call(BATCH)
        with pytest.raises(anthropic.PermissionDeniedError):
            two.list()
        assert one.delete(BATCH).type == "message_batch_deleted"
        path = f"/v1/messages/batches/{BATCH}"
        seen = [target.partition("?")[0] for target in Vendor.seen]
        assert seen == [
            "POST /v1/messages/batches",
            *(f"GET {path}", f"GET {path}", f"GET {path}/results", f"POST {path}/cancel", f"DELETE {path}"),
        ]


def test_a_list_of_batches_leads_to_the_proxy_too(databases: Databases, tmp_path: Path) -> None:
    with serving(databases, tmp_path, public=True, projects=1) as (server, (token,)):
        (batch,) = claude(server, token).messages.batches.list()
        assert str(batch.results_url).startswith(f"{public_url(server)}/anthropic/v1/messages/batches/")


def test_googles_sdk_uploads_a_file_in_pieces(databases: Databases, tmp_path: Path) -> None:
    with serving(databases, tmp_path, public=True) as (server, tokens):
        one, two = (gemini(server, token) for token in tokens)
        content = bytes(range(256)) * (36 * 1024)  # the SDK sends pieces of 8 MiB
        file = one.files.upload(file=io.BytesIO(content), config={"mime_type": "text/plain"})
        assert file.name == "files/abc-123"
        assert Vendor.uploaded == content
        assert [target.partition("?")[0].rpartition("/")[2] for target in Vendor.seen] == ["files"] * 3
        assert one.files.get(name=file.name).name == file.name
        assert one.models.generate_content(model="m", contents=[file, "What is it?"]).text == "Hi"
        for call in (two.files.get, two.files.delete):
            with pytest.raises(genai.errors.ClientError, match="no object with the id"):
                call(name=file.name)
        with pytest.raises(genai.errors.ClientError, match="no object with the id"):
            two.models.generate_content(model="m", contents=[file, "What is it?"])
        one.files.delete(name=file.name)
        uploads = [row for row in server.manage("GET", "/requests")["data"] if "/upload/" in row["path"]]
        assert len(uploads) == 3
        assert len({row["token_id"] for row in uploads}) == 1


def test_an_upload_session_is_worth_no_more_than_its_token(databases: Databases, tmp_path: Path) -> None:
    with serving(databases, tmp_path, public=True) as (server, tokens):
        start = {"x-goog-api-key": tokens[0], "x-goog-upload-command": "start"}
        _, _, url = post(server, "/gemini/upload/v1beta/files", start)
        target = str(url).removeprefix(public_url(server))
        send = {"x-goog-upload-command": "upload, finalize", "x-goog-upload-offset": "0"}
        for other in (
            target.replace("/upload/v1beta/files", "/v1beta/models/m:generateContent"),
            target.replace(UPLOAD_ID, UPLOAD_ID + "2"),
            target.partition("&llm-proxy-session")[0],
        ):
            assert post(server, other, send)[0] == 401
        assert post(server, target, send)[0] == 200
        token_id = server.manage("GET", "/requests")["data"][0]["token_id"]
        server.manage("DELETE", f"/tokens/{token_id}")
        status, content, _ = post(server, target, send)
        assert (status, content["error"]["details"][0]["reason"]) == (401, "TOKEN_INACTIVE")


def test_without_public_url_the_endpoints_are_refused_with_the_reason(databases: Databases, tmp_path: Path) -> None:
    with serving(databases, tmp_path, public=False) as (server, tokens):
        batches = claude(server, tokens[0]).messages.batches
        for call in (
            lambda: batches.create(requests=[{"custom_id": "one", "params": ASK}]),
            lambda: batches.retrieve(BATCH),
            lambda: batches.results(BATCH),
            lambda: batches.cancel(BATCH),
        ):
            with pytest.raises(anthropic.NotFoundError, match="PUBLIC_URL") as caught:
                call()
            assert caught.value.error_code == "endpoint_not_allowed"
        google = gemini(server, tokens[0])
        with pytest.raises(genai.errors.ClientError, match="PUBLIC_URL"):
            google.files.upload(file=io.BytesIO(b"x"), config={"mime_type": "text/plain"})
        assert Vendor.seen == []
