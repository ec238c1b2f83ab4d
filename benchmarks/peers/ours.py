"""LLM Proxy with everything on, and the upstream without anything before it."""

from __future__ import annotations

from benchmarks.peers.contender import Contender, Traits, bearer
from benchmarks.processes import Upstream
from benchmarks.rig import CHAT, KEY, Served

NAME = "LLM Proxy"
UPSTREAM = "upstream, called directly"
TRAITS = Traits(
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


def contend(served: Served) -> Contender:
    """Make a contender of the only instance."""
    (proxy,) = served.proxies
    return Contender.at(NAME, proxy.url + CHAT, bearer(served.token), proxy.process, TRAITS)


def contend_directly(upstream: Upstream) -> Contender:
    """Make one of the upstream."""
    return Contender.at(UPSTREAM, upstream.url + CHAT, bearer(KEY), upstream.process)
