"""A database server for the tests: one that the environment names, else an installed one, else a container."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from attrs import field, frozen

from tests.databases import programs
from tests.databases.admin import Admin, admin_of
from tests.databases.kinds import Kind

#: Seconds until a server that was started must answer.
_READY_SECONDS = 90.0

_ADVICE = {
    Kind.POSTGRES: "install the package postgresql",
    Kind.MYSQL: "install the package mysql-server (not MariaDB under that name)",
    Kind.MARIADB: "install the package mariadb-server",
}
_IMAGES = {Kind.POSTGRES: "postgres:17", Kind.MYSQL: "mysql:8.4", Kind.MARIADB: "mariadb:11.4"}
_SETTINGS = {
    Kind.POSTGRES: ("POSTGRES_HOST_AUTH_METHOD=trust",),
    Kind.MYSQL: ("MYSQL_ALLOW_EMPTY_PASSWORD=yes",),
    Kind.MARIADB: ("MARIADB_ALLOW_EMPTY_ROOT_PASSWORD=yes",),
}
_PORT = {Kind.POSTGRES: 5432, Kind.MYSQL: 3306, Kind.MARIADB: 3306}
#: The first start pulls an image.
_START_SECONDS = 300


class Missing(Exception):
    """There is no server of this kind; the message says how to get one."""


@frozen
class Container:
    """A running container; Docker removes it and its data when it stops."""

    id: str
    url: str

    def close(self) -> None:
        """Stop it, if it still runs."""
        subprocess.run(["docker", "stop", "--time", "5", self.id], capture_output=True, check=False, timeout=60)


def docker_works() -> bool:
    """Whether Docker is installed and its daemon answers."""
    if shutil.which("docker") is None:
        return False
    try:
        answer = subprocess.run(["docker", "info"], capture_output=True, check=False, timeout=15)
    except subprocess.TimeoutExpired:
        return False
    return answer.returncode == 0


def start_container(kind: Kind) -> Container:
    """Start a server of this kind, published on a free loopback port. It may not answer yet.

    Raises:
        RuntimeError: Docker refused; the message has its error.
    """
    inside = _PORT[kind]
    command = ["docker", "run", "--detach", "--rm", "--publish", f"127.0.0.1::{inside}"]
    for setting in _SETTINGS[kind]:
        command += ["--env", setting]
    # An argument that starts with a dash goes to the server, in all three images.
    limit = ["-c", "max_connections=300"] if kind is Kind.POSTGRES else ["--max-connections=300"]
    container = _docker([*command, _IMAGES[kind], *limit])
    published = _docker(["docker", "port", container, f"{inside}/tcp"])
    port = int(published.splitlines()[0].rpartition(":")[2])
    if kind is Kind.POSTGRES:
        return Container(container, f"postgres://postgres@127.0.0.1:{port}/postgres?sslmode=disable")
    return Container(container, f"root@tcp(127.0.0.1:{port})/mysql?parseTime=true")


def _docker(command: list[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=_START_SECONDS)
    if done.returncode != 0:
        raise RuntimeError(f"docker {command[1]} failed: {done.stderr.strip()[-500:]}")
    return done.stdout.strip()


@frozen
class Server:
    """A server that answers."""

    kind: Kind
    url: str
    version: str
    origin: str
    admin: Admin
    _stop: Callable[[], None] = field(repr=False)

    def close(self) -> None:
        """Stop the server if the tests started it."""
        self._stop()


def open_server(kind: Kind, environ: Mapping[str, str] = os.environ, *, durable: bool = False) -> Server:
    """Find or start a server; `durable` as in `programs.launch`.

    Raises:
        Missing: there is none, and no way to start one.
        RuntimeError: one is named or installed, and does not work.
    """
    if url := environ.get(kind.variable):
        admin = admin_of(kind, url)
        try:
            version = admin.version()
        except Exception as error:
            raise RuntimeError(f"the server that {kind.variable} names does not answer: {error}") from error
        return Server(kind, url, version, kind.variable, admin, _do_nothing)
    if program := programs.find_program(kind):
        instance = programs.launch(kind, program, durable=durable)
        version = wait_until_answers(kind, instance, lambda: instance.log)
        return Server(kind, instance.url, version, str(program), admin_of(kind, instance.url), instance.close)
    if docker_works():
        container = start_container(kind)
        version = wait_until_answers(kind, container)
        return Server(kind, container.url, version, "docker", admin_of(kind, container.url), container.close)
    raise Missing(f"no {kind} server: set {kind.variable}, or {_ADVICE[kind]}, or start Docker")


@contextmanager
def own_instance(
    kind: Kind,
    prepare: Callable[[programs.Instance], Sequence[str]] | None = None,
    within: Path | None = None,
) -> Iterator[programs.Instance]:
    """A server for one test, which may stop, kill or pause it.

    After `start` on it, `wait_until_answers` waits until it is back. `prepare` and `within` as in `programs.launch`.

    Raises:
        Missing: its programs are not installed. A server that the environment names is not used.
    """
    program = programs.find_program(kind)
    if program is None:
        raise Missing(f"no {kind} programs: {_ADVICE[kind]}")
    instance = programs.launch(kind, program, prepare=prepare, within=within)
    try:
        wait_until_answers(kind, instance, lambda: instance.log)
        yield instance
    finally:
        instance.close()


def wait_until_answers(kind: Kind, started: Container | programs.Instance, log: Callable[[], str] = str) -> str:
    """Wait for a server that was started just now, and return its version.

    Raises:
        RuntimeError: it did not answer in time and was closed; the message ends with the last lines of its log.
    """
    admin = admin_of(kind, started.url)
    deadline = time.monotonic() + _READY_SECONDS
    while True:
        try:
            return admin.version()
        except Exception as error:
            if time.monotonic() > deadline:
                lines = log()
                started.close()
                raise RuntimeError(f"{kind} did not answer in {_READY_SECONDS:.0f} s: {error}\n{lines}") from error
            time.sleep(0.05)


def _do_nothing() -> None:
    """Leave a server running that the tests did not start."""
