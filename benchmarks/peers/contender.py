"""A running gateway."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from pathlib import Path

from attrs import Factory, define, field, frozen

from benchmarks.processes import Process, ProcessFailed, Upstream
from benchmarks.proxy import call
from benchmarks.rig import CHAT, KEY, Sample, Served, Subject

_LOOK_EVERY = 0.05
_SHOWN = 2000
# The program takes the shell's place, and thus its process id.
_INTO_LOG = 'log=$1; shift; exec "$@" >>"$log" 2>&1'


@frozen
class Traits:
    """The features of a gateway. "off" is a feature that was off during the measurement."""

    language: str
    puts_key: str
    tokens: str
    limits: str
    ledger: str
    usage: str
    streaming: str
    translation: str
    database: str
    logs: str


#: The words for each trait, in the order of the table.
TRAITS = {
    "language": "written in",
    "puts_key": "puts in the provider's key",
    "tokens": "issues its own tokens (virtual keys)",
    "limits": "limits",
    "ledger": "durable ledger row for each request",
    "usage": "meters usage",
    "streaming": "streams",
    "translation": "translates between providers",
    "database": "database in this run",
    "logs": "log in this run",
}


OURS = "LLM Proxy"
DIRECT = "upstream, called directly"
OUR_TRAITS = Traits(
    language="Python (trio)",
    puts_key="yes, kept encrypted in its database",
    tokens="yes: expiring, limited, revocable at once",
    limits="yes: requests of each token, exact with several servers too",
    ledger="yes, begun before the request goes upstream and completed after its answer",
    usage="yes: tokens of each answer, kept",
    streaming="yes, byte for byte",
    translation="no",
    database="SQLite, each commit flushed to the disk",
    logs="a line for each request; metrics",
)


@define
class Contender(Subject):
    """A gateway under load.

    Attributes:
        url: of chat completions.
        headers: required from a client, in addition to an SDK's.
        process: the server; with a worker process, its parent.
        traits: its features, or None for the upstream itself.
        singles: samples of one connection; `samples` are those of many.
        memory: resident bytes at the end of each round.
    """

    url: str = field(kw_only=True)
    headers: Mapping[str, str] = field(kw_only=True)
    process: Process = field(kw_only=True)
    traits: Traits | None = field(kw_only=True)
    singles: list[Sample] = Factory(list)
    memory: list[int] = Factory(list)

    @classmethod
    def at(
        cls, name: str, url: str, headers: Mapping[str, str], process: Process, traits: Traits | None = None
    ) -> Contender:
        """Make one, with the load generator's options for its address and headers."""
        sent = [option for item in headers.items() for option in ("--header", ": ".join(item))]
        return cls(name, [("--url", url, *sent)], url=url, headers=headers, process=process, traits=traits)


def bearer(secret: str) -> dict[str, str]:
    """Return the header that carries a key or a token."""
    return {"Authorization": f"Bearer {secret}"}


def start_program(arguments: Sequence[str | Path], *, log: Path, env: Mapping[str, str] | None = None) -> Process:
    """Start a gateway in the folder of its log, which gets all that it prints.

    Its environment is `env`, PATH and HOME only: a developer's keys, proxies and settings must not reach it.
    """
    given = {"PATH": os.environ.get("PATH", os.defpath), "HOME": str(log.parent), **(env or {})}
    assignments = [f"{name}={value}" for name, value in given.items()]
    return Process.start(["env", "-i", *assignments, "sh", "-c", _INTO_LOG, "sh", log, *arguments], cwd=log.parent)


def await_answer(process: Process, url: str, log: Path, timeout: float = 90.0) -> None:
    """Wait until there is an answer that is no server error; raises ProcessFailed with the end of the log."""
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline and process.running:
        try:
            status, _ = call("GET", url)
        except OSError:
            status = HTTPStatus.SERVICE_UNAVAILABLE
        if status < HTTPStatus.INTERNAL_SERVER_ERROR:
            return
        time.sleep(_LOOK_EVERY)
    raise ProcessFailed(f"no answer from {url}:\n{log.read_text(errors='replace')[-_SHOWN:]}")


def contend(served: Served) -> Contender:
    """Make a contender of the only instance."""
    (proxy,) = served.proxies
    return Contender.at(OURS, proxy.url + CHAT, bearer(served.token), proxy.process, OUR_TRAITS)


def contend_directly(upstream: Upstream) -> Contender:
    """Make one of the upstream."""
    return Contender.at(DIRECT, upstream.url + CHAT, bearer(KEY), upstream.process)
