"""An nginx with the configuration of our own page, in front of servers of a test."""

from __future__ import annotations

import os
import shutil
import socket
import ssl
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from attrs import define

from benchmarks.ports import free_port
from benchmarks.processes import Process
from tests.docs.blocks import block
from tests.harness.certificates import Authority
from tests.harness.server import ROOT

PAGE = ROOT / "docs" / "deployment" / "reverse-proxy.md"
ADVICE = "no nginx: install the package nginx-light"
#: Where packages put it when it is not on the PATH.
_FOLDERS = "/usr/sbin:/usr/local/sbin:/opt/homebrew/bin"
_READY_SECONDS = 60.0
_TEMPORARY = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")

#: Runs nginx as the page does, on the configuration of the test, and returns once a reload has come into effect.
_COMMAND = """\
#!/bin/sh
master=$(cat {folder}/nginx.pid)
before=$(cat /proc/$master/task/$master/children)
{program} -p {folder} -c {folder}/nginx.conf "$@" || exit
[ "$*" = "-s reload" ] || exit 0
for worker in $before; do
    while [ -e /proc/$worker ] && ! grep -aq 'shutting down' /proc/$worker/cmdline; do sleep 0.02; done
done
"""


def find_nginx() -> str | None:
    """The program, or None."""
    return shutil.which("nginx") or shutil.which("nginx", path=_FOLDERS)


@define
class Nginx:
    """A running nginx.

    Attributes:
        url: where it listens, by the name in its certificate.
        tls: for clients that trust it.
        replicas: the folder with a file for each server.
        command: a program that is nginx on this configuration: `command -s reload`.
    """

    url: str
    tls: ssl.SSLContext
    replicas: Path
    command: Path

    def put_in(self, port: int) -> None:
        """Have a file for a server; it counts from the next reload on."""
        (self.replicas / f"{port}.replica").write_text(f"server 127.0.0.1:{port} max_fails=1 fail_timeout=2s;\n")

    def take_out(self, port: int) -> None:
        """Remove that file."""
        (self.replicas / f"{port}.replica").unlink()

    def reload(self) -> None:
        """Have it read its configuration anew; returns when its former workers take no further connections."""
        subprocess.run([self.command, "-s", "reload"], check=True, timeout=60)


def configuration(folder: Path, port: int, certificate: Path) -> str:
    """The page's configuration with addresses and files of the test."""
    text = block(PAGE, "configuration of nginx")
    for there, here in (
        ("listen 443 ssl;", f"listen 127.0.0.1:{port} ssl;"),
        ("/etc/nginx/llm-proxy/", f"{folder}/llm-proxy/"),
        ("/etc/ssl/certs/llm.example.com.pem", str(certificate)),
        ("/etc/ssl/private/llm.example.com.key", str(certificate)),
    ):
        assert there in text, f"{PAGE.name} no longer has {there!r}"
        text = text.replace(there, here)
    return text


@contextmanager
def running_nginx(program: str, folder: Path, *ports: int) -> Iterator[Nginx]:
    """An nginx in front of servers on these ports of 127.0.0.1."""
    replicas, command, port = folder / "llm-proxy", folder / "nginx", free_port()
    replicas.mkdir()
    authority = Authority.make(folder)
    certificate = authority.issue("nginx", "127.0.0.1")
    nginx = Nginx(f"https://127.0.0.1:{port}", ssl.create_default_context(cafile=authority.file), replicas, command)
    for one in ports:
        nginx.put_in(one)
    lines = [
        # Another user could not enter the folder.
        *(["user root root;"] if os.geteuid() == 0 else []),
        "daemon off;",
        "worker_processes 1;",
        "pid nginx.pid;",
        "error_log stderr;",
        "events { worker_connections 1024; }",
        "http {",
        "access_log off;",
        *(f"{name}_temp_path {name};" for name in _TEMPORARY),
        configuration(folder, port, certificate),
        "}",
    ]
    file = folder / "nginx.conf"
    file.write_text("\n".join(lines))
    command.write_text(_COMMAND.format(folder=folder, program=program))
    command.chmod(0o755)
    log = folder / "nginx.log"
    with Process.start((program, "-p", folder, "-c", file), stderr=log) as process:
        deadline = time.monotonic() + _READY_SECONDS
        while not listens(port):
            assert process.running, log.read_text()
            assert time.monotonic() < deadline
            time.sleep(0.02)
        yield nginx


def listens(port: int) -> bool:
    """Whether somebody listens on a port of 127.0.0.1."""
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
