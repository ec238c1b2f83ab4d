"""Requests that try to reach the control plane past the rule of a reverse proxy on `/manage` and `/metrics`."""

from __future__ import annotations

import socket
import ssl
from urllib.parse import urlsplit

from tests.harness.balancers import Balancer
from tests.harness.server import MANAGEMENT_TOKEN

#: What stands for `/manage/projects` or `/metrics`; each is tried with `m` as the first letter and `REST` behind it.
TARGETS = (
    "/mREST",
    "/%6dREST",
    "/%6DREST",
    "/%256dREST",
    "/%ef%bd%8dREST",
    "/%u006dREST",
    "//mREST",
    "///mREST",
    "/%2fmREST",
    "/%2FmREST",
    "/./mREST",
    "/%2e/mREST",
    "/x/../mREST",
    "/v1/../mREST",
    "/v1/%2e%2e/mREST",
    "/v1/..%2fmREST",
    "/v1%2f..%2fmREST",
    "/v1/..;/mREST",
    "/v1/..%5cmREST",
    "/;/mREST",
    "/;x/mREST",
    "/%20mREST",
    "/%09mREST",
    "/%00mREST",
    "/%0amREST",
    "/%c0%afmREST",
    "/MREST",
    "\\mREST",
    "/\\mREST",
    "/mREST/",
    "/mREST/.",
    "/mREST/..",
    "/mREST//",
    "/mREST%2f",
    "/mREST%20",
    "/mREST%00",
    "/mREST%0a",
    "/mREST;x=y",
    "/mREST;",
    "/mREST%3b",
    "/mREST%3fx",
    "/mREST#x",
    "/mREST%23",
    "/mREST?x",
    "/mREST.json",
    "/v1/models?/../mREST",
    "http://HOST/mREST",
    "HTTP://HOST/mREST",
    "https://HOST/mREST",
    "http://127.0.0.1/mREST",
    "http://HOST//mREST",
    "http://HOST/%6dREST",
    "http://HOST/x/../mREST",
    "http://HOST?/mREST",
    "http://HOST#/mREST",
    "http://HOST;/mREST",
    "http://user@HOST/mREST",
    "http:///mREST",
    "http:/mREST",
    "http://HOST/v1/models http://HOST/mREST",
    "ws://HOST/mREST",
    "HOST/mREST",
    "mREST",
    "*",
)
#: Header fields that would move a request, or make it one of an inner network.
FIELDS = (
    "X-Forwarded-For: 127.0.0.1",
    "X_Forwarded_For: 127.0.0.1",
    "X-Real-IP: 127.0.0.1",
    "Forwarded: for=127.0.0.1",
    "X-Client-IP: 127.0.0.1",
    "True-Client-IP: 127.0.0.1",
    "X-HTTP-Method-Override: GET",
    "Connection: X-Forwarded-For, Authorization",
    "Expect: 100-continue",
    "Upgrade: h2c",
)
MOVES = ("X-Original-URL: /mREST", "X-Rewrite-URL: /mREST", "X-Forwarded-Uri: /mREST", "X-Accel-Redirect: /mREST")
#: Heads whose message ends elsewhere for some readers, so that what follows is a request of its own to them.
SMUGGLERS = (
    "Content-Length: LENGTH\r\nTransfer-Encoding: chunked",
    "Transfer-Encoding: chunked\r\nContent-Length: LENGTH",
    "Content-Length: LENGTH\r\nTransfer-Encoding : chunked",
    "Content-Length: LENGTH\r\nTransfer_Encoding: chunked",
    "Content-Length: LENGTH\r\nTransfer-Encoding: xchunked",
    "Content-Length: LENGTH\r\nTransfer-Encoding:\x0bchunked",
    "Content-Length: LENGTH\r\n Transfer-Encoding: chunked",
    "Content-Length: 5\r\nContent-Length: LENGTH",
    "Content-Length: +5",
    "Content_Length: LENGTH",
)


def evasions(path: str, host: str) -> list[bytes]:
    """Requests for `path` of `host`, each all that a client sends on its connection; the first one is plain."""
    rest = path.removeprefix("/m")
    hidden = _request(path).replace("HOST", host)
    body = f"0\r\n\r\n{hidden}"
    found = [_request(target.replace("REST", rest)) for target in TARGETS]
    found += [_request(path, field) for field in FIELDS]
    found += [_request("/v1/models", field.replace("REST", rest)) for field in MOVES]
    found += [_request(path, method=method) for method in ("HEAD", "OPTIONS", "get", "TRACE", "CONNECT")]
    found += [_request(path, version="HTTP/1.0"), f"GET {path}\r\n\r\n"]
    found += [_request("/v1/models", close="keep-alive") + hidden]
    found += [
        _request("/v1/models", field.replace("LENGTH", str(len(body))), method="POST", close="keep-alive") + body
        for field in SMUGGLERS
    ]
    return [text.replace("HOST", host).encode("latin-1") for text in found]


def _request(target: str, *fields: str, method: str = "GET", version: str = "HTTP/1.1", close: str = "close") -> str:
    lines = [
        f"{method} {target} {version}",
        "Host: HOST",
        f"Authorization: Bearer {MANAGEMENT_TOKEN}",
        *([] if any(field.startswith("Connection:") for field in fields) else [f"Connection: {close}"]),
        *fields,
    ]
    return "\r\n".join([*lines, "", ""])


def ask(balancer: Balancer, source: str, request: bytes) -> bytes:
    """Send bytes from an address, and return all that comes back until the other side closes, or is silent for long."""
    place = urlsplit(balancer.url)
    with (
        socket.create_connection((str(place.hostname), place.port or 443), 10, (source, 0)) as plain,
        balancer.tls.wrap_socket(plain, server_hostname=str(place.hostname)) as connection,
    ):
        answer = b""
        connection.sendall(request)
        connection.settimeout(1)
        try:
            while piece := connection.recv(65536):
                answer += piece
        except (TimeoutError, ssl.SSLError, ConnectionError):
            pass
        return answer
