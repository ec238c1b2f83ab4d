"""Upstream: how the data plane talks to providers.

interface.py    the seam: Upstream, UpstreamResponse, RequestBody, Dispatch
origin.py       where an upstream is, and how long it may take
failures.py     everything that can go wrong
pool.py         the connections to one origin, a stack
connection.py   one connection and its exchanges
response.py     a response on such a connection
parser.py       responses from bytes, without I/O
request.py      requests to bytes, without I/O
wire.py         a non-blocking socket, plain or TLS, under trio
watch.py        deadlines
tls.py          certificates are verified
via_httpx.py    the same seam through an outbound proxy, or over HTTP/2
routes.py       which of the two an origin gets
"""

from __future__ import annotations

from llm_proxy.proxy.upstream.failures import (
    ConnectFailed,
    ConnectTimeout,
    Disconnected,
    HeaderTimeout,
    IdleTimeout,
    MalformedResponse,
    UnexpectedUpgrade,
    UpstreamFailure,
)
from llm_proxy.proxy.upstream.interface import Dispatch, RequestBody, Upstream, UpstreamResponse
from llm_proxy.proxy.upstream.origin import Origin, Timeouts
from llm_proxy.proxy.upstream.pool import UpstreamPool

__all__ = [
    "ConnectFailed",
    "ConnectTimeout",
    "Disconnected",
    "Dispatch",
    "HeaderTimeout",
    "IdleTimeout",
    "MalformedResponse",
    "Origin",
    "RequestBody",
    "Timeouts",
    "UnexpectedUpgrade",
    "Upstream",
    "UpstreamFailure",
    "UpstreamPool",
    "UpstreamResponse",
]
