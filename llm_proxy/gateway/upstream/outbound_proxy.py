"""The outbound proxy that the environment configures.

The variables are those of curl and most other programs: `HTTPS_PROXY` for https origins, `HTTP_PROXY` for http origins,
`ALL_PROXY` for both, `NO_PROXY` for exceptions. Lower-case names take precedence. An empty variable counts as unset.
"""

from __future__ import annotations

import base64
import ipaddress
from collections.abc import Mapping
from typing import Literal
from urllib.parse import unquote_to_bytes, urlsplit

from attrs import field, frozen

from llm_proxy.gateway.upstream.connector import Origin


@frozen
class OutboundProxy:
    """An HTTP proxy for outgoing connections.

    `scheme` is that of the proxy itself: with `https`, the connection to it is encrypted. `credentials` are user name
    and password.
    """

    scheme: Literal["http", "https"]
    host: str
    port: int
    credentials: tuple[bytes, bytes] | None = field(repr=False)

    @property
    def headers(self) -> list[tuple[bytes, bytes]]:
        """The header fields that the proxy itself needs (RFC 9110 section 11.7.2)."""
        if self.credentials is None:
            return []
        return [(b"Proxy-Authorization", b"Basic " + base64.b64encode(b":".join(self.credentials)))]

    def __str__(self) -> str:
        return f"{self.scheme}://{f'[{self.host}]' if ':' in self.host else self.host}:{self.port}"


def outbound_proxy(origin: Origin, environ: Mapping[str, str]) -> OutboundProxy | None:
    """The proxy for requests to `origin`, or None if they go directly, as they always do on loopback.

    Raises `ValueError` if the proxy's URL cannot be used. The message names the variable, never its value.
    """
    for name in (f"{origin.scheme}_proxy", "all_proxy"):
        for variable in (name, name.upper()):
            if url := environ.get(variable, "").strip():
                exceptions = environ.get("no_proxy") or environ.get("NO_PROXY") or ""
                return None if _is_exempt(origin, exceptions) else _parse(variable, url)
    return None


def _parse(variable: str, url: str) -> OutboundProxy:
    try:
        parts = urlsplit(url if "://" in url else f"http://{url}")
        scheme, host, port = parts.scheme.lower(), parts.hostname, parts.port
    except ValueError:
        raise ValueError(f"{variable} is not a URL like http://proxy.example:3128") from None
    if scheme not in {"http", "https"}:
        raise ValueError(f"{variable} must begin with http:// or https://: other kinds of proxies are not supported")
    if not host or parts.path not in {"", "/"} or parts.query or parts.fragment:
        raise ValueError(f"{variable} is not a URL like http://proxy.example:3128")
    credentials = None
    if parts.username is not None:
        credentials = (unquote_to_bytes(parts.username), unquote_to_bytes(parts.password or ""))
    secure = scheme == "https"
    return OutboundProxy("https" if secure else "http", host, port or (443 if secure else 80), credentials)


def _is_exempt(origin: Origin, exceptions: str) -> bool:
    """Whether `NO_PROXY` lists the origin. Entries: hosts, domains, addresses, networks, `*`; with or without port."""
    host = origin.host.lower().rstrip(".")
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        address = None
    if host == "localhost" or host.endswith(".localhost") or (address is not None and address.is_loopback):
        return True
    return any(_matches(entry, host, origin.port, address) for entry in exceptions.lower().replace(",", " ").split())


def _matches(entry: str, host: str, port: int, address: ipaddress.IPv4Address | ipaddress.IPv6Address | None) -> bool:
    if entry == "*":
        return True
    if address is not None:
        try:
            return address in ipaddress.ip_network(entry.strip("[]"), strict=False)
        except ValueError:
            pass
    name, colon, number = entry.rpartition(":")
    if colon and number.isdecimal():
        if int(number) != port:
            return False
        entry = name.strip("[]")
    domain = entry.removeprefix("*").removeprefix(".").rstrip(".")
    return bool(domain) and (host == domain or host.endswith(f".{domain}"))
