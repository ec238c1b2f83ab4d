"""The client's address from `X-Forwarded-For`, without I/O.

Every proxy adds the address of its peer at the right end, and a client can send any value before it. So the header is
read from the right, as long as the proxy that wrote an address is trusted.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from functools import lru_cache
from ipaddress import IPv4Network, IPv6Network, ip_address
from typing import Final, NamedTuple

#: An address, with the port that some proxies add.
_WITH_PORT: Final = re.compile(r"(?:\[(?P<v6>[^\]]*)\]|(?P<v4>[0-9.]+))(?::[0-9]{1,5})?")
#: Maximum length of an address with the name of an interface.
_MAX_LENGTH: Final = 80


class _Hop(NamedTuple):
    """One address on the way of a request."""

    address: str
    trusted: bool


class TrustedProxies:
    """Believes the header of the proxies in some networks."""

    def __init__(self, networks: Iterable[IPv4Network | IPv6Network]) -> None:
        self._networks = tuple(networks)
        # Most requests come from the same few addresses.
        self._hop = lru_cache(maxsize=4096)(self._read)

    def client(self, peer: str, headers: Sequence[tuple[bytes, bytes]]) -> str:
        """The address of a request's client; `peer` is the one of the connection. Header names are in lower case."""
        hop = self._hop(peer)
        if hop is None or not hop.trusted:
            return peer
        written = b",".join([value for name, value in headers if name == b"x-forwarded-for"]).decode("latin-1")
        for text in reversed(written.split(",")):
            word = text.strip()
            if not word:
                continue
            further = self._hop(word) if len(word) <= _MAX_LENGTH else None
            if further is None:
                break  # not an address, such as `unknown`: the proxy that wrote it is the last known one
            hop = further
            if not hop.trusted:
                break
        return hop.address

    def _read(self, text: str) -> _Hop | None:
        """Read an address; an IPv4-mapped IPv6 address (RFC 4291 section 2.5.5.2) is read as IPv4."""
        match = _WITH_PORT.fullmatch(text)
        try:
            found = ip_address(text if match is None else match["v6"] or match["v4"])
        except ValueError:
            return None
        address = getattr(found, "ipv4_mapped", None) or found
        return _Hop(str(address), any(address in network for network in self._networks))
