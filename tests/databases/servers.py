"""A database server for the tests: one that the environment names, else one from programs, else a container."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

from attrs import field, frozen

from tests.databases import docker, programs
from tests.databases.admin import Admin, admin_of
from tests.databases.kinds import Kind

#: How long a server that we started may take until it answers, in seconds.
_READY_SECONDS = 90.0

_ADVICE = {
    Kind.POSTGRES: "install the package postgresql",
    Kind.MYSQL: "install the package mysql-server (not MariaDB under that name)",
    Kind.MARIADB: "install the package mariadb-server",
}


class Missing(Exception):
    """There is no server of this kind here; the message says what to do."""


class _Started(Protocol):
    @property
    def url(self) -> str: ...

    def close(self) -> None: ...


@frozen
class Server:
    """A server that answers. `close` stops it if the tests started it, and leaves it alone otherwise."""

    kind: Kind
    url: str
    version: str
    origin: str
    admin: Admin
    _stop: Callable[[], None] = field(repr=False)

    def close(self) -> None:
        """Stop what was started for the tests."""
        self._stop()


def open_server(kind: Kind, environ: Mapping[str, str] = os.environ, *, durable: bool = False) -> Server:
    """Find or start a server; `durable` as in `programs.launch`.

    Raises:
        Missing: there is none, and no way to start one.
        RuntimeError: one is named or installed, and does not work. That is never passed over.
    """
    if url := environ.get(kind.variable):
        admin = admin_of(kind, url)
        try:
            version = admin.version()
        except Exception as error:
            message = f"the server that {kind.variable} names does not answer: {error}"
            raise RuntimeError(message) from error
        return Server(kind, url, version, kind.variable, admin, _leave)
    if program := programs.find_program(kind):
        instance = programs.launch(kind, program, durable=durable)
        version = wait_until_answers(kind, instance, lambda: instance.log)
        return Server(kind, instance.url, version, str(program), admin_of(kind, instance.url), instance.close)
    if docker.docker_works():
        container = docker.launch(kind)
        version = wait_until_answers(kind, container)
        return Server(kind, container.url, version, "docker", admin_of(kind, container.url), container.close)
    message = f"no {kind} server: set {kind.variable}, or {_ADVICE[kind]}, or start Docker"
    raise Missing(message)


@contextmanager
def own_instance(
    kind: Kind,
    prepare: Callable[[programs.Instance], Sequence[str]] | None = None,
    within: Path | None = None,
) -> Iterator[programs.Instance]:
    """A server for one test alone, to be stopped, killed or frozen under a proxy's feet.

    After `start` on it, `wait_until_answers` waits until it is back. `prepare` and `within` as in `programs.launch`.

    Raises:
        Missing: its programs are not installed here; a server that the environment names will not do.
    """
    program = programs.find_program(kind)
    if program is None:
        message = f"no {kind} programs: {_ADVICE[kind]}"
        raise Missing(message)
    instance = programs.launch(kind, program, prepare=prepare, within=within)
    try:
        wait_until_answers(kind, instance, lambda: instance.log)
        yield instance
    finally:
        instance.close()


def wait_until_answers(kind: Kind, started: _Started, log: Callable[[], str] = str) -> str:
    """Wait for a server that was started just now, and return its version.

    Raises:
        RuntimeError: it did not answer in time, and was closed; the message ends with the last lines of its log.
    """
    admin = admin_of(kind, started.url)
    deadline = time.monotonic() + _READY_SECONDS
    while True:
        try:
            return admin.version()
        except Exception as error:
            if time.monotonic() > deadline:
                words = log()
                started.close()
                message = f"{kind} did not answer in {_READY_SECONDS:.0f} s: {error}\n{words}"
                raise RuntimeError(message) from error
            time.sleep(0.05)


def _leave() -> None:
    """The server is somebody else's."""
