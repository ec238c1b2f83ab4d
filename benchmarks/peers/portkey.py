"""Portkey's gateway, the open one: each request names the provider and brings its key.

Started as its image does (`node build/start-server.js`), with NODE_ENV=production and without its console.
"""

from __future__ import annotations

from pathlib import Path

from benchmarks.peers.contender import Contender, Traits, await_answer, bearer, start_program
from benchmarks.peers.installing import find_program, install_from_npm
from benchmarks.ports import free_port
from benchmarks.processes import Upstream
from benchmarks.rig import CHAT, KEY, Rig

VERSION = "1.15.2"
NAME = f"Portkey gateway {VERSION}"
TRAITS = Traits(
    language="TypeScript (Node.js, Hono)",
    puts_key="no: the client sends the provider's key",
    tokens="no (its hosted and enterprise versions do)",
    limits="no (its hosted and enterprise versions do)",
    ledger="no (its hosted and enterprise versions do)",
    usage="no (its hosted and enterprise versions do)",
    streaming="yes",
    translation="yes, between many providers; retries and fallbacks off",
    database="none; has none",
    logs="none",
)

#: Portkey can only listen on all addresses, and any client can make it call any host; so this limits it to loopback.
LOOPBACK_ONLY = """\
const { Server } = require("node:net");
const listen = Server.prototype.listen;
Server.prototype.listen = function (port, ...rest) {
  if (typeof port !== "number") return listen.call(this, port, ...rest);
  return listen.call(this, port, "127.0.0.1", ...rest.filter((argument) => typeof argument === "function"));
};
"""


def headers(upstream: str) -> dict[str, str]:
    """Return what a client sends: the provider's kind, address and key."""
    return {"x-portkey-provider": "openai", "x-portkey-custom-host": f"{upstream}/v1", **bearer(KEY)}


def start(rig: Rig, upstream: Upstream, cache: Path) -> Contender:
    """Install it if need be, and start it. Raises Absent and ProcessFailed."""
    node = find_program("node", "install Node.js 18 or newer with npm: sudo apt-get install nodejs npm")
    package = install_from_npm("@portkey-ai/gateway", VERSION, cache, rig.bench.say)
    folder = rig.directory / "portkey"
    folder.mkdir(parents=True, exist_ok=True)
    preload = folder / "loopback-only.cjs"
    preload.write_text(LOOPBACK_ONLY)
    port = free_port()
    command = (node, "--require", preload, package / "build" / "start-server.js", f"--port={port}", "--headless")
    env = {"NODE_ENV": "production"}
    process = rig.stack.enter_context(start_program(command, log=folder / "output.log", env=env))
    url = f"http://127.0.0.1:{port}"
    await_answer(process, f"{url}/", folder / "output.log")
    return Contender.at(NAME, url + CHAT, headers(upstream.url), process, TRAITS)
