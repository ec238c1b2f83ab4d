"""sofatutor's llm-proxy, in Go, from a checkout that the user names: tokens as ours, and a counter instead of a ledger.

Everything that it can do without another service is on, as it is by default, but for its cache of answers.
"""

from __future__ import annotations

import base64
import os
import secrets
from http import HTTPStatus
from typing import Any

import msgspec
import yaml

from benchmarks.peers.contender import Contender, Traits, await_answer, bearer, start_program
from benchmarks.peers.installing import Absent, find_program, install_once
from benchmarks.ports import free_port
from benchmarks.processes import ProcessFailed, Upstream
from benchmarks.proxy import call
from benchmarks.rig import CHAT, ENOUGH, KEY, Rig

NAME = "llm-proxy in Go"
#: The environment variable with the folder of its source.
SOURCE = "GO_LLM_PROXY_SOURCE"
TRAITS = Traits(
    language="Go",
    puts_key="yes, kept encrypted in its database",
    tokens="yes: expiring, limited, revocable",
    limits="yes: requests of each token",
    ledger="no: a counter for each token",
    usage="yes: tokens of each answer, in events that are not kept here",
    streaming="yes",
    translation="no",
    database="SQLite",
    logs="errors only",
)


def start(rig: Rig, upstream: Upstream, _cache: object) -> Contender:
    """Build it and start it. Raises Absent and ProcessFailed."""
    source = os.environ.get(SOURCE)
    if not source:
        raise Absent(f"set {SOURCE} to the folder of a checkout of https://github.com/sofatutor/llm-proxy")
    go = find_program("go", "install Go: https://go.dev/doc/install")
    folder = rig.directory / "go-llm-proxy"
    program = folder / "llm-proxy"
    install_once(folder, [(go, "build", "-C", source, "-o", program, "./cmd/proxy")], rig.bench.say)
    providers = {"default_api": "openai", "apis": {"openai": _entry(upstream.url)}}
    (folder / "providers.yaml").write_text(yaml.safe_dump(providers))
    url, management = f"http://127.0.0.1:{(port := free_port())}", secrets.token_hex(16)
    env = {
        "MANAGEMENT_TOKEN": management,
        "ENCRYPTION_KEY": base64.b64encode(secrets.token_bytes(32)).decode(),
        "LISTEN_ADDR": f"127.0.0.1:{port}",
        "DATABASE_PATH": str(folder / "llm-proxy.db"),
        "API_CONFIG_PATH": str(folder / "providers.yaml"),
        "AUDIT_LOG_FILE": str(folder / "audit.log"),
        "LLM_PROXY_EVENT_BUS": "in-memory",
        "HTTP_CACHE_ENABLED": "false",
        "LOG_LEVEL": "error",
    }
    process = rig.stack.enter_context(start_program((program, "server"), log=folder / "output.log", env=env))
    await_answer(process, f"{url}/health", folder / "output.log")
    project = _create(f"{url}/manage/projects", management, {"name": "benchmark", "api_key": KEY})["id"]
    wanted = {"project_id": project, "duration_minutes": 600, "max_requests": ENOUGH}
    token = _create(f"{url}/manage/tokens", management, wanted)["token"]
    return Contender.at(NAME, url + CHAT, bearer(token), process, TRAITS)


def _entry(upstream: str) -> dict[str, object]:
    return {
        "base_url": upstream,
        "allowed_endpoints": [CHAT],
        "allowed_methods": ["POST"],
        "timeouts": {"request": "60s", "response_header": "30s", "idle_connection": "90s", "flush_interval": "100ms"},
        "connection": {"max_idle_conns": 100, "max_idle_conns_per_host": 100},
    }


def _create(url: str, management: str, body: dict[str, object]) -> dict[str, Any]:
    status, answer = call("POST", url, body, bearer(management))
    if status not in (HTTPStatus.OK, HTTPStatus.CREATED):
        raise ProcessFailed(f"{url} answered {status}: {answer.decode(errors='replace')}")
    return msgspec.json.decode(answer, type=dict[str, Any])
