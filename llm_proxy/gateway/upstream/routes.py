"""Which way leads to an origin: straight, or through an outbound proxy."""

from __future__ import annotations

from collections.abc import Mapping

from llm_proxy.gateway.upstream.interface import Upstream
from llm_proxy.gateway.upstream.origin import Origin, Timeouts
from llm_proxy.gateway.upstream.outbound import outbound_proxy
from llm_proxy.gateway.upstream.pool import IDLE_EXPIRY, MAX_IDLE, UpstreamPool
from llm_proxy.gateway.upstream.via_httpx import HttpxConnector


def open_pool(
    origin: Origin,
    timeouts: Timeouts,
    *,
    environ: Mapping[str, str],
    max_idle: int = MAX_IDLE,
    idle_expiry: float = IDLE_EXPIRY,
) -> Upstream:
    """Make the connection pool of an origin; nothing is connected yet.

    Args:
        origin: where to.
        timeouts: how long it may take.
        environ: where the outbound proxy may be named.
        max_idle: connections kept; beyond it the oldest is closed.
        idle_expiry: seconds that an unused connection is kept.

    Raises:
        ValueError: the proxy's URL cannot be used; the words name the variable, never its value.
    """
    proxy = outbound_proxy(origin, environ)
    connect = None if proxy is None else HttpxConnector(origin, timeouts, proxy=proxy).connect
    return UpstreamPool(origin, timeouts, max_idle=max_idle, idle_expiry=idle_expiry, connect=connect)
