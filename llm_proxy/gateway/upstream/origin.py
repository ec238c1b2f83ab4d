"""Where an upstream is, and how long it may take."""

from __future__ import annotations

from functools import cached_property
from typing import Final

from attrs import field, frozen, validators

_DEFAULT_PORTS: Final = {"http": 80, "https": 443}


@frozen(slots=False)
class Origin:
    """Scheme, host and port of an upstream (RFC 9110 §4.3.1), from configuration alone.

    `host` is a name in ASCII (IDNA-encoded where need be) or an IP address without brackets.
    """

    scheme: str = field(validator=validators.in_(_DEFAULT_PORTS))
    host: str = field(validator=validators.matches_re(r"[A-Za-z0-9._:%-]+"))
    port: int = field(validator=[validators.ge(1), validators.le(65535)])

    @cached_property
    def authority(self) -> bytes:
        """The value of `Host` (RFC 9110 §7.2): IPv6 addresses in brackets, the scheme's default port left out."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return (host if self.port == _DEFAULT_PORTS[self.scheme] else f"{host}:{self.port}").encode("ascii")

    def __str__(self) -> str:
        """Host and port, as messages speak of it."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@frozen
class Timeouts:
    """How long an upstream may take, in seconds; `math.inf` means for ever.

    `connect` covers name resolution, TCP and TLS together. `response_header` runs from the request fully sent to the
    head of the final response; interim (1xx) responses do not restart it. `idle` is the longest time without a byte in
    either direction while a body is under way.
    """

    connect: float = field(validator=validators.gt(0))
    response_header: float = field(validator=validators.gt(0))
    idle: float = field(validator=validators.gt(0))
