"""Each built-in provider with its vendor's own SDK, against an upstream that speaks the vendor's wire format."""

from __future__ import annotations

import hashlib
import http.client
import json
import socket
import socketserver
import ssl
import struct
import threading
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import parse_qs

import anthropic
import boto3
import botocore.config
import botocore.exceptions
import cohere
import groq
import mistralai.client
import openai
import pytest
import yaml
from attrs import frozen
from cohere.core.api_error import ApiError
from google import genai
from google.oauth2.credentials import Credentials
from mistralai.client.errors import SDKError

from tests.databases.kinds import Kind
from tests.databases.scratch import Databases
from tests.gateway.auth.endpoint import DOCUMENTS, TOKEN
from tests.gateway.auth.test_aws import KEYS, expected_signature
from tests.harness.certificates import Authority
from tests.harness.deployment import UPSTREAM_KEY
from tests.harness.server import Server, running_server
from tests.harness.vendor import served

pytestmark = [pytest.mark.filterwarnings("ignore"), pytest.mark.usefixtures("closed_connections")]

ASK: Any = [{"role": "user", "content": "Hello"}]
UNKNOWN = "sk-" + "x" * 43
#: The names of the entries, with the path of their base URL; each entry takes all the rest from the built-in one.
BASES = {
    "openai": "",
    "anthropic": "",
    "azure": "/openai",
    "gemini": "",
    "openrouter": "/api",
    "groq": "/openai",
    "mistral": "",
    "deepseek": "",
    "xai": "",
    "together": "",
    "cohere": "",
    "ollama": "",
    "vllm": "",
    "bedrock": "",
}
#: The resource of Vertex, as the path of its base URL.
LOCATION = "/v1/projects/project-1/locations/us-central1"
#: A model that is busy: its requests are refused with 429.
BUSY = "busy"


def _chat(*, stream: bool) -> bytes:
    usage = {"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3}
    head = {"id": "c", "created": 1, "model": "m"}
    if not stream:
        message = {"role": "assistant", "content": "Hi"}
        choice = {"index": 0, "message": message, "finish_reason": "stop"}
        return json.dumps({**head, "object": "chat.completion", "choices": [choice], "usage": usage}).encode()
    pieces: list[Any] = [
        {"choices": [{"index": 0, "delta": {"role": "assistant", "content": "Hi"}, "finish_reason": None}]},
        {"choices": [{"index": 0, "delta": {"content": ""}, "finish_reason": "stop"}], "usage": usage},
    ]
    events = [json.dumps({**head, "object": "chat.completion.chunk", **piece}) for piece in pieces]
    return "".join(f"data: {event}\n\n" for event in [*events, "[DONE]"]).encode()


def _message(*, stream: bool) -> bytes:
    usage, end = {"input_tokens": 1, "output_tokens": 2}, {"stop_reason": "end_turn", "stop_sequence": None}
    head = {"id": "msg", "type": "message", "role": "assistant", "model": "m", "usage": usage}
    if not stream:
        return json.dumps({**head, **end, "content": [{"type": "text", "text": "Hi"}]}).encode()
    events: list[Any] = [
        {"type": "message_start", "message": {**head, "content": [], "stop_reason": None, "stop_sequence": None}},
        {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}},
        {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "Hi"}},
        {"type": "content_block_stop", "index": 0},
        {"type": "message_delta", "delta": end, "usage": {"output_tokens": 2}},
        {"type": "message_stop"},
    ]
    return "".join(f"event: {event['type']}\ndata: {json.dumps(event)}\n\n" for event in events).encode()


def _gemini(*, stream: bool) -> bytes:
    candidate = {"content": {"role": "model", "parts": [{"text": "Hi"}]}, "finishReason": "STOP", "index": 0}
    usage = {"promptTokenCount": 1, "candidatesTokenCount": 2, "totalTokenCount": 3}
    body = json.dumps({"candidates": [candidate], "usageMetadata": usage, "modelVersion": "m"})
    return f"data: {body}\r\n\r\n".encode() if stream else body.encode()


def _cohere(*, stream: bool) -> bytes:
    if not stream:
        message = {"role": "assistant", "content": [{"type": "text", "text": "Hi"}]}
        usage = {"tokens": {"input_tokens": 1, "output_tokens": 2}}
        return json.dumps({"id": "c", "finish_reason": "COMPLETE", "message": message, "usage": usage}).encode()
    events: list[Any] = [
        {"type": "content-delta", "index": 0, "delta": {"message": {"content": {"text": "Hi"}}}},
        {"type": "message-end", "delta": {"finish_reason": "COMPLETE"}},
    ]
    return "".join(f"event: {event['type']}\ndata: {json.dumps(event)}\n\n" for event in events).encode()


def _aws_event(kind: str, payload: dict[str, Any]) -> bytes:
    """One message of `application/vnd.amazon.eventstream`: lengths, headers, payload, and two checksums."""
    fields = {":event-type": kind, ":content-type": "application/json", ":message-type": "event"}
    headers = b"".join(
        bytes([len(name)]) + name.encode() + b"\x07" + struct.pack(">H", len(value)) + value.encode()
        for name, value in fields.items()
    )
    body = json.dumps(payload).encode()
    prelude = struct.pack(">II", 16 + len(headers) + len(body), len(headers))
    message = prelude + struct.pack(">I", zlib.crc32(prelude)) + headers + body
    return message + struct.pack(">I", zlib.crc32(message))


def _converse(*, stream: bool) -> bytes:
    usage = {"inputTokens": 1, "outputTokens": 2, "totalTokens": 3}
    if not stream:
        message = {"role": "assistant", "content": [{"text": "Hi"}]}
        metrics = {"latencyMs": 1}
        body = {"output": {"message": message}, "stopReason": "end_turn", "usage": usage, "metrics": metrics}
        return json.dumps(body).encode()
    return (
        _aws_event("messageStart", {"role": "assistant"})
        + _aws_event("contentBlockDelta", {"delta": {"text": "Hi"}, "contentBlockIndex": 0})
        + _aws_event("messageStop", {"stopReason": "end_turn"})
        + _aws_event("metadata", {"usage": usage, "metrics": {"latencyMs": 1}})
    )


def _is_signed(target: str, headers: dict[str, str], body: bytes) -> bool:
    """Whether the signature of AWS is that of what has arrived."""
    fields = dict(part.split("=", 1) for part in headers["authorization"].split(" ", 1)[1].split(", "))
    path, _, query = target.partition("?")
    digest = hashlib.sha256(body).hexdigest()
    signed = [(name, headers.get(name, "")) for name in fields["SignedHeaders"].split(";")]
    scope = fields["Credential"].removeprefix(f"{KEYS['access_key_id']}/")
    expected = expected_signature("POST", path, query, signed, digest, scope)
    return fields["Signature"] == expected and headers["x-amz-content-sha256"] == digest


class Vendors(BaseHTTPRequestHandler):
    """Answers as the vendor of a path does, and notes each request."""

    protocol_version = "HTTP/1.1"
    seen: ClassVar[list[tuple[str, dict[str, str]]]] = []
    #: The forms that its token endpoint received.
    exchanged: ClassVar[list[dict[str, list[str]]]] = []

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("content-length", 0)))
        path = self.path.partition("?")[0]
        if path == "/token":
            self.exchanged.append(parse_qs(body.decode()))
            self._answer(json.dumps({"access_token": TOKEN, "token_type": "Bearer", "expires_in": 3600}).encode())
            return
        headers = {name.lower(): value for name, value in self.headers.items()}
        self.seen.append((self.path, headers))
        if headers.get("authorization", "").startswith("AWS4-") and not _is_signed(self.path, headers, body):
            self._answer(b'{"message":"The signature is wrong."}', 403, error="InvalidSignatureException")
            return
        if BUSY in path or b'"busy"' in body:
            error = {"code": 429, "message": "Too busy.", "status": "RESOURCE_EXHAUSTED"}
            answer = json.dumps({"message": "Too busy.", "error": error}).encode()
            self._answer(answer, 429, error="ThrottlingException")
            return
        stream = b'"stream":true' in body.replace(b" ", b"")
        kind = "text/event-stream" if stream else "application/json"
        if path.endswith(("/converse", "/converse-stream")):
            stream = path.endswith("-stream")
            content, kind = _converse(stream=stream), "application/vnd.amazon.eventstream" if stream else kind
        elif "enerateContent" in path:
            stream = "streamGenerateContent" in path
            content, kind = _gemini(stream=stream), "text/event-stream" if stream else kind
        elif path == "/v2/chat":
            content = _cohere(stream=stream)
        else:
            made = _message if path.endswith(("/messages", ":rawPredict", ":streamRawPredict")) else _chat
            content = made(stream=stream)
        self._answer(content, kind=kind)

    def _answer(self, content: bytes, status: int = 200, kind: str = "application/json", error: str = "") -> None:
        self.send_response(status)
        self.send_header("content-type", kind)
        self.send_header("content-length", str(len(content)))
        if error:
            self.send_header("x-amzn-errortype", error)
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: Any) -> None:
        pass


class TlsFront(socketserver.StreamRequestHandler):
    """TLS in front of the proxy, because boto3 sends a bearer token over TLS only."""

    context: ClassVar[ssl.SSLContext]
    port: ClassVar[int]

    def handle(self) -> None:
        with (
            self.context.wrap_socket(self.request, server_side=True) as client,
            socket.create_connection(("127.0.0.1", self.port)) as inner,
        ):
            threading.Thread(target=self._copy, args=(inner, client), daemon=True).start()
            self._copy(client, inner)

    @staticmethod
    def _copy(source: socket.socket, target: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(65536):
                target.sendall(data)


@frozen
class Proxy:
    server: Server
    tokens: dict[str, str]
    authority: Authority

    def at(self, path: str) -> str:
        return self.server.url + path


@contextmanager
def _proxy(databases: Databases, folder: Path, apis: dict[str, Any], keys: dict[str, str]) -> Iterator[Proxy]:
    """A server with a project and a token for each provider, whose credential is in `keys`, or is the usual key."""
    (folder / "providers.yaml").write_text(yaml.safe_dump({"apis": apis, "default_api": next(iter(apis))}))
    settings = {"API_CONFIG_PATH": str(folder / "providers.yaml"), "LOG_LEVEL": "debug"}
    with databases.migrated(Kind.SQLITE) as scratch, running_server(scratch.env, settings) as server:
        tokens = {}
        for name in apis:
            key = keys.get(name, UPSTREAM_KEY)
            project = server.manage("POST", "/projects", {"name": name, "provider": name, "api_key": key})
            tokens[name] = server.manage("POST", "/tokens", {"project_id": project["id"]})["token"]
        yield Proxy(server, tokens, Authority.make(folder))
        for secret in (*tokens.values(), UPSTREAM_KEY, TOKEN, KEYS["secret_access_key"]):
            assert secret not in server.output


@pytest.fixture(scope="module")
def proxy(databases: Databases, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Proxy]:
    with served(Vendors) as url:
        apis: dict[str, Any] = {name: {"base_url": url + path} for name, path in BASES.items()}
        apis["openai"]["headers"] = {"OpenAI-Organization": "org-1", "X-Tenant": "one"}
        apis["searched"] = {"base_url": url, "auth": "query", "allowed_endpoints": ["/v1/chat/completions"]}
        with _proxy(databases, tmp_path_factory.mktemp("vendors"), apis, {}) as running:
            yield running


@pytest.fixture(scope="module")
def keyless(databases: Databases, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Proxy]:
    """A server whose credentials are documents: of a service account of Google, and of keys that sign."""
    folder = tmp_path_factory.mktemp("keyless")
    with served(Vendors) as url:
        apis = {"vertex": {"base_url": url + LOCATION}, "bedrock": {"base_url": url, "auth": "sigv4"}}
        keys = {
            "vertex": json.dumps(DOCUMENTS["google"](url, folder)),
            "bedrock": json.dumps({"region": "us-east-1", **KEYS}),
        }
        with _proxy(databases, folder, apis, keys) as running:
            yield running


@pytest.fixture(autouse=True)
def _forget() -> None:
    Vendors.seen.clear()


def sent(path: str, header: str = "authorization", value: str = f"Bearer {UPSTREAM_KEY}") -> None:
    """The last request had this path, and the key of `value` in this header and nowhere else."""
    target, headers = Vendors.seen[-1]
    assert target == path
    assert headers[header] == value
    everywhere, key = [target, *headers.values()], value.removeprefix("Bearer ")
    assert sum(key in text for text in everywhere) == 1
    assert not any("sk-" in text.replace(key, "") for text in everywhere)


@pytest.mark.parametrize(
    ("provider", "base", "target"),
    [
        ("openai", "/openai/v1", "/v1/chat/completions"),
        ("gemini", "/gemini/v1beta/openai", "/v1beta/openai/chat/completions"),
        ("openrouter", "/openrouter/v1", "/api/v1/chat/completions"),
        ("openrouter", "/openrouter/api/v1", "/api/v1/chat/completions"),
        ("groq", "/groq/openai/v1", "/openai/v1/chat/completions"),
        ("mistral", "/v1", "/v1/chat/completions"),
        ("deepseek", "/deepseek", "/chat/completions"),
        ("xai", "/xai/v1", "/v1/chat/completions"),
        ("together", "/together/v1", "/v1/chat/completions"),
        ("cohere", "/cohere/compatibility/v1", "/compatibility/v1/chat/completions"),
        ("ollama", "/ollama/v1", "/v1/chat/completions"),
        ("vllm", "/vllm/v1", "/v1/chat/completions"),
        ("bedrock", "/bedrock/openai/v1", "/openai/v1/chat/completions"),
    ],
)
def test_openais_sdk_works_with_providers_that_have_its_api(
    proxy: Proxy, provider: str, base: str, target: str
) -> None:
    client: Any = openai.OpenAI(base_url=proxy.at(base), api_key=proxy.tokens[provider], max_retries=0)
    assert client.chat.completions.create(model="m", messages=ASK).choices[0].message.content == "Hi"
    sent(target)
    pieces = client.chat.completions.create(model="m", messages=ASK, stream=True)
    assert "".join(piece.choices[0].delta.content or "" for piece in pieces) == "Hi"
    with pytest.raises(openai.RateLimitError, match="Too busy"):
        client.chat.completions.create(model=BUSY, messages=ASK)
    with pytest.raises(openai.AuthenticationError) as caught:
        client.with_options(api_key=UNKNOWN).chat.completions.create(model="m", messages=ASK)
    assert caught.value.code == "token_invalid"
    assert len(Vendors.seen) == 3


def _messages(client: Any) -> None:
    """A message, a stream of one, and an error of the provider, with a client of Anthropic."""
    ask: Any = {"max_tokens": 9, "messages": ASK}
    with client.messages.stream(model="m", **ask) as stream:
        assert "".join(stream.text_stream) == "Hi"
    with pytest.raises(anthropic.RateLimitError, match="Too busy"):
        client.messages.create(model=BUSY, **ask)
    assert client.messages.create(model="m", **ask).content[0].text == "Hi"


@pytest.mark.parametrize(
    ("provider", "base", "target", "header"),
    [
        ("anthropic", "/anthropic", "/v1/messages", "x-api-key"),
        ("deepseek", "/deepseek/anthropic", "/anthropic/v1/messages", "authorization"),
        ("openrouter", "/openrouter/api", "/api/v1/messages", "authorization"),
        ("bedrock", "/bedrock/anthropic", "/anthropic/v1/messages", "authorization"),
    ],
)
def test_anthropics_sdk_works_with_providers_that_have_its_api(
    proxy: Proxy, provider: str, base: str, target: str, header: str
) -> None:
    client: Any = anthropic.Anthropic(base_url=proxy.at(base), api_key=proxy.tokens[provider], max_retries=0)
    _messages(client)
    sent(target, header, UPSTREAM_KEY if header == "x-api-key" else f"Bearer {UPSTREAM_KEY}")
    with pytest.raises(anthropic.AuthenticationError, match="is unknown"):
        client.with_options(api_key=UNKNOWN).messages.create(model="m", max_tokens=9, messages=ASK)


def test_one_token_works_with_the_sdks_of_two_providers(proxy: Proxy) -> None:
    keys = {provider: f"sk-one-token-at-{provider}" for provider in ("openai", "anthropic")}
    for provider, key in keys.items():
        proxy.server.manage("POST", "/credentials", {"name": f"key-{provider}", "provider": provider, "api_key": key})
    names = [f"key-{provider}" for provider in keys]
    project = proxy.server.manage("POST", "/projects", {"name": "two", "provider": "openai", "credentials": names})
    token = proxy.server.manage("POST", "/tokens", {"project_id": project["id"]})["token"]
    gpt: Any = openai.OpenAI(base_url=proxy.at("/v1"), api_key=token, max_retries=0)
    assert gpt.chat.completions.create(model="m", messages=ASK).choices[0].message.content == "Hi"
    sent("/v1/chat/completions", value=f"Bearer {keys['openai']}")
    claude: Any = anthropic.Anthropic(base_url=proxy.at(""), api_key=token, max_retries=0)
    assert claude.messages.create(model="m", max_tokens=9, messages=ASK).content[0].text == "Hi"
    sent("/v1/messages", "x-api-key", keys["anthropic"])
    # A credential that is not that of the project's default provider is deactivated for the next request, too.
    proxy.server.manage("PATCH", "/credentials/key-anthropic", {"active": False})
    with pytest.raises(anthropic.PermissionDeniedError, match="deactivated"):
        claude.messages.create(model="m", max_tokens=9, messages=ASK)
    assert gpt.chat.completions.create(model="m", messages=ASK).choices[0].message.content == "Hi"


def test_azures_client_works(proxy: Proxy) -> None:
    options: Any = {"azure_endpoint": proxy.at("/azure"), "api_version": "2024-10-21", "max_retries": 0}
    client: Any = openai.AzureOpenAI(api_key=proxy.tokens["azure"], **options)
    assert client.chat.completions.create(model="d", messages=ASK).choices[0].message.content == "Hi"
    sent("/openai/deployments/d/chat/completions?api-version=2024-10-21", "api-key", UPSTREAM_KEY)
    pieces = client.chat.completions.create(model="d", messages=ASK, stream=True)
    assert "".join(piece.choices[0].delta.content or "" for piece in pieces if piece.choices) == "Hi"
    with pytest.raises(openai.RateLimitError, match="Too busy"):
        client.chat.completions.create(model=BUSY, messages=ASK)
    with pytest.raises(openai.AuthenticationError):
        openai.AzureOpenAI(api_key=UNKNOWN, **options).chat.completions.create(model="d", messages=ASK)


def test_googles_sdk_works(proxy: Proxy) -> None:
    options: Any = {"base_url": proxy.at("/gemini")}
    client: Any = genai.Client(api_key=proxy.tokens["gemini"], http_options=options)
    assert client.models.generate_content(model="m", contents="Hello").text == "Hi"
    sent("/v1/models/m:generateContent", "x-goog-api-key", UPSTREAM_KEY)
    pieces = client.models.generate_content_stream(model="m", contents="Hello")
    assert "".join(piece.text or "" for piece in pieces) == "Hi"
    sent("/v1/models/m:streamGenerateContent?alt=sse", "x-goog-api-key", UPSTREAM_KEY)
    with pytest.raises(genai.errors.ClientError, match="Too busy"):
        client.models.generate_content(model=BUSY, contents="Hello")
    unknown: Any = genai.Client(api_key=UNKNOWN, http_options=options)
    with pytest.raises(genai.errors.ClientError, match="is unknown") as caught:
        unknown.models.generate_content(model="m", contents="Hello")
    assert (caught.value.code, caught.value.status) == (401, "UNAUTHENTICATED")


def test_mistrals_sdk_works(proxy: Proxy) -> None:
    client: Any = mistralai.client.Mistral(api_key=proxy.tokens["mistral"], server_url=proxy.at("/mistral"))
    assert client.chat.complete(model="m", messages=ASK).choices[0].message.content == "Hi"
    sent("/v1/chat/completions")
    assert next(event.data.choices[0].delta.content for event in client.chat.stream(model="m", messages=ASK)) == "Hi"
    with pytest.raises(SDKError, match="Too busy"):
        client.chat.complete(model=BUSY, messages=ASK)
    unknown: Any = mistralai.client.Mistral(api_key=UNKNOWN, server_url=proxy.at("/mistral"))
    with pytest.raises(SDKError, match="is unknown"):
        unknown.chat.complete(model="m", messages=ASK)


def test_groqs_sdk_works(proxy: Proxy) -> None:
    client: Any = groq.Groq(api_key=proxy.tokens["groq"], base_url=proxy.at("/groq"), max_retries=0)
    assert client.chat.completions.create(model="m", messages=ASK).choices[0].message.content == "Hi"
    sent("/openai/v1/chat/completions")
    pieces = client.chat.completions.create(model="m", messages=ASK, stream=True)
    assert "".join(piece.choices[0].delta.content or "" for piece in pieces) == "Hi"
    with pytest.raises(groq.RateLimitError, match="Too busy"):
        client.chat.completions.create(model=BUSY, messages=ASK)
    with pytest.raises(groq.AuthenticationError, match="is unknown"):
        client.with_options(api_key=UNKNOWN).chat.completions.create(model="m", messages=ASK)


def test_coheres_sdk_works(proxy: Proxy) -> None:
    make: Any = partial(cohere.ClientV2, base_url=proxy.at("/cohere"))
    # Its clients leave their connections open when they are collected.
    with make(proxy.tokens["cohere"]) as client, make(UNKNOWN) as unknown:
        assert client.chat(model="m", messages=ASK).message.content[0].text == "Hi"
        sent("/v2/chat")
        events = list(client.chat_stream(model="m", messages=ASK))
        assert events[0].delta.message.content.text == "Hi"
        with pytest.raises(cohere.TooManyRequestsError, match="Too busy"):
            client.chat(model=BUSY, messages=ASK, request_options={"max_retries": 0})
        with pytest.raises(ApiError) as caught:
            unknown.chat(model="m", messages=ASK)
    assert caught.value.status_code == 401
    assert "is unknown" in str(caught.value)


def _converses(client: Any) -> None:
    ask = {"modelId": "anthropic.claude-v1:0", "messages": [{"role": "user", "content": [{"text": "Hello"}]}]}
    assert client.converse(**ask)["output"]["message"]["content"][0]["text"] == "Hi"
    assert Vendors.seen[-1][0] == "/model/anthropic.claude-v1%3A0/converse"
    events = [event for event in client.converse_stream(**ask)["stream"] if "contentBlockDelta" in event]
    assert events[0]["contentBlockDelta"]["delta"]["text"] == "Hi"
    assert Vendors.seen[-1][0] == "/model/anthropic.claude-v1%3A0/converse-stream"


def test_boto3_works_with_the_token_as_bedrocks_api_key(proxy: Proxy, monkeypatch: pytest.MonkeyPatch) -> None:
    TlsFront.context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    TlsFront.context.load_cert_chain(proxy.authority.issue("localhost", "localhost"))
    TlsFront.port = proxy.server.port
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), TlsFront) as front:
        front.daemon_threads = True
        threading.Thread(target=front.serve_forever, daemon=True).start()
        options: Any = {
            "endpoint_url": f"https://localhost:{front.server_address[1]}/bedrock",
            "region_name": "us-east-1",
            "verify": str(proxy.authority.file),
        }
        monkeypatch.setenv("AWS_BEARER_TOKEN_BEDROCK", proxy.tokens["bedrock"])
        # It would ask for other credentials beyond this machine.
        monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        _converses(boto3.client("bedrock-runtime", **options))
        sent("/model/anthropic.claude-v1%3A0/converse-stream")
        monkeypatch.setenv("AWS_BEARER_TOKEN_BEDROCK", UNKNOWN)
        client: Any = boto3.client("bedrock-runtime", **options)
        with pytest.raises(client.exceptions.AccessDeniedException, match="is unknown"):
            client.converse(modelId="m", messages=[{"role": "user", "content": [{"text": "Hello"}]}])
        front.shutdown()


def _boto3(proxy: Proxy, token: str) -> Any:
    """A client of Bedrock that signs nothing and has its token in a header."""
    options = botocore.config.Config(signature_version=botocore.UNSIGNED, retries={"max_attempts": 1})
    client: Any = boto3.client(
        "bedrock-runtime", endpoint_url=proxy.at("/bedrock"), region_name="us-east-1", config=options
    )

    def add_token(params: dict[str, Any], **_: Any) -> None:
        params["headers"]["x-api-key"] = token

    client.meta.events.register("before-call.bedrock-runtime", add_token)
    return client


def test_boto3_works_without_tls_with_the_token_in_a_header(proxy: Proxy) -> None:
    _converses(_boto3(proxy, proxy.tokens["bedrock"]))
    sent("/model/anthropic.claude-v1%3A0/converse-stream")


def test_boto3_works_with_a_credential_that_signs(keyless: Proxy) -> None:
    client, ask = _boto3(keyless, keyless.tokens["bedrock"]), [{"role": "user", "content": [{"text": "Hello"}]}]
    _converses(client)
    for _, headers in Vendors.seen:
        assert headers["authorization"].startswith(f"AWS4-HMAC-SHA256 Credential={KEYS['access_key_id']}/")
        assert not any("sk-" in value or KEYS["secret_access_key"] in value for value in headers.values())
    with pytest.raises(client.exceptions.ThrottlingException, match="Too busy"):
        client.converse(modelId=BUSY, messages=ask)
    seen = len(Vendors.seen)
    unknown = _boto3(keyless, UNKNOWN)
    with pytest.raises(unknown.exceptions.AccessDeniedException, match="is unknown"):
        unknown.converse(modelId="m", messages=ask)
    assert len(Vendors.seen) == seen


def _vertex(proxy: Proxy, token: str) -> Any:
    """Google's client of Vertex, with the token in the place of Google's own."""
    return genai.Client(
        vertexai=True,
        project="project-1",
        location="us-central1",
        credentials=Credentials(token=token),  # type: ignore[no-untyped-call] # google-auth has no types
        http_options={"base_url": proxy.at("/vertex"), "api_version": "v1"},
    )


def test_googles_sdk_works_with_vertex(keyless: Proxy) -> None:
    Vendors.exchanged.clear()
    client, models = _vertex(keyless, keyless.tokens["vertex"]), f"{LOCATION}/publishers/google/models"
    assert client.models.generate_content(model="m", contents="Hello").text == "Hi"
    sent(f"{models}/m:generateContent", value=f"Bearer {TOKEN}")
    pieces = client.models.generate_content_stream(model="m", contents="Hello")
    assert "".join(piece.text or "" for piece in pieces) == "Hi"
    sent(f"{models}/m:streamGenerateContent?alt=sse", value=f"Bearer {TOKEN}")
    # One exchange serves all requests.
    assert len(Vendors.exchanged) <= 1
    with pytest.raises(genai.errors.ClientError, match="Too busy") as busy:
        client.models.generate_content(model=BUSY, contents="Hello")
    assert busy.value.status == "RESOURCE_EXHAUSTED"
    seen, unknown = len(Vendors.seen), _vertex(keyless, UNKNOWN)
    with pytest.raises(genai.errors.ClientError, match="is unknown") as caught:
        unknown.models.generate_content(model="m", contents="Hello")
    assert (caught.value.code, caught.value.status) == (401, "UNAUTHENTICATED")
    assert len(Vendors.seen) == seen


def test_a_client_of_vertex_cannot_choose_another_project_of_google(keyless: Proxy) -> None:
    client = _vertex(keyless, keyless.tokens["vertex"])
    with pytest.raises(genai.errors.ClientError, match="not available with this token"):
        client.models.generate_content(
            model="projects/other/locations/us-central1/publishers/google/models/m", contents="a"
        )
    assert Vendors.seen == []


def test_anthropics_client_of_vertex_works(keyless: Proxy) -> None:
    options: Any = {"base_url": keyless.at("/vertex/v1"), "project_id": "project-1", "region": "us-central1"}
    client: Any = anthropic.AnthropicVertex(access_token=keyless.tokens["vertex"], max_retries=0, **options)
    _messages(client)
    sent(f"{LOCATION}/publishers/anthropic/models/m:rawPredict", value=f"Bearer {TOKEN}")
    unknown: Any = anthropic.AnthropicVertex(access_token=UNKNOWN, max_retries=0, **options)
    with pytest.raises(anthropic.AuthenticationError, match="is unknown"):
        unknown.messages.create(model="m", max_tokens=9, messages=ASK)


def _post(proxy: Proxy, target: str) -> tuple[int, str]:
    """A request without any header that a token could be in."""
    connection = http.client.HTTPConnection(proxy.server.host, proxy.server.port)
    try:
        connection.request("POST", target, b"{}", {"content-type": "application/json"})
        response = connection.getresponse()
        return response.status, response.read().decode()
    finally:
        connection.close()


@pytest.mark.parametrize(
    ("provider", "path", "status", "forwarded"),
    [
        (
            "gemini",
            "/gemini/v1beta/models/m:generateContent?a=%20&key={}&b",
            200,
            "/v1beta/models/m:generateContent?a=%20&b",
        ),
        ("gemini", "/gemini/v1beta/models/m:generateContent?%6bey={}", 200, "/v1beta/models/m:generateContent"),
        ("searched", "/searched/v1/chat/completions?key={}&a", 200, f"/v1/chat/completions?a&key={UPSTREAM_KEY}"),
        ("gemini", "/gemini/v1beta/nothing?key={}", 404, None),
        ("gemini", "/gemini/v1beta/models/..?key={}", 400, None),
        ("openai", "/openai/v1/chat/completions?key={}", 401, None),
    ],
)
def test_a_token_in_the_query_is_read_and_removed(
    proxy: Proxy, provider: str, path: str, status: int, forwarded: str | None
) -> None:
    token = proxy.tokens[provider]
    answered, body = _post(proxy, path.format(token))
    assert answered == status
    assert [target for target, _ in Vendors.seen] == ([] if forwarded is None else [forwarded])
    assert token not in body
    assert token not in json.dumps(proxy.server.manage("GET", "/requests"))


def test_a_client_cannot_override_a_header_of_the_entry(proxy: Proxy) -> None:
    client: Any = openai.OpenAI(
        base_url=proxy.at("/openai/v1"), api_key=proxy.tokens["openai"], organization="org-2", max_retries=0
    )
    others = {"openai_organization": "org-3", "x-tenant": "two", "x_tenant": "three"}
    client.chat.completions.create(model="m", messages=ASK, extra_headers=others)
    set_by_entry = [
        (name, value) for name, value in Vendors.seen[-1][1].items() if "organiz" in name or "tenant" in name
    ]
    assert set_by_entry == [("openai-organization", "org-1"), ("x-tenant", "one")]
