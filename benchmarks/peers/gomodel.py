"""GoModel, a gateway in Go, from a program that the user names: it keeps usage in SQLite, and has no tokens here."""

from __future__ import annotations

import os

from benchmarks.peers.contender import Contender, Traits, await_answer, bearer, start_program
from benchmarks.peers.installing import Absent
from benchmarks.ports import free_port
from benchmarks.processes import Upstream
from benchmarks.rig import CHAT, KEY, Rig

NAME = "GoModel"
#: The environment variable with the path of its program.
PROGRAM = "GOMODEL_PROGRAM"
TRAITS = Traits(
    language="Go",
    puts_key="yes, from its environment",
    tokens="off (one master key)",
    limits="no",
    ledger="no: usage is written in batches after the answers",
    usage="yes: tokens of each answer, kept",
    streaming="yes",
    translation="yes, between many providers; retries and fallbacks off",
    database="SQLite",
    logs="errors only",
)


def start(rig: Rig, upstream: Upstream, _cache: object) -> Contender:
    """Start it. Raises Absent and ProcessFailed."""
    program = os.environ.get(PROGRAM)
    if not program:
        raise Absent(f"set {PROGRAM} to the path of a program built from https://github.com/ENTERPILOT/GoModel")
    folder = rig.directory / "gomodel"
    folder.mkdir(parents=True, exist_ok=True)
    port = free_port()
    env = {
        "PORT": str(port),
        "OPENAI_API_KEY": KEY,
        "OPENAI_BASE_URL": f"{upstream.url}/v1",
        "OPENAI_MODELS": "gpt-scripted",
        "CONFIGURED_PROVIDER_MODELS_MODE": "allowlist",
        "MODEL_LIST_URL": "",
        "GOMODEL_CACHE_DIR": str(folder / "cache"),
        "STORAGE_TYPE": "sqlite",
        "SQLITE_PATH": str(folder / "gomodel.db"),
        "USAGE_ENABLED": "true",
        "RETRY_MAX_RETRIES": "0",
        "FEATURE_FALLBACK_MODE": "off",
        "LOG_LEVEL": "error",
    }
    process = rig.stack.enter_context(start_program((program,), log=folder / "output.log", env=env))
    url = f"http://127.0.0.1:{port}"
    await_answer(process, f"{url}/health", folder / "output.log")
    return Contender.at(NAME, url + CHAT, bearer(KEY), process, TRAITS)
