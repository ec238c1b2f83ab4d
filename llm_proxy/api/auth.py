"""Authentication on the control plane: the management token.

The right token passes, whatever else came from its address. Wrong ones are neither counted against an address nor
delayed: the defence against guessing is the length of the token, which the settings check.
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

#: Shortest time in seconds between two log lines about wrong tokens.
LOG_INTERVAL: Final = 10.0

_log = log.logger("manage")


class Guard:
    """Checks the management token."""

    def __init__(self, token: str) -> None:
        """Take the management token; only a hash of it is kept."""
        self._expected = _hash(token)
        self._logged_at = -math.inf
        self._refused = 0

    def admit(self, address: str, authorization: Sequence[str]) -> None:
        """Let a request pass or refuse it.

        Args:
            address: of the client, for the log.
            authorization: the values of its `Authorization` headers.

        Raises:
            Unauthorized: there is no management token in them, or not the right one.
        """
        token = _bearer(authorization)
        if token is None:
            raise Unauthorized
        # Hashes have one length, so the comparison takes the same time for any guess (and any length of the secret).
        if hmac.compare_digest(_hash(token), self._expected):
            return
        self._refused += 1
        now = trio.current_time()
        if now >= self._logged_at + LOG_INTERVAL:
            _log.warning("a wrong management token was refused", address=address, attempts=self._refused)
            self._logged_at, self._refused = now, 0
        raise Unauthorized("The management token is wrong.")


def _bearer(authorization: Sequence[str]) -> str | None:
    """Read the token; None unless there is exactly one header and it has the scheme."""
    if len(authorization) != 1:
        return None
    scheme, _, token = authorization[0].strip().partition(" ")
    return token.strip() or None if scheme.lower() == "bearer" else None


def _hash(token: str) -> bytes:
    return hashlib.sha256(token.encode("utf-8", "backslashreplace")).digest()
