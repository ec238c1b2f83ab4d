"""Which web pages may call the proxy from a browser: the CORS protocol, without I/O.

A browser shows a script the response of another origin only if the response names the origin of the page. Before it
sends a token, it asks by a preflight: `OPTIONS` with the headers `Origin` and `Access-Control-Request-Method`, without
a token (Fetch Standard, "CORS protocol").

Cookies are not used, so credentials are not allowed, and a page of an allowed origin still needs a token.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Final

Headers = Sequence[tuple[bytes, bytes]]
HeaderList = list[tuple[bytes, bytes]]

#: Headers that the proxy adds to responses and that SDKs in browsers read.
EXPOSED: Final = (
    b"X-Request-ID, Request-ID, X-LLM-Proxy-Request-ID, X-LLM-Proxy-Overhead-Ms, Retry-After, X-Should-Retry"
)
#: For every path; a method that a path does not allow is refused when the request itself comes.
METHODS: Final = b"GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS"
#: Seconds for which a browser may cache the answer; browsers keep it for two hours at most.
MAX_AGE: Final = b"7200"

_PREFLIGHT_VARY: Final = b"Origin, Access-Control-Request-Method, Access-Control-Request-Headers"
#: A serialised origin, or a list of header names: nothing that could end the header in which it is sent back.
_ORIGIN: Final = re.compile(rb"[\x21-\x7e]+")
_NAMES: Final = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z, -]+")


class CrossOrigin:
    """Allows the pages of some origins, as browsers write them; `*` means every origin."""

    def __init__(self, origins: Iterable[str]) -> None:
        self._origins = frozenset(origin.encode("ascii") for origin in origins)
        self._all = b"*" in self._origins

    def origin(self, headers: Headers) -> bytes | None:
        """The origin of a request; None if it is not allowed."""
        found = [value for name, value in headers if name == b"origin"]
        if len(found) != 1 or not (found[0] in self._origins or (self._all and _ORIGIN.fullmatch(found[0]))):
            return None
        return found[0]

    def preflight(self, method: str, headers: Headers) -> HeaderList | None:
        """The headers of the response to a preflight, which has status 204 and no body.

        None if the request is not a preflight or its origin is not allowed; then it is handled like any other request.
        """
        if method != "OPTIONS" or not any(name == b"access-control-request-method" for name, _ in headers):
            return None
        origin = self.origin(headers)
        if origin is None:
            return None
        answer = [
            (b"access-control-allow-origin", origin),
            (b"access-control-allow-methods", METHODS),
            (b"access-control-max-age", MAX_AGE),
            (b"vary", _PREFLIGHT_VARY),
        ]
        names = b", ".join(value for name, value in headers if name == b"access-control-request-headers")
        if _NAMES.fullmatch(names):
            # By their names: `*` would not include Authorization.
            answer.append((b"access-control-allow-headers", names))
        return answer

    def mark(self, headers: Headers, origin: bytes | None) -> HeaderList:
        """Add to the headers of a response what a browser needs for a page of `origin` (None: not allowed).

        CORS headers of the provider are removed: they are about the provider's origin, and the page called the proxy.
        """
        marked = [header for header in headers if not header[0].startswith(b"access-control-")]
        if not any(name == b"vary" and _names_origin(value) for name, value in marked):
            # Without an origin too: a cache must not give this response to a page.
            marked.append((b"vary", b"Origin"))
        if origin is not None:
            marked.append((b"access-control-allow-origin", origin))
            marked.append((b"access-control-expose-headers", EXPOSED))
        return marked


def _names_origin(vary: bytes) -> bool:
    names = {name.strip(b" \t") for name in vary.lower().split(b",")}
    return not names.isdisjoint((b"origin", b"*"))
