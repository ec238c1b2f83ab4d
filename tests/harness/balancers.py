"""Caddy and HAProxy with the configurations of our own page, in front of servers of a test."""

from __future__ import annotations

import shutil
import ssl
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from attrs import frozen

from benchmarks.ports import free_port
from benchmarks.processes import Process
from tests.docs.blocks import block
from tests.harness.certificates import Authority
from tests.harness.nginx import listens
from tests.harness.server import ROOT

PAGE = ROOT / "docs" / "deployment" / "reverse-proxy.md"
#: The programs, which are also the names of their packages, and their blocks.
BALANCERS = {"caddy": "configuration of Caddy", "haproxy": "configuration of HAProxy"}
ADVICE = "no caddy or no haproxy: install the packages of these names"
#: The ports of the servers on the page.
PORTS = (8081, 8082, 8083)
_FOLDERS = "/usr/sbin:/usr/local/sbin:/opt/homebrew/bin"
_READY_SECONDS = 60.0
#: Nobody else's ports, and no authority that is asked for certificates.
_CADDY = "{\n\tadmin off\n\tauto_https disable_redirects\n}\n"


def find_balancer(name: str) -> str | None:
    """The program, or None."""
    return shutil.which(name) or shutil.which(name, path=_FOLDERS)


@frozen
class Balancer:
    """Where one listens, and how clients trust it."""

    url: str
    tls: ssl.SSLContext


def configuration(name: str, ports: Sequence[int], port: int, certificate: Path) -> str:
    """The page's configuration with addresses and files of the test."""
    text = block(PAGE, BALANCERS[name])
    changes = {
        "caddy": (
            "llm.example.com {",
            f"https://127.0.0.1:{port} {{\n\tbind 127.0.0.1\n\ttls {certificate} {certificate}",
        ),
        "haproxy": (":443 ssl crt /etc/haproxy/llm.example.com.pem", f"127.0.0.1:{port} ssl crt {certificate}"),
    }
    places = {f"127.0.0.1:{there}": f"127.0.0.1:{here}" for there, here in zip(PORTS, ports, strict=True)}
    for there, here in (changes[name], *places.items()):
        assert there in text, f"{PAGE.name} no longer has {there!r}"
        text = text.replace(there, here)
    return (_CADDY if name == "caddy" else "") + text


@contextmanager
def running_balancer(name: str, program: str, folder: Path, *ports: int) -> Iterator[Balancer]:
    """One of them in front of three ports of 127.0.0.1, on which servers may be or not."""
    port = free_port()
    authority = Authority.make(folder)
    certificate = authority.issue(name, "127.0.0.1")
    file, log = folder / name, folder / "log"
    file.write_text(configuration(name, ports, port, certificate))
    arguments = {
        "caddy": ("run", "--adapter", "caddyfile", "--config", file),
        "haproxy": ("-db", "-f", file),
    }
    home = {variable: str(folder) for variable in ("HOME", "XDG_DATA_HOME", "XDG_CONFIG_HOME")}
    with Process.start((program, *arguments[name]), env=home, stderr=log) as process:
        deadline = time.monotonic() + _READY_SECONDS
        while not listens(port):
            assert process.running, log.read_text()
            assert time.monotonic() < deadline
            time.sleep(0.02)
        yield Balancer(f"https://127.0.0.1:{port}", ssl.create_default_context(cafile=authority.file))
