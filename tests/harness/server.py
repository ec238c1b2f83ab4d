"""The proxy as its users run it: `llm-proxy server` in a process of its own, with an environment of its own.

The process is a fork of one that has imported the program, because nearly all of a start would go into imports.

Methods without `async` block. A trio test that itself runs something which the server is waiting for, such as a `Wire`
to its database, uses `ready`, `ended` and `stopped` instead of `wait_ready`, `wait` and `stop`.
"""

from __future__ import annotations

import http.client
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import trio
from attrs import define, field, frozen

from benchmarks.ports import free_port
from benchmarks.processes import Process
from tests.harness import client
from tests.harness.warm import Warm, warm_programs

ROOT = Path(__file__).resolve().parents[2]

MANAGEMENT_TOKEN = "management-token-of-the-tests"
#: base64 of 32 bytes.
ENCRYPTION_KEY = "bGxtLXByb3h5LXRlc3RzLWVuY3J5cHRpb24ta2V5ISE="
#: What a server has in its environment whatever a test says; nothing of the developer's own settings gets through.
_SETTINGS = {
    "MANAGEMENT_TOKEN": MANAGEMENT_TOKEN,
    "ENCRYPTION_KEY": ENCRYPTION_KEY,
    "LOG_FORMAT": "json",
    "LOG_LEVEL": "info",
}
_INHERITED = ("PATH", "TMPDIR", "LANG", "SSL_CERT_FILE")

#: Seconds until a server must be ready, and for one that was told to stop (its grace comes on top).
READY_SECONDS = 30.0
STOP_SECONDS = 15.0
_LOOK_EVERY = 0.02


class ServerFailed(Exception):
    """The server did not do what was waited for; the message ends with its last words."""


@frozen
class Answer:
    """What the server's own endpoints answered: status and JSON (text where it is none)."""

    status: int
    content: Any


@define(eq=False)
class Server:
    """A server process. Use `start_server`, or the fixture `start_server` which stops it at the end of the test."""

    process: Process
    host: str
    port: int
    folder: Path
    settings: Mapping[str, str] = field(repr=False)

    @property
    def url(self) -> str:
        """Its origin, without a trailing slash."""
        scheme = "https" if self.settings.get("ENABLE_TLS") == "true" else "http"
        return f"{scheme}://{self.host}:{self.port}"

    @property
    def pid(self) -> int:
        """The process that was started: with several workers, their supervisor."""
        return self.process.pid

    @property
    def output(self) -> str:
        """Everything that it wrote so far, stdout and stderr together."""
        return (self.folder / "output").read_text(errors="replace")

    @property
    def events(self) -> list[dict[str, Any]]:
        """The lines of its log, read as JSON; other lines are left out."""
        lines = [line for line in self.output.splitlines() if line.startswith("{")]
        return [json.loads(line) for line in lines]

    # Readiness and end.

    def is_ready(self) -> bool:
        """Whether `/ready` answers 200 at this moment."""
        try:
            return self.call("GET", "/ready", timeout=5).status == http.client.OK
        except (OSError, http.client.HTTPException):
            return False

    def wait_ready(self, timeout: float = READY_SECONDS) -> None:
        """Wait until it is ready; raises ServerFailed where it ends first, or takes longer."""
        deadline = time.monotonic() + timeout
        while not self.is_ready():
            self._check_alive(deadline, f"was not ready within {timeout:g} s")
            time.sleep(_LOOK_EVERY)

    async def ready(self, within: float = READY_SECONDS) -> None:
        """`wait_ready` for a test that must go on meanwhile."""
        deadline = time.monotonic() + within
        while not await trio.to_thread.run_sync(self.is_ready):
            self._check_alive(deadline, f"was not ready within {within:g} s")
            await trio.sleep(_LOOK_EVERY)

    def wait_said(self, words: str, timeout: float = READY_SECONDS) -> None:
        """Wait until these words are in its output."""
        deadline = time.monotonic() + timeout
        while words not in self.output:
            self._check_time(deadline, f"did not say {words!r} within {timeout:g} s")
            time.sleep(_LOOK_EVERY)

    def wait(self, timeout: float = STOP_SECONDS) -> int:
        """Wait until it has ended, and return its exit status."""
        deadline = time.monotonic() + timeout
        while self.process.running:
            self._check_time(deadline, f"is still running after {timeout:g} s")
            time.sleep(_LOOK_EVERY)
        return self.process.wait()

    async def ended(self, within: float = STOP_SECONDS) -> int:
        """`wait` for a test that must go on meanwhile."""
        deadline = time.monotonic() + within
        while self.process.running:
            self._check_time(deadline, f"is still running after {within:g} s")
            await trio.sleep(_LOOK_EVERY)
        return self.process.wait()

    def stop(self, timeout: float = STOP_SECONDS) -> int:
        """Tell it to stop (SIGTERM), wait, and return its exit status."""
        self.terminate()
        return self.wait(timeout)

    async def stopped(self, within: float = STOP_SECONDS) -> int:
        """`stop` for a test that must go on meanwhile."""
        self.terminate()
        return await self.ended(within)

    def terminate(self) -> None:
        """Tell it to stop (SIGTERM); it finishes what is running."""
        if self.process.running:
            self.process.signal(signal.SIGTERM)

    def kill(self) -> None:
        """Take it away with its workers (SIGKILL), as a crash would."""
        self.process.kill()

    def pause(self) -> None:
        """Freeze it (SIGSTOP): its sockets stay open and nothing answers."""
        self.process.signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Let it go on (SIGCONT)."""
        self.process.signal(signal.SIGCONT)

    # Its own endpoints.

    def call(
        self,
        method: str,
        path: str,
        content: Any = None,
        *,
        token: str | None = None,
        timeout: float = 30.0,
    ) -> Answer:
        """Send a request to one of the server's own endpoints; `content` travels as JSON, `token` as Bearer."""
        connection = http.client.HTTPConnection(self.host, self.port, timeout=timeout)
        headers = {} if token is None else {"Authorization": f"Bearer {token}"}
        body = None
        if content is not None:
            body = json.dumps(content).encode()
            headers["Content-Type"] = "application/json"
        try:
            connection.request(method, path, body, headers)
            response = connection.getresponse()
            received = response.read()
        finally:
            connection.close()
        try:
            return Answer(response.status, json.loads(received))
        except ValueError:
            return Answer(response.status, received.decode(errors="replace"))

    def manage(self, method: str, path: str, content: Any = None) -> Any:
        """Call the management API (`path` below `/manage`) and return its JSON; raises ServerFailed unless 2xx."""
        answer = self.call(method, f"/manage{path}", content, token=MANAGEMENT_TOKEN)
        if answer.status // 100 != 2:
            raise ServerFailed(f"{method} /manage{path} answered {answer.status}: {answer.content}")
        return answer.content

    async def request(
        self, method: str, target: str, headers: client.Headers = (), body: bytes | None = None
    ) -> client.Response:
        """One request on a connection of its own."""
        return await client.exchange(self.url, method, target, headers, body)

    def _check_alive(self, deadline: float, complaint: str) -> None:
        if not self.process.running:
            raise ServerFailed(f"the server ended with status {self.process.wait()}\n{self._last_words()}")
        self._check_time(deadline, complaint)

    def _check_time(self, deadline: float, complaint: str) -> None:
        if time.monotonic() > deadline:
            raise ServerFailed(f"the server {complaint}\n{self._last_words()}")

    def _last_words(self) -> str:
        return "\n".join(self.output.splitlines()[-40:])


#: Closed at the end of the session.
shared = ExitStack()


@cache
def loaded() -> Warm:
    """The process that servers are forks of."""
    drivers = ("sqlalchemy.dialects.postgresql.pg8000", "sqlalchemy.dialects.mysql.pymysql")
    return shared.enter_context(warm_programs("llm_proxy.cli.commands.server", *drivers))


#: Starts servers that a fixture stops: `start_server(env, {"SHUTDOWN_GRACE": "1s"})`.
StartServer = Callable[..., Server]


@contextmanager
def running_server(
    env: Mapping[str, str],
    settings: Mapping[str, str] | None = None,
    *arguments: str,
    port: int | None = None,
    ready: bool = True,
    program: Sequence[str] = (),
) -> Iterator[Server]:
    """A server, killed at the end if it still runs.

    Args:
        env: where its database is, such as the fixture `migrated_env`.
        settings: further settings, which also replace the harness's own; an empty value takes one away.
        arguments: further arguments of the program.
        port: where to listen on 127.0.0.1; a free one where None.
        ready: wait until it is ready.
        program: a Python module, with its first arguments, that is run in place of a fork: one that serves the same
            application, or the program itself.

    Raises:
        ServerFailed: it was not ready in time.
    """
    listen = free_port() if port is None else port
    with tempfile.TemporaryDirectory(prefix="llm-proxy-server-") as name:
        folder = Path(name)
        wanted = {**_SETTINGS, "LISTEN_ADDR": f"127.0.0.1:{listen}", **env, **(settings or {})}
        wanted = {key: value for key, value in wanted.items() if value}
        inherited = {key: os.environ[key] for key in _INHERITED if key in os.environ}
        with (folder / "output").open("wb") as output:
            environment = {**inherited, "HOME": name, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1", **wanted}
            # A folder of its own, so that no `.env` and no `./data` of a developer come into play.
            if program:
                popen = subprocess.Popen(
                    [sys.executable, "-m", *program, *arguments],
                    cwd=folder,
                    env=environment,
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                )
            else:
                popen = loaded().start(["server", *arguments], folder, environment, output)
        server = Server(Process(popen), "127.0.0.1", listen, folder, wanted)
        try:
            if ready:
                server.wait_ready()
            yield server
        finally:
            if server.process.running:
                server.resume()
            server.kill()
