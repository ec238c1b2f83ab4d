"""A server that knows more than one provider, all of them played by the scripted upstream.

- openai, anthropic: plain, each in its own shape.
- openai-strict, anthropic-strict: with rules, which are one endpoint, POST alone, an origin, a required header and a
  list of models. They are there only where asked for, because a list makes the proxy read every body whole.
- openai-absent, anthropic-absent: nobody listens there.
- openai-silent, anthropic-silent: have SILENCE seconds to answer in.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from benchmarks.processes import Upstream
from tests.databases.scratch import Scratch
from tests.harness.deployment import Deployment
from tests.harness.server import running_server

ORIGIN = "https://app.example.com"
TEAM = "x-team"
MODELS = "*-scripted*"
#: Seconds that the silent providers are given.
SILENCE = 0.3
#: A loopback port that nothing listens on: discarding is no service any more.
_NOBODY = "http://127.0.0.1:9"

_SERIES = re.compile(r"^(llm_proxy_\w+)(?:\{(.*)\})? (\S+)$", re.MULTILINE)


def provider_file(upstream: Upstream, folder: Path, *, strict: bool = False) -> Path:
    """Write the file that `API_CONFIG_PATH` names; with the strict providers, or without."""
    apis: dict[str, Any] = {}
    for name, endpoint in (("openai", "/v1/chat/completions"), ("anthropic", "/v1/messages")):
        auth = "bearer" if name == "openai" else "x-api-key"
        one: dict[str, Any] = {"base_url": upstream.url, "auth": auth, "allowed_endpoints": [endpoint]}
        rules = {
            "allowed_methods": ["POST"],
            "allowed_origins": [ORIGIN],
            "required_headers": [TEAM],
            "param_whitelist": {"model": [MODELS]},
        }
        apis[name] = {"base_url": upstream.url}
        if strict:
            apis[f"{name}-strict"] = one | rules
        apis[f"{name}-absent"] = one | {"base_url": _NOBODY}
        apis[f"{name}-silent"] = one | {"timeouts": {"response_header": f"{SILENCE}s", "request": f"{SILENCE}s"}}
    path = folder / "providers.yaml"
    path.write_text(yaml.safe_dump({"default_api": "openai", "apis": apis}))
    return path


@contextmanager
def open_gateway(
    scratch: Scratch,
    upstream: Upstream,
    folder: Path,
    settings: Mapping[str, str] | None = None,
    *,
    strict: bool = False,
) -> Iterator[Deployment]:
    """A server with these providers, which must end well when it is told to."""
    wanted = {"API_CONFIG_PATH": str(provider_file(upstream, folder, strict=strict)), **(settings or {})}
    with running_server(scratch.env, wanted) as server:
        yield Deployment(server, upstream)
        assert server.stop() == 0, server.output


def figure(deployment: Deployment, name: str, **labels: str) -> float:
    """The sum of a metric's series that have these labels; 0 without series."""
    text = deployment.server.call("GET", "/metrics").content
    wanted = {f'{label}="{value}"' for label, value in labels.items()}
    return sum(
        float(value) for found, had, value in _SERIES.findall(text) if found == name and wanted <= set(had.split(","))
    )
