"""Authentication of the management API by the management token.

The right token is always accepted. Wrong ones are neither counted per address nor delayed: what protects the token from
guessing is its length, which the settings check.
"""

from __future__ import annotations

import hashlib
import hmac
import math
from collections.abc import Sequence
from typing import Final

import trio

from llm_proxy.errors import Unauthorized
from llm_proxy.logging import log

#: Who calls with the management token, in the audit log.
ACTOR: Final = "management token"
#: Minimum time in seconds between two log lines about wrong tokens.
LOG_INTERVAL: Final = 10.0

_log = log.logger("manage")


class Guard:
    """Checks the management token, and keeps only its hash. An empty token is never accepted."""

    def __init__(self, token: str) -> None:
        self._expected = _hash(token)
        self._logged_at = -math.inf
        self._refused = 0

    def check(self, address: str, authorization: Sequence[str]) -> None:
        """Check the `Authorization` headers of a request; `address` is for the log. Raises `Unauthorized`."""
        scheme, _, token = authorization[0].strip().partition(" ") if len(authorization) == 1 else ("", "", "")
        token = token.strip()
        if not token or scheme.lower() != "bearer":
            raise Unauthorized
        # Hashes have one length, so the comparison takes the same time for any guess (and any length of the token).
        if hmac.compare_digest(_hash(token), self._expected):
            return
        self._refused += 1
        now = trio.current_time()
        if now >= self._logged_at + LOG_INTERVAL:
            _log.warning("a wrong management token was refused", address=address, attempts=self._refused)
            self._logged_at, self._refused = now, 0
        raise Unauthorized("The management token is wrong.")


def _hash(token: str) -> bytes:
    return hashlib.sha256(token.encode("utf-8", "backslashreplace")).digest()
