"""The address of an upstream, and its timeouts."""

from __future__ import annotations

from functools import cached_property
from typing import Final

from attrs import field, frozen, validators

_DEFAULT_PORTS: Final = {"http": 80, "https": 443}


@frozen(slots=False)
class Origin:
    """Scheme, host and port of an upstream (RFC 9110 §4.3.1), from configuration alone.

    `host` is an ASCII name (IDNA-encoded if necessary) or an IP address without brackets.
    """

    scheme: str = field(validator=validators.in_(_DEFAULT_PORTS))
    host: str = field(validator=validators.matches_re(r"[A-Za-z0-9._:%-]+"))
    port: int = field(validator=[validators.ge(1), validators.le(65535)])

    @cached_property
    def authority(self) -> bytes:
        """The value of `Host` (RFC 9110 §7.2): IPv6 addresses in brackets, without the scheme's default port."""
        return str(self).removesuffix(f":{_DEFAULT_PORTS[self.scheme]}").encode("ascii")

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@frozen
class Timeouts:
    """Timeouts in seconds; `math.inf` for none.

    `connect` covers name resolution, TCP and TLS together. `response_header` runs from the end of the request to the
    head of the final response; interim (1xx) responses do not restart it. `read` is the longest time without a byte in
    either direction while a body is sent or received.
    """

    connect: float = field(validator=validators.gt(0))
    response_header: float = field(validator=validators.gt(0))
    read: float = field(validator=validators.gt(0))
