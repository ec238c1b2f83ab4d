"""Which way leads to an origin: straight, or through httpcore where an outbound proxy or HTTP/2 is wanted."""

from __future__ import annotations

import ssl
from collections.abc import Mapping

from llm_proxy.proxy.upstream.interface import Upstream
from llm_proxy.proxy.upstream.origin import Origin, Timeouts
from llm_proxy.proxy.upstream.outbound import outbound_proxy
from llm_proxy.proxy.upstream.pool import IDLE_EXPIRY, MAX_IDLE, UpstreamPool
from llm_proxy.proxy.upstream.via_httpx import HttpxConnector


def open_pool(
    origin: Origin,
    timeouts: Timeouts,
    *,
    environ: Mapping[str, str],
    http2: bool = False,
    max_idle: int = MAX_IDLE,
    idle_expiry: float = IDLE_EXPIRY,
    ssl_context: ssl.SSLContext | None = None,
) -> Upstream:
    """Make the connection pool of an origin; nothing is connected yet.

    Args:
        origin: where to.
        timeouts: how long it may take.
        environ: where the outbound proxy may be named.
        http2: offer HTTP/2 to an https origin.
        max_idle: connections kept; beyond it the oldest is closed.
        idle_expiry: seconds that an unused connection is kept.
        ssl_context: for an https origin, instead of one that verifies against the system's roots; it serves
            for an https proxy too.

    Raises:
        ValueError: the proxy's URL cannot be used; the words name the variable, never its value.
    """
    proxy = outbound_proxy(origin, environ)
    if proxy is None and not http2:
        return UpstreamPool(origin, timeouts, max_idle=max_idle, idle_expiry=idle_expiry, ssl_context=ssl_context)
    connector = HttpxConnector(origin, timeouts, proxy=proxy, http2=http2, ssl_context=ssl_context)
    return UpstreamPool(origin, timeouts, max_idle=max_idle, idle_expiry=idle_expiry, connect=connector.connect)
