"""The server that gets the load, and the bytes of its requests."""

from __future__ import annotations

import re
import ssl
from collections.abc import Iterator, Sequence
from itertools import cycle, repeat
from urllib.parse import urlsplit

from attrs import field, frozen

from llm_proxy.net.tls import client_context

_DEFAULT_PORTS = {"http": 80, "https": 443}
#: Characters that end a line of a head, so no field may contain them (RFC 9110 section 5.5).
_UNSAFE = re.compile(r"[\r\n\0]")


@frozen
class LoadTarget:
    """A server and its requests, which differ only in their tokens."""

    host: str
    port: int
    #: The request before and after its credential.
    prefix: bytes = field(repr=False)
    suffix: bytes = field(repr=False)
    #: Header lines that are used in turn; one empty line if no token is sent.
    credentials: tuple[bytes, ...] = field(default=(b"",), repr=False)
    tls: ssl.SSLContext | None = None
    bodiless: bool = False  # responses have no body, as those to HEAD

    @classmethod
    def render(
        cls,
        method: str,
        url: str,
        headers: Sequence[tuple[str, str]],
        body: bytes,
        *,
        tokens: Sequence[str] = (),
        tls: ssl.SSLContext | None = None,
    ) -> LoadTarget:
        """Render the requests. `headers` may replace `Host`; `tokens` are sent as Bearer credentials, in turn.

        Raises ValueError if the URL or a header is invalid. The message contains no token.
        """
        parts = urlsplit(url)
        if parts.scheme not in _DEFAULT_PORTS or not parts.hostname:
            raise ValueError("the URL must begin with http:// or https://")
        path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        lines = [f"{method} {path} HTTP/1.1"]
        if not any(name.lower() == "host" for name, _ in headers):
            lines.append(f"Host: {parts.netloc.rpartition('@')[2]}")
        lines += [f"{name}: {value}" for name, value in headers]
        if body or method in {"POST", "PUT", "PATCH"}:
            lines.append(f"Content-Length: {len(body)}")
        return cls(
            host=parts.hostname,
            port=parts.port or _DEFAULT_PORTS[parts.scheme],
            prefix=b"".join(_line(line) for line in lines),
            suffix=b"\r\n" + body,
            credentials=tuple(_line(f"Authorization: Bearer {token}") for token in tokens) or (b"",),
            tls=(tls or client_context()) if parts.scheme == "https" else None,
            bodiless=method == "HEAD",
        )

    def requests(self) -> Iterator[bytes]:
        """Return all requests in sequence; it is infinite."""
        if len(self.credentials) == 1:
            return repeat(self.prefix + self.credentials[0] + self.suffix)
        # Not rendered in advance: a hundred thousand requests are much larger than as many tokens.
        return (self.prefix + credential + self.suffix for credential in cycle(self.credentials))


def _line(text: str) -> bytes:
    name = text.partition(" ")[0].rstrip(":")
    if _UNSAFE.search(text):
        raise ValueError(f"{name!r} contains a line break or a NUL")
    try:
        return text.encode("latin-1") + b"\r\n"
    except UnicodeEncodeError:
        raise ValueError(f"{name!r} contains characters that are not allowed in a header") from None
