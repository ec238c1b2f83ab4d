from __future__ import annotations

import socket
import ssl
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
from attrs import Factory, define

from llm_proxy import __version__
from llm_proxy.cli.client import ManagementClient
from llm_proxy.cli.failures import CannotConnect, CommandFailed, NotAuthorised
from tests.harness.certificates import Authority


@define
class Server:
    """Answers every request with the same response and keeps what it was asked."""

    http: HTTPServer
    url: str = ""
    status: int = 200
    body: bytes = b"{}"
    headers: dict[str, str] = Factory(lambda: {"X-LLM-Proxy-Request-ID": "r1"})
    asked: list[tuple[str, str, dict[str, str], bytes]] = Factory(list)


@pytest.fixture
def server() -> Iterator[Server]:
    class Handler(BaseHTTPRequestHandler):
        def answer(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            answers.asked.append((self.command, self.path, dict(self.headers.items()), body))
            self.send_response(answers.status)
            self.send_header("Content-Length", str(len(answers.body)))
            for name, value in answers.headers.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(answers.body)

        do_GET = do_POST = do_PATCH = do_DELETE = answer  # noqa: N815 (the names that the class looks for)

        def log_message(self, *arguments: object) -> None:
            """Keep quiet."""

    with HTTPServer(("127.0.0.1", 0), Handler) as http:
        answers = Server(http, f"http://127.0.0.1:{http.server_port}")
        thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield answers
        http.shutdown()
        thread.join()


def test_what_is_sent(server: Server) -> None:
    with ManagementClient(server.url, "secret") as client:
        client.get("/manage/tokens", project_id="p q", cursor=None, limit=5)
        client.post("/manage/projects", {"name": "n"})

    (get, get_path, headers, _), (post, post_path, _, body) = server.asked
    assert (get, get_path) == ("GET", "/manage/tokens?project_id=p+q&limit=5")
    assert (post, post_path, body) == ("POST", "/manage/projects", b'{"name":"n"}')
    assert headers["Authorization"] == "Bearer secret"
    assert headers["User-Agent"] == f"llm-proxy/{__version__}"


def test_what_comes_back(server: Server) -> None:
    server.body = b'{"id": "x"}'
    with ManagementClient(server.url, "secret") as client:
        assert client.patch("/x", {}) == {"id": "x"}
        server.body = b""
        server.status = 204
        assert client.delete("/x") is None


LISTED = "'llm-proxy manage project list' shows those that exist"


@pytest.mark.parametrize(
    ("status", "body", "message"),
    [
        (404, b'{"error":"no such project","code":"project_not_found"}', f"no such project; {LISTED}"),
        (
            404,
            b'{"error":"nothing here","code":"not_found"}',
            "{url} does not know this ID; check the ID and --manage-api-base-url",
        ),
        (400, b'{"error":"wrong","code":"x","description":"Name is empty."}', "wrong: Name is empty"),
        (400, b'{"error":"wrong","code":"invalid_body","description":"Name is empty."}', "Name is empty"),
        (
            409,
            b'{"error":"wrong","code":"project_inactive","description":"PATCH it."}',
            "the project is inactive; activate it with 'llm-proxy manage project activate'",
        ),
        (500, b"oops", "{url} answered with HTTP status 500"),
        (
            400,
            b'{"error":{"message":"The path is odd.","type":"x","param":null,"code":"invalid_path"}}',
            "The path is odd",
        ),
        (500, b"[]", "{url} answered with HTTP status 500"),
        (302, b"", "{url} answered with HTTP status 302"),
        (
            400,
            b'{"error":"wrong","code":"invalid_body","description":"\'duration_minutes\' must be x; \'name\' is y."}',
            "--duration must be x; --name is y",
        ),
        (
            400,
            b'{"error":"wrong","code":"invalid_body","description":"\'labels\' must have letters, \'_\' and \'-\'."}',
            "--label must have letters, '_' and '-'",
        ),
        (
            400,
            b'{"error":"wrong","code":"invalid_body","description":"\'api_key\': \'client_id\' is missing."}',
            "--api-key: 'client_id' is missing",
        ),
    ],
)
def test_a_refusal_is_one_line_with_a_remedy(server: Server, status: int, body: bytes, message: str) -> None:
    server.status, server.body = status, body

    with ManagementClient(server.url, "secret") as client, pytest.raises(CommandFailed) as caught:
        client.get("/x")

    assert caught.value.message == message.format(url=server.url)
    assert caught.value.exit_code == 1


@pytest.mark.parametrize("body", [b"<html>", b"{}", b'{"data": "x"}', b"[1]", b"null"])
def test_the_answer_of_another_server_is_not_read(server: Server, body: bytes) -> None:
    server.body, server.headers = body, {}

    with ManagementClient(server.url, "secret") as client, pytest.raises(CommandFailed) as caught:
        client.get("/manage/projects")

    assert caught.value.message == (
        f"{server.url} does not answer like an llm-proxy server; check --manage-api-base-url"
    )


@pytest.mark.parametrize("status", [302, 401, 404])
def test_the_refusal_of_another_server_is_told_from_one_of_a_proxy(server: Server, status: int) -> None:
    server.status, server.headers = status, {}

    with ManagementClient(server.url, "secret") as client, pytest.raises(CommandFailed) as caught:
        client.get("/manage/projects")

    assert caught.value.message == (
        f"{server.url} answered {status} and is not an llm-proxy server; check --manage-api-base-url or LLM_PROXY_URL"
    )


@pytest.mark.parametrize("status", [401, 403])
def test_a_refused_token_is_its_own_failure(server: Server, status: int) -> None:
    server.status = status

    with ManagementClient(server.url, "canary") as client, pytest.raises(NotAuthorised) as caught:
        client.get("/x")

    assert (
        caught.value.message
        == f"the management token is wrong for {server.url}; set MANAGEMENT_TOKEN to that server's token"
    )
    assert "canary" not in repr(caught.value)


def test_nobody_there() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"

    with ManagementClient(url, "secret") as client, pytest.raises(CannotConnect) as caught:
        client.get("/x")

    assert caught.value.message == (
        f"cannot connect to {url} (Connection refused); is the server running, and --manage-api-base-url right?"
    )


def test_a_proxy_of_the_environment_is_not_for_this_machine(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")

    with ManagementClient(server.url, "secret") as client:
        assert client.get("/x") == {}


def test_a_list_that_breaks_off_is_an_error(server: Server) -> None:
    server.body = b'"id"\r\n'
    with ManagementClient(server.url, "secret") as client:
        assert "".join(client.csv("/manage/audit", actor=None)) == '"id"\r\n'
        assert server.asked[0][2]["Accept"] == "text/csv"
        server.headers = server.headers | {"Transfer-Encoding": "chunked"}
        with pytest.raises(CannotConnect, match="ended its response early: the list is not complete"):
            list(client.csv("/manage/audit"))


def test_a_server_on_this_machine_may_have_a_certificate_of_one_s_own_authority(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    authority = Authority.make(tmp_path)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(authority.issue("server", "127.0.0.1"))
    server.http.socket = context.wrap_socket(server.http.socket, server_side=True)
    url = server.url.replace("http:", "https:")
    with (
        ManagementClient(url, "secret") as client,
        pytest.raises(CannotConnect, match="TLS: certificate verify"),
    ):
        client.get("/manage/tokens")
    monkeypatch.setenv("SSL_CERT_FILE", str(authority.file))
    with ManagementClient(url, "secret") as client:
        assert client.get("/manage/tokens") == {}
