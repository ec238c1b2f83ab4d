"""Which web pages may call the proxy from a browser: the CORS protocol, without I/O.

A browser shows a script the answer to a request for another origin only where the answer names the origin of the page.
It asks beforehand whether it may send a request that carries a token, by a preflight: `OPTIONS` with the headers
`Origin` and `Access-Control-Request-Method`, which itself never carries one (Fetch Standard, "CORS protocol").

Cookies play no part, so credentials are not allowed for, and any page of an allowed origin still needs a token.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Final

Headers = Sequence[tuple[bytes, bytes]]
HeaderList = list[tuple[bytes, bytes]]

#: What the proxy itself adds to answers and scripts have a use for; SDKs in browsers read all of them.
EXPOSED: Final = (
    b"X-Request-ID, Request-ID, X-LLM-Proxy-Request-ID, X-LLM-Proxy-Overhead-Ms, Retry-After, X-Should-Retry"
)
#: Whether a path takes a method is said in the answer to the request itself, which has a token.
METHODS: Final = b"GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS"
#: Seconds for which a browser need not ask again; browsers keep it for two hours at most.
MAX_AGE: Final = b"7200"

_PREFLIGHT_VARY: Final = b"Origin, Access-Control-Request-Method, Access-Control-Request-Headers"
#: A serialised origin, or a list of names of headers: nothing that could end the field in which it is sent back.
_ORIGIN: Final = re.compile(rb"[\x21-\x7e]+")
_NAMES: Final = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z, -]+")


class CrossOrigin:
    """Allows the pages of some origins, or of all."""

    def __init__(self, origins: Iterable[str]) -> None:
        """Take the allowed origins as browsers write them, such as `https://app.example.com`; `*` stands for all."""
        self._origins = frozenset(origin.encode("ascii") for origin in origins)
        self._all = b"*" in self._origins

    def origin(self, headers: Headers) -> bytes | None:
        """The origin that a request comes from, where it is an allowed one."""
        found = [value for name, value in headers if name == b"origin"]
        if len(found) != 1 or not (found[0] in self._origins or (self._all and _ORIGIN.fullmatch(found[0]))):
            return None
        return found[0]

    def preflight(self, method: str, headers: Headers) -> HeaderList | None:
        """The headers of the answer to a preflight, which has status 204 and no body.

        None where the request is no preflight, or comes from another origin: then it is a request like any other.
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
            # Each by its name: `*` would not stand for Authorization.
            answer.append((b"access-control-allow-headers", names))
        return answer

    def mark(self, headers: Headers, origin: bytes | None) -> HeaderList:
        """The headers of an answer, with what a browser must know for a page of `origin`, None for no allowed one.

        What a provider says about this is taken out: the page called the proxy, of which the provider knows nothing.
        """
        marked = [field for field in headers if not field[0].startswith(b"access-control-")]
        if not any(name == b"vary" and _names_origin(value) for name, value in marked):
            # An answer without an origin varies too: a cache must not give it to a page.
            marked.append((b"vary", b"Origin"))
        if origin is not None:
            marked.append((b"access-control-allow-origin", origin))
            marked.append((b"access-control-expose-headers", EXPOSED))
        return marked


def _names_origin(vary: bytes) -> bool:
    names = {name.strip(b" \t") for name in vary.lower().split(b",")}
    return not names.isdisjoint((b"origin", b"*"))
