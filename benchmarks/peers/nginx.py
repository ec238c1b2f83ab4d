"""nginx as a plain reverse proxy with one worker: the upper limit of the machine."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from urllib.parse import urlsplit

from benchmarks.peers.contender import Contender, Traits, await_answer, bearer, start_program
from benchmarks.peers.installing import find_program
from benchmarks.ports import free_port
from benchmarks.processes import Upstream
from benchmarks.rig import CHAT, KEY, Rig

NAME = "nginx"
TRAITS = Traits(
    language="C",
    puts_key="off (one fixed header; the client sends the provider's key)",
    tokens="no",
    limits="off (rates for each address or header, in memory)",
    ledger="no (a log line, off)",
    usage="no",
    streaming="yes",
    translation="no",
    database="none; has none",
    logs="errors only",
)
_TEMPORARY = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")


def configuration(upstream: str, port: int, *, root: bool) -> str:
    """Return nginx.conf; all its paths are below the folder that nginx gets as its prefix.

    Connections are kept on both sides, without nginx's limit of 1,000 requests on each. If `root` starts
    it, its worker stays root too, because another user could not enter the folder.
    """
    folders = "\n".join(f"    {name}_temp_path {name};" for name in _TEMPORARY)
    return f"""\
{"user root root;" if root else ""}
daemon off;
worker_processes 1;
pid nginx.pid;
error_log stderr warn;
events {{
    worker_connections 2048;
}}
http {{
    access_log off;
{folders}
    keepalive_requests 1000000000;
    upstream scripted {{
        server {urlsplit(upstream).netloc};
        keepalive 128;
        keepalive_requests 1000000000;
    }}
    server {{
        listen 127.0.0.1:{port};
        location / {{
            proxy_pass http://scripted;
            proxy_http_version 1.1;
            proxy_set_header Connection "";
        }}
    }}
}}
"""


def start(rig: Rig, upstream: Upstream, _cache: Path) -> Contender:
    """Start it. Raises Absent and ProcessFailed."""
    program = find_program("nginx", "install it: sudo apt-get install nginx")
    folder = rig.directory / "nginx"
    folder.mkdir(parents=True, exist_ok=True)
    port = free_port()
    (folder / "nginx.conf").write_text(configuration(upstream.url, port, root=os.geteuid() == 0))
    command = (program, "-p", folder, "-c", folder / "nginx.conf")
    process = rig.stack.enter_context(start_program(command, log=folder / "output.log"))
    url = f"http://127.0.0.1:{port}"
    await_answer(process, f"{url}/", folder / "output.log")
    said = subprocess.run([program, "-v"], capture_output=True, text=True, check=False)  # noqa: S603 - found above
    version = said.stderr.partition("/")[2].split()
    return Contender.at(" ".join([NAME, *version[:1]]), url + CHAT, bearer(KEY), process, TRAITS)
