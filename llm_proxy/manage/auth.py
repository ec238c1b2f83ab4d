"""The door of the control plane: the management token, and patience with those who guess it.

Wrong tokens are counted per client address. An address that has used up its attempts is refused before its token is
looked at, so that guessing gets nowhere; an attempt comes back every few seconds. An address from which the right
token came recently is never refused, only slowed down, because behind one address there may be many clients, and a
guesser among them must not lock the others out.
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import math
from collections import OrderedDict
from collections.abc import Sequence
from typing import Final

import trio
from attrs import define

from llm_proxy import log
from llm_proxy.manage.problems import TooManyAttempts, Unauthorized

#: Wrong tokens in a row that are answered at once, and the seconds after which one more is.
ATTEMPTS: Final = 10
ATTEMPT_INTERVAL: Final = 6.0
#: Seconds for which an address counts as known after the right token came from it.
KNOWN_FOR: Final = 3600.0
#: Seconds that a wrong token waits for its answer where its address is known and has used up its attempts.
SLOWNESS: Final = 1.0
#: Addresses that are remembered; the one that was seen least recently gives way.
_ADDRESSES: Final = 4096

_log = log.logger("manage")


@define
class _Record:
    """What is known of an address. `left` attempts were left at the moment `at`."""

    left: float
    at: float
    known_until: float = -math.inf


class Guard:
    """Lets in who has the management token. Times are trio's."""

    def __init__(self, token: str) -> None:
        """Take the management token; only a hash of it is kept."""
        self._expected = _hash(token)
        self._records: OrderedDict[str, _Record] = OrderedDict()

    async def admit(self, address: str, authorization: Sequence[str]) -> None:
        """Let a request pass or refuse it.

        Args:
            address: of the client.
            authorization: the values of its `Authorization` headers.

        Raises:
            Unauthorized: there is no management token in them, or not the right one.
            TooManyAttempts: too many wrong ones came from this address; this one was not looked at.
        """
        token = _bearer(authorization)
        if token is None:
            raise Unauthorized
        now = trio.current_time()
        record = self._record(_network(address), now)
        exhausted = record.left < 1
        if exhausted and record.known_until < now:
            raise TooManyAttempts(math.ceil((1 - record.left) * ATTEMPT_INTERVAL))
        # Hashes have one length, so the comparison takes the same time for any guess (and any length of the secret).
        if hmac.compare_digest(_hash(token), self._expected):
            record.known_until = now + KNOWN_FOR
            return
        record.left = max(record.left - 1, 0.0)
        _log.warning("a wrong management token was refused", address=address, attempts_left=int(record.left))
        if exhausted:
            await trio.sleep(SLOWNESS)
        raise Unauthorized("The management token is wrong.")

    def _record(self, network: str, now: float) -> _Record:
        """Find or begin the record of an address, with the attempts that came back since."""
        record = self._records.get(network)
        if record is None:
            record = self._records[network] = _Record(float(ATTEMPTS), now)
            if len(self._records) > _ADDRESSES:
                self._records.popitem(last=False)
        self._records.move_to_end(network)
        record.left = min(record.left + (now - record.at) / ATTEMPT_INTERVAL, float(ATTEMPTS))
        record.at = now
        return record


def _bearer(authorization: Sequence[str]) -> str | None:
    """Read the token of the one `Authorization` header; None where there is none, or several."""
    if len(authorization) != 1:
        return None
    scheme, _, token = authorization[0].strip().partition(" ")
    return token.strip() or None if scheme.lower() == "bearer" else None


def _hash(token: str) -> bytes:
    return hashlib.sha256(token.encode("utf-8", "backslashreplace")).digest()


def _network(address: str) -> str:
    """Give the address that stands for a client: of IPv6 the network, because a client has a whole one."""
    try:
        parsed = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return address
    if parsed.version == 6:
        if parsed.ipv4_mapped is not None:
            return str(parsed.ipv4_mapped)
        return str(ipaddress.ip_network((parsed, 64), strict=False))
    return address
