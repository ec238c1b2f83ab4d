"""What a worker remembers of tokens that the database has opened to it lately. Bounded, in memory, and pure.

Nothing here opens anything while the database answers. It is what the worker can vouch for when it does not.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING

from attrs import define, field, frozen

from llm_proxy.errors import (
    DatabaseUnavailable,
    ProjectInactive,
    ProxyError,
    RequestLimitExceeded,
    TokenExpired,
    TokenInactive,
    TokenInvalid,
)
from llm_proxy.ledger.transaction import Grant
from llm_proxy.tokens import limit_verdict, verdict

if TYPE_CHECKING:
    from datetime import datetime

    from db.records import Project, Token
    from llm_proxy.ledger.transaction import AdmissionRequest

#: Most tokens that a worker remembers; beyond this, it forgets the one that it has not seen for longest.
MAX_KNOWN = 10_000

#: What says that a token opens nothing any more, rather than that a request was wrong.
_CLOSED = (TokenInvalid, TokenInactive, TokenExpired, ProjectInactive, RequestLimitExceeded)


@frozen
class Terms:
    """How far a worker may go without the database; durations are seconds.

    Attributes:
        window: how long ago the database may have opened the token.
        requests: most requests of one token since then.
        duration: how long this may go on for all tokens, from the first such request on.
    """

    window: float
    requests: int
    duration: float


@define(eq=False)
class Acquaintance:
    """A token as the database last showed it.

    Attributes:
        token: its row.
        project_id, provider, sealed_key: of its project, which was active.
        counted: its counter then.
        verified: the worker's clock when it last opened for a request.
        used: requests that were admitted on this knowledge alone.
    """

    token: Token
    project_id: str
    provider: str
    sealed_key: str = field(repr=False)
    counted: int
    verified: float
    used: int = 0


@define(eq=False)
class Circle:
    """The tokens that a worker knows, the one that was verified last at the end."""

    _known: OrderedDict[bytes, Acquaintance] = field(factory=OrderedDict, repr=False)

    def __len__(self) -> int:
        """How many they are."""
        return len(self._known)

    def learn(self, digest: bytes, decision: Grant | ProxyError, clock: float, *, used_too: bool) -> None:
        """Remember what a transaction found out.

        Args:
            digest: of the token.
            decision: what became of the request.
            clock: the worker's clock.
            used_too: what was used on the former knowledge is not in the counter that this decision is based on.
        """
        if isinstance(decision, Grant):
            former = self._known.pop(digest, None)
            used = former.used if former is not None and used_too else 0
            reservation = decision.reservation
            self._known[digest] = Acquaintance(
                decision.token,
                reservation.project_id,
                reservation.provider,
                decision.sealed_key,
                decision.counted,
                clock,
                used,
            )
            if len(self._known) > MAX_KNOWN:
                self._known.popitem(last=False)
        elif isinstance(decision, _CLOSED):
            self._known.pop(digest, None)

    def fresh(self, clock: float, window: float) -> list[bytes]:
        """The digests of those who were verified within `window` seconds; the others are forgotten."""
        while self._known and next(iter(self._known.values())).verified < clock - window:
            self._known.popitem(last=False)
        return list(self._known)

    def review(self, digest: bytes, found: tuple[Token, Project] | None, now: datetime) -> None:
        """Look at a token's and its project's row again: forget what does not open any more, take over what is new.

        It does not count as verified by that: nobody has used it.
        """
        known = self._known.get(digest)
        if known is None:
            return
        if found is None or verdict(*found, now, provider=None) is not None:
            del self._known[digest]
            return
        token, project = found
        # A transaction may have counted further since the rows were read.
        known.token, known.counted = token, max(known.counted, token.request_count)
        known.provider, known.sealed_key = project.provider, project.api_key

    def vouch(self, application: AdmissionRequest, terms: Terms, clock: float, now: datetime) -> Acquaintance:
        """Judge a request by what is known, and count it; raises as `check`."""
        known = self.check(application, terms, clock, now)
        known.used += 1
        return known

    def check(self, application: AdmissionRequest, terms: Terms, clock: float, now: datetime) -> Acquaintance:
        """Judge a request by what is known.

        Whatever about the token stands against it is `DatabaseUnavailable`, because it may have been changed for the
        better where we cannot see it.

        Raises:
            ProxyError: the request is refused.
        """
        known = self._known.get(application.digest)
        if known is None or known.verified < clock - terms.window or known.used >= terms.requests:
            raise DatabaseUnavailable
        token = known.token
        if (
            (token.expires_at is not None and token.expires_at <= now)
            or limit_verdict(token, known.counted - token.request_count + known.used) is not None
            or (application.provider is not None and application.provider != known.provider)
        ):
            refusal: ProxyError | None = DatabaseUnavailable()
        else:
            refusal = application.refusal(known.provider)
        if refusal is not None:
            raise refusal.about(token.id, known.project_id, known.provider)
        return known

    def answers(self, terms: Terms, clock: float) -> bool:
        """Whether anybody could go on now."""
        last = next(reversed(self._known.values()), None)
        return last is not None and last.verified >= clock - terms.window
