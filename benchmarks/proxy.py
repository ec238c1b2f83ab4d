"""The real `llm-proxy server` as a process, with some calls of the management API."""

from __future__ import annotations

import base64
import http.client
import os
import secrets
import sys
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self
from urllib.parse import urlsplit

import msgspec
from attrs import define
from prometheus_client.parser import text_string_to_metric_families

from benchmarks.ports import free_port
from benchmarks.processes import Process, ProcessFailed, Stoppable

_SERVER = (sys.executable, "-m", "llm_proxy", "server")
_LOOK_EVERY = 0.05
_ERROR_TAIL = 2000


def call(method: str, url: str, body: Any = None, headers: Mapping[str, str] | None = None) -> tuple[int, bytes]:
    """Make one plain HTTP request with an optional JSON body; returns status and body. Raises OSError."""
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=10)
    sent = {"Content-Type": "application/json", **(headers or {})} if body is not None else dict(headers or {})
    try:
        connection.request(method, f"{parts.path}?{parts.query}", msgspec.json.encode(body) if body else None, sent)
        response = connection.getresponse()
        return response.status, response.read()
    finally:
        connection.close()


@define
class Proxy(Stoppable):
    """A running proxy.

    Attributes:
        process: the server process; with several workers, their parent.
        url: its origin, without a trailing slash.
        directory: where its database, key and log files are (`proxy.db`, `proxy.log`, `proxy.err`).
        env: its settings, also for other commands on its database.
    """

    process: Process
    url: str
    directory: Path
    env: dict[str, str]

    @classmethod
    def start(
        cls,
        upstream: str,
        directory: Path,
        env: Mapping[str, str] | None = None,
        *,
        under: Sequence[str] = (),
        timeout: float = 30.0,
    ) -> Self:
        """Start `llm-proxy server` in front of an upstream and wait until `/ready` says 200.

        `env` adds to, or replaces, what is set here: SQLite in `directory`, log at info to a file there. `under` is a
        command that runs the one that follows it, in its own process, such as a tracer.

        Raises ProcessFailed with the end of its stderr when it does not get ready in time.
        """
        port = free_port()
        settings = {
            "LISTEN_ADDR": f"127.0.0.1:{port}",
            "DB_DRIVER": "sqlite",
            "DATABASE_PATH": str(directory / "proxy.db"),
            "MANAGEMENT_TOKEN": secrets.token_urlsafe(32),
            "ENCRYPTION_KEY": base64.b64encode(secrets.token_bytes(32)).decode(),
            "OPENAI_API_URL": upstream,
            "LOG_LEVEL": "info",
            "LOG_FORMAT": "json",
            "LOG_FILE": str(directory / "proxy.log"),
            **(env or {}),
        }
        stderr = directory / "proxy.err"
        process = Process.start([*under, *_SERVER], env=settings, stderr=stderr)
        proxy = cls(process, f"http://127.0.0.1:{port}", directory, settings)
        try:
            proxy._await_ready(timeout)
        except ProcessFailed:
            process.kill()
            raise
        return proxy

    def _await_ready(self, timeout: float) -> None:
        deadline = time.monotonic() + timeout
        seen = "nothing"
        while time.monotonic() < deadline and self.process.running:
            try:
                status, body = call("GET", f"{self.url}/ready")
            except OSError as error:
                seen = str(error)
            else:
                if status == http.HTTPStatus.OK:
                    return
                seen = f"{status} {body.decode(errors='replace')}"
            time.sleep(_LOOK_EVERY)
        errors = (self.directory / "proxy.err").read_text(errors="replace")[-_ERROR_TAIL:]
        raise ProcessFailed(f"llm-proxy did not get ready (last seen: {seen}):\n{errors}")

    def manage(self, method: str, path: str, body: Any = None) -> Any:
        """Call the management API under `/manage`; returns the decoded answer, raises ValueError unless it is 2xx."""
        headers = {"Authorization": f"Bearer {self.env['MANAGEMENT_TOKEN']}"}
        status, answer = call(method, f"{self.url}/manage{path}", body, headers)
        if status // 100 != 2:
            raise ValueError(f"{method} /manage{path}: {status} {answer.decode(errors='replace')}")
        return msgspec.json.decode(answer) if answer else None

    def create_project(self, api_key: str, name: str = "benchmark") -> str:
        """Create a project that owns an API key; returns its id."""
        project = self.manage("POST", "/projects", {"name": name, "provider": "openai", "api_key": api_key})
        return str(project["id"])

    def create_token(self, project_id: str, **fields: Any) -> dict[str, Any]:
        """Create a token; returns it as the API does, its secret under `token`."""
        token: dict[str, Any] = self.manage("POST", "/tokens", {"project_id": project_id, **fields})
        return token

    def metrics(self) -> dict[str, float]:
        """Return what `/metrics` shows, by the names of its samples; those with labels are added up."""
        status, text = call("GET", f"{self.url}/metrics")
        if status != http.HTTPStatus.OK:
            raise ValueError(f"/metrics: {status}")
        found: defaultdict[str, float] = defaultdict(float)
        for family in text_string_to_metric_families(text.decode()):
            for sample in family.samples:
                found[sample.name] += sample.value
        return dict(found)

    def run_command(self, *arguments: str, timeout: float = 60.0) -> int:
        """Run another `llm-proxy` command with the server's settings; returns its exit status."""
        command = [sys.executable, "-m", "llm_proxy", *arguments]
        with Process.start(command, env=self.env, stderr=self.directory / "commands.err") as process:
            return process.wait(timeout)

    def stop(self, timeout: float = 40.0) -> int:
        """End it with SIGTERM; returns its exit status."""
        return self.process.stop(timeout)


def clean_environment() -> None:
    """Remove settings of the developer's shell, so that servers do not inherit them."""
    for name in ("MANAGEMENT_TOKEN", "ENCRYPTION_KEY", "DATABASE_URL", "API_CONFIG_PATH", "WORKERS", "LOG_LEVEL"):
        os.environ.pop(name, None)
