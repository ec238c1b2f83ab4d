from __future__ import annotations

import http.server
import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import trustme
from click.testing import Result

from benchmarks.processes import Upstream
from tests.cli.conftest import Run
from tests.harness.deployment import Deployment, provider_settings
from tests.harness.server import ROOT, running_server

CHAT = "/v1/chat/completions"


@pytest.fixture(scope="module")
def module_proxy(tmp_path_factory: pytest.TempPathFactory, session_upstream: Upstream) -> Iterator[Deployment]:
    """A server on SQLite, shared by this module's tests."""
    env = {"DATABASE_PATH": str(tmp_path_factory.mktemp("benchmark") / "proxy.db")}
    with running_server(env, provider_settings(session_upstream)) as server:
        yield Deployment(server, session_upstream)


@pytest.fixture
def proxy(module_proxy: Deployment, upstream: Upstream) -> Deployment:
    """The server, with the upstream's counts at zero."""
    return module_proxy


@pytest.fixture
def benchmark(run: Run, proxy: Deployment) -> Run:
    """Run `llm-proxy benchmark` against the server, with a token of its own in the environment."""
    secret = proxy.new_secret()

    def invoke(*arguments: str, token: str = secret, **options: Any) -> Result:
        result = run("benchmark", "--base-url", proxy.server.url, *arguments, env={"LLM_PROXY_TOKEN": token}, **options)
        assert token not in result.output
        return result

    return invoke


def sent(proxy: Deployment) -> list[dict[str, Any]]:
    return [request for request in proxy.upstream.requests() if request["method"] != "GET"]


def test_the_defaults_send_two_hundred_small_requests(benchmark: Run, proxy: Deployment) -> None:
    result = benchmark()

    assert result.exit_code == 0, result.output
    assert result.stderr == (
        f"Sending 200 requests to {proxy.server.url}{CHAT}. They are real, and charged to the token.\n"
    )
    assert re.match(r"200 answers in \d+\.\d s over 10 connections: [\d,.]+ requests/s\n", result.stdout)
    assert re.search(r"^ +p50 +p90 +p95 +p99 +p99\.9 +max$", result.stdout, re.MULTILINE)
    assert re.search(r"^latency +[\d.]+ m?s", result.stdout, re.MULTILINE)
    assert re.search(r"^first byte +[\d.]+ m?s", result.stdout, re.MULTILINE)
    assert "gap" not in result.stdout
    assert re.search(r"kB received; the load generator used \d+% of a core\.\n$", result.stdout)
    assert max(map(len, result.stdout.splitlines())) <= 80
    assert proxy.upstream.counts()["requests"] == 200
    assert "\x1b" not in result.output


def test_json_has_the_measurements(benchmark: Run, proxy: Deployment) -> None:
    result = benchmark("--json", "-n", "20", "-c", "3")

    report = json.loads(result.stdout)
    assert (report["requests"], report["connections"], report["errors"]) == (20, 3, {})
    assert (report["url"], report["interrupted"], report["unfinished"]) == (proxy.server.url + CHAT, False, 0)
    assert report["latency_ms"]["p50"] <= report["latency_ms"]["max"]
    assert report["first_byte_ms"]["mean"] <= report["latency_ms"]["mean"]


def test_streams_have_gaps(benchmark: Run) -> None:
    result = benchmark("--stream", "-n", "5", "--header", "x-scripted-gap: 0.002")

    assert result.exit_code == 0
    assert re.search(r"^gap in streams +[\d.]+ m?s", result.stdout, re.MULTILINE)


def test_a_rate_shows_what_was_intended(benchmark: Run, proxy: Deployment) -> None:
    result = benchmark("--rate", "100", "--duration", "300ms", "--arrivals", "even")

    assert result.exit_code == 0
    assert "Sending 30 requests within 0.3 s to" in result.stderr
    assert "over 10 connections, 100 requests/s intended" in result.stdout
    assert re.search(r"^latency as intended +[\d.]+ m?s", result.stdout, re.MULTILINE)
    assert re.search(r"^latency as sent +[\d.]+ m?s", result.stdout, re.MULTILINE)
    assert proxy.upstream.counts()["requests"] == 30


def test_a_duration_ends_the_run(benchmark: Run) -> None:
    result = benchmark("-d", "200ms", "--json")

    assert "Sending as many requests as possible within 0.2 s to" in result.stderr
    assert json.loads(result.stdout)["requests"] > 3


def test_too_few_connections_for_a_rate_are_pointed_out(benchmark: Run) -> None:
    result = benchmark("--rate", "1000", "-n", "20", "-c", "1", "--header", "x-scripted-delay: 0.01")

    assert re.search(r"^warning: \d+ requests waited for a free connection", result.stderr, re.MULTILINE)


def test_model_body_path_and_method_can_be_chosen(benchmark: Run, proxy: Deployment, folder: Path) -> None:
    benchmark("-n", "1", "--model", "gpt-scripted", "--header", "X-Team: blue")
    (folder / "body.json").write_text('{"model": "gpt-scripted", "messages": []}')
    benchmark("-n", "1", "--body", "body.json")
    benchmark("-n", "1", "--path", "/v1/models", "--method", "get")

    first, second, third = proxy.upstream.requests()
    assert first["target"] == CHAT
    assert ["x-team", "blue"] in [[name.lower(), value] for name, value in first["headers"]]
    assert (second["method"], third["method"], third["target"]) == ("POST", "GET", "/v1/models")


def test_a_base_url_that_ends_in_v1_is_accepted(run: Run, proxy: Deployment) -> None:
    result = run("benchmark", "--base-url", f"{proxy.server.url}/v1", "--token", proxy.new_secret(), "-n", "1")

    assert result.exit_code == 0
    assert f"to {proxy.server.url}{CHAT}." in result.stderr


def test_errors_are_listed_by_status_and_code(benchmark: Run, proxy: Deployment) -> None:
    result = benchmark("-n", "7", "-c", "1", token=proxy.new_secret(max_requests=3))

    assert result.exit_code == 1
    assert "7 answers in" in result.stdout
    assert ", 4 failed\n" in result.stdout
    assert "\nCOUNT  ERROR\n    4  429 request_limit_exceeded\n" in result.stdout


def test_incomplete_answers_are_listed_with_a_reason(benchmark: Run) -> None:
    result = benchmark("-n", "3", "--stream", "--header", "x-scripted-abort: 2")

    assert result.exit_code == 1
    assert "\n    3  the connection was closed before the answer was complete\n" in result.stdout


def test_a_token_that_is_rejected_ends_the_run_at_once(benchmark: Run, proxy: Deployment) -> None:
    result = benchmark(token="sk-" + "x" * 43)

    assert (result.exit_code, result.stdout) == (3, "")
    reason = "The API token is unknown. Ask the operator of this proxy for a new one"
    assert result.stderr.splitlines()[1:] == [f"error: {proxy.server.url} refused the token: {reason}"]
    assert proxy.upstream.counts()["requests"] == 0


def test_a_token_in_an_error_message_of_the_server_is_not_shown(run: Run) -> None:
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.dumps({"error": {"message": f"bad: {self.headers['Authorization']}\x1b[2J"}}).encode()
            self.send_response(403)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *values: object) -> None:  # noqa: A002 (the standard library's name)
            """Say nothing."""

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}).start()
        try:
            result = run("benchmark", "--base-url", f"http://127.0.0.1:{server.server_port}", "--token", "canary")
        finally:
            server.shutdown()

    assert result.exit_code == 3
    assert result.stderr.endswith("refused the token: bad: Bearer …\\x1b[2J\n")


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (
            ("--base-url", "localhost"),
            "Invalid value for '--base-url': 'localhost' is not an http or https URL without user",
        ),
        (
            ("--base-url", "http://u:canary@h"),
            "Invalid value for '--base-url': (hidden) is not an http or https URL without user",
        ),
        (("--path", "v1"), "--path 'v1' is not a path; it must start with / and must not contain a space or #"),
        (("--path", "/v1/a b"), "--path '/v1/a b' is not a path"),
        (("--path", "/v1/files"), "there is no default body for /v1/files; give one with --body"),
        (("--method", "P OST"), "--method 'P OST' is not a method that the proxy forwards, e.g. POST"),
        (("--header", "canary"), "the value of --header is not a header; write it as 'NAME: VALUE'"),
        (("--header", "X: a\r\nY: b"), "this cannot be sent: 'X' contains a line break or a NUL"),
        (("--header", "Authorization: canary"), "--header cannot replace Authorization, which the command sets itself"),
        (("--body", "pyproject.toml"), "Invalid value for '--body': File 'pyproject.toml' does not exist"),
        (
            ("--body", "empty", "--stream"),
            "--model and --stream change the default body only; put both into the file of --body",
        ),
        (("--duration", "soon"), "Invalid value for '--duration' / '-d': 'soon' is not a duration above zero such as"),
        (("--rate", "0"), "Invalid value for '--rate': 0.0 is not in the range x>0"),
        (("-n", "0"), "Invalid value for '--requests' / '-n': 0 is not in the range x>=1"),
        (("--base-url", "https://h", "--ca", "empty"), "empty does not contain a certificate in PEM form"),
        (("--base-url", "http://127.0.0.1:9"), "cannot connect to 127.0.0.1:9: connection refused; is the proxy"),
        (("--token", ""), "the token is not set; set LLM_PROXY_TOKEN or --token to a token of the proxy"),
    ],
)
def test_a_wrong_option_is_one_line(run: Run, folder: Path, arguments: tuple[str, ...], line: str) -> None:
    (folder / "empty").touch()

    result = run("benchmark", "--base-url", "http://127.0.0.1:9", "--token", "sk-canary", *arguments)

    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.splitlines()[-1].startswith(f"error: {line}")
    assert "canary" not in result.stderr


def test_tls_with_a_private_authority(run: Run, tmp_path: Path, session_upstream: Upstream, folder: Path) -> None:
    authority = trustme.CA()
    certificate = authority.issue_cert("127.0.0.1")
    certificate.private_key_pem.write_to_path(str(tmp_path / "key.pem"))
    (tmp_path / "key.pem").chmod(0o600)
    certificate.cert_chain_pems[0].write_to_path(str(tmp_path / "cert.pem"))
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    settings = {
        "DATABASE_PATH": str(tmp_path / "proxy.db"),
        "ENABLE_TLS": "true",
        "TLS_CERT_FILE": str(tmp_path / "cert.pem"),
        "TLS_KEY_FILE": str(tmp_path / "key.pem"),
        **provider_settings(session_upstream),
    }
    with running_server(settings, ready=False) as server:
        trusting = ["benchmark", "--base-url", server.url, "--token", "sk-none", "--ca", str(tmp_path / "ca.pem")]
        while (result := run(*trusting)).exit_code == 2 and "connection refused" in result.stderr:
            assert server.process.running
        assert result.exit_code == 3, result.stderr
        result = run("benchmark", "--base-url", server.url, "--token", "sk-none")
        assert result.exit_code == 2
        assert "its certificate is not trusted" in result.stderr
        assert run("benchmark", "--base-url", server.url, "--token", "sk-none", "--insecure").exit_code == 3


def start(proxy: Deployment, *arguments: str, stderr: int = subprocess.PIPE) -> subprocess.Popen[str]:
    """The command in a process of its own, which can be interrupted."""
    return subprocess.Popen(
        [sys.executable, "-m", "llm_proxy", "benchmark", "--base-url", proxy.server.url, *arguments],
        env={"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), "LLM_PROXY_TOKEN": proxy.new_secret()},
        stdout=subprocess.PIPE,
        stderr=stderr,
        text=True,
    )


def test_ctrl_c_shows_the_results_so_far(proxy: Deployment) -> None:
    proxy.upstream.hold()
    process = start(proxy, "-c", "3")
    proxy.upstream.wait(requests=3)
    process.send_signal(signal.SIGINT)
    output, errors = process.communicate(timeout=30)

    assert process.returncode == 130
    assert output.startswith("0 answers in ")
    assert errors.splitlines()[1:] == ["warning: 3 requests were in flight at the end; they are charged too"]


def test_a_terminal_has_a_bar(proxy: Deployment) -> None:
    ours, theirs = pty.openpty()
    process = start(proxy, "-n", "20", "--header", "x-scripted-delay: 0.02", stderr=theirs)
    os.close(theirs)
    output, _ = process.communicate(timeout=30)
    shown = b""
    while select.select([ours], [], [], 1)[0]:
        try:
            shown += os.read(ours, 65536)
        except OSError:
            break
    os.close(ours)

    assert process.returncode == 0
    assert re.search(rb"Sending  \[#{36}\]  100%", shown)
    assert "\x1b" not in output
