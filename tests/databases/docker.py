"""Database servers as throw-away containers, for machines with Docker and no server programs."""

from __future__ import annotations

import shutil
import subprocess

from attrs import frozen

from tests.databases.kinds import Kind

_IMAGES = {Kind.POSTGRES: "postgres:17", Kind.MYSQL: "mysql:8.4", Kind.MARIADB: "mariadb:11.4"}
_SETTINGS = {
    Kind.POSTGRES: ("POSTGRES_HOST_AUTH_METHOD=trust",),
    Kind.MYSQL: ("MYSQL_ALLOW_EMPTY_PASSWORD=yes",),
    Kind.MARIADB: ("MARIADB_ALLOW_EMPTY_ROOT_PASSWORD=yes",),
}
_PORT = {Kind.POSTGRES: 5432, Kind.MYSQL: 3306, Kind.MARIADB: 3306}
#: The first start pulls an image.
_START_SECONDS = 300


@frozen
class Container:
    """A running container; Docker removes it, data and all, when it stops."""

    id: str
    url: str

    def close(self) -> None:
        """Stop it; a container that is gone already is fine."""
        subprocess.run(["docker", "stop", "--time", "5", self.id], capture_output=True, check=False, timeout=60)


def docker_works() -> bool:
    """Whether there is a client and a daemon that answers it."""
    if shutil.which("docker") is None:
        return False
    try:
        answer = subprocess.run(["docker", "info"], capture_output=True, check=False, timeout=15)
    except subprocess.TimeoutExpired:
        return False
    return answer.returncode == 0


def launch(kind: Kind) -> Container:
    """Start a server of this kind, published on a free loopback port. It may not answer yet.

    Raises:
        RuntimeError: Docker refused; the message holds its words.
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
        message = f"docker {command[1]} failed: {done.stderr.strip()[-500:]}"
        raise RuntimeError(message)
    return done.stdout.strip()
