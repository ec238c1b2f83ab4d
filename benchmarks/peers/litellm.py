"""LiteLLM's proxy, without its database and without a master key.

Settings as in its production checklist (https://docs.litellm.ai/docs/proxy/prod): one Uvicorn worker, LITELLM_MODE,
LITELLM_LOG, no verbose logs. Beyond that, its access log is off, and its price list is that of the package, so that it
asks nobody for one when it starts.
"""

from __future__ import annotations

from pathlib import Path

import msgspec
import yaml

from benchmarks.peers.contender import Contender, Traits, await_answer, bearer, start_program
from benchmarks.peers.installing import install_from_pypi
from benchmarks.ports import free_port
from benchmarks.processes import Upstream
from benchmarks.rig import CHAT, KEY, Rig

#: Later ones refuse to start without a master key, or require releases of other packages that are not on PyPI.
VERSION = "1.102.4"
NAME = f"LiteLLM {VERSION}"
ENV = {"LITELLM_MODE": "PRODUCTION", "LITELLM_LOG": "ERROR", "LITELLM_LOCAL_MODEL_COST_MAP": "True"}
TRAITS = Traits(
    language="Python (asyncio, FastAPI, Uvicorn)",
    puts_key="yes, from its configuration file",
    tokens="off (virtual keys, which take PostgreSQL)",
    limits="off (rates and budgets for each virtual key)",
    ledger="off (spend logs, written in batches after the answer)",
    usage="yes: tokens and cost of each answer, not kept without the database",
    streaming="yes, each chunk parsed and serialized again",
    translation="yes, between many providers; retries off",
    database="none; off",
    logs="errors only",
)


def configuration(upstream: str) -> str:
    """Return config.yaml: one model, which is the upstream's."""
    model = {"model": "openai/gpt-scripted", "api_base": f"{upstream}/v1", "api_key": KEY}
    settings = {
        "model_list": [{"model_name": "gpt-scripted", "litellm_params": model}],
        "litellm_settings": {"set_verbose": False, "request_timeout": 600, "num_retries": 0},
    }
    text: str = yaml.safe_dump(settings, sort_keys=False)
    return text


def log_configuration() -> bytes:
    """Return Uvicorn's logging configuration: without an access log."""
    loggers = {"uvicorn.access": {"handlers": [], "propagate": False, "level": "WARNING"}}
    return msgspec.json.encode({"version": 1, "disable_existing_loggers": False, "loggers": loggers})


def start(rig: Rig, upstream: Upstream, cache: Path) -> Contender:
    """Install it if need be, and start it. Raises Absent and ProcessFailed."""
    program = install_from_pypi("litellm", "proxy", VERSION, cache, rig.bench.say) / "bin" / "litellm"
    folder = rig.directory / "litellm"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.yaml").write_text(configuration(upstream.url))
    (folder / "log.json").write_bytes(log_configuration())
    port = free_port()
    options = ("--host", "127.0.0.1", "--port", str(port), "--num_workers", "1", "--telemetry", "False")
    command = (program, "--config", folder / "config.yaml", "--log_config", folder / "log.json", *options)
    process = rig.stack.enter_context(start_program(command, log=folder / "output.log", env=ENV))
    url = f"http://127.0.0.1:{port}"
    await_answer(process, f"{url}/health/readiness", folder / "output.log")
    return Contender.at(NAME, url + CHAT, bearer("sk-anything"), process, TRAITS)
