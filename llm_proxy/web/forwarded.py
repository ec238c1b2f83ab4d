"""Whose request it is that a reverse proxy passes on: `X-Forwarded-For`, believed as far as it can be, without I/O.

Every proxy on the way adds to the right the address that it was called from, and anybody can have written what stands
further left. So it is read from the right, for as long as the proxy that wrote an address is itself a trusted one.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from functools import lru_cache
from ipaddress import IPv4Network, IPv6Network, ip_address
from typing import Final, NamedTuple

#: An address with the port that some proxies write after it.
_WITH_PORT: Final = re.compile(r"(?:\[(?P<v6>[^\]]*)\]|(?P<v4>[0-9.]+))(?::[0-9]{1,5})?")
#: Characters of the longest address, with room for the name of an interface.
_LONGEST: Final = 80


class _Hop(NamedTuple):
    """One station of a request."""

    address: str
    trusted: bool


class TrustedProxies:
    """Believes the proxies of some networks."""

    def __init__(self, networks: Iterable[IPv4Network | IPv6Network]) -> None:
        """Take the networks that the proxies are in."""
        self._networks = tuple(networks)
        # The same few proxies and clients come again and again.
        self._hop = lru_cache(maxsize=4096)(self._read)

    def client(self, peer: str, headers: Sequence[tuple[bytes, bytes]]) -> str:
        """The address of a request's client.

        Args:
            peer: the address that the connection comes from.
            headers: of the request; names in lower case.
        """
        hop = self._hop(peer)
        if hop is None or not hop.trusted:
            return peer
        written = b",".join([value for name, value in headers if name == b"x-forwarded-for"]).decode("latin-1")
        for text in reversed(written.split(",")):
            word = text.strip()
            if not word:
                continue
            further = self._hop(word) if len(word) <= _LONGEST else None
            if further is None:
                break  # no address, such as `unknown`: the proxy that wrote it is the last that is known
            hop = further
            if not hop.trusted:
                break
        return hop.address

    def _read(self, text: str) -> _Hop | None:
        """Read an address; one of IPv4 that is written as IPv6 (RFC 4291 section 2.5.5.2) is the IPv4 address."""
        match = _WITH_PORT.fullmatch(text)
        try:
            found = ip_address(text if match is None else match["v6"] or match["v4"])
        except ValueError:
            return None
        address = getattr(found, "ipv4_mapped", None) or found
        return _Hop(str(address), any(address in network for network in self._networks))
