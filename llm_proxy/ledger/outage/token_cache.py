"""The tokens that the database has accepted lately, as this worker saw them. In memory, bounded, without I/O.

Nothing is decided by it while the database answers.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from datetime import datetime

from attrs import define, field, frozen

from db.records import Account, Limit, Token
from llm_proxy.errors import (
    BudgetExceeded,
    DatabaseUnavailable,
    ProjectInactive,
    ProxyError,
    RequestLimitExceeded,
    TokenExpired,
    TokenInactive,
    TokenInvalid,
)
from llm_proxy.ledger.transaction import AdmissionRequest, Grant, list_verdict
from llm_proxy.tokens import key_verdict, limit_verdict, verdict

#: Maximum number of cached tokens; beyond it, the one that was verified least recently is removed.
MAX_TOKENS = 10_000

#: Refusals that concern the token, not the request.
_TOKEN_REFUSALS = (TokenInvalid, TokenInactive, TokenExpired, ProjectInactive, RequestLimitExceeded, BudgetExceeded)


@frozen
class OutageLimits:
    """How far a worker may go without the database. Durations are seconds."""

    window: float  # how long ago the database may have accepted the token
    requests: int  # maximum number of requests of one token since then
    duration: float  # maximum duration of the outage mode, from its first request on


def needs_database(limit: Limit) -> bool:
    """Whether no request of its token is admitted without the database.

    Others would not know what is reserved, what runs, or what is used of a short window. A limit for the whole life is
    exceeded by as much as the outage mode admits. One that only warns refuses nothing.
    """
    if limit.policy == "warn":
        return False
    return limit.metric == "concurrency" or limit.policy == "reserved" or limit.period != "total"


@define(eq=False)
class CachedToken:
    """A token as the database returned it last."""

    token: Token
    account: Account = field(repr=False)  # of its project, which was active, with its keys
    counted: int  # its counter then
    verified_at: float  # the worker's clock when the database last admitted one of its requests
    used: int = 0  # requests that were admitted from the cache since then
    limits: frozenset[str] | None = frozenset()  # ids of those that need the database; None: not known yet


@define(eq=False)
class TokenCache:
    """Cached tokens by digest, the one that was verified last at the end."""

    limits: OutageLimits
    _tokens: OrderedDict[bytes, CachedToken] = field(factory=OrderedDict, repr=False)

    def __len__(self) -> int:
        return len(self._tokens)

    def record(self, digest: bytes, decision: Grant | ProxyError, clock: float, *, keep_used: bool) -> None:
        """Cache what a transaction of the ledger decided.

        Args:
            digest: of the token.
            decision: about one of its requests.
            clock: the worker's clock.
            keep_used: the database does not have the requests that were admitted from the cache.
        """
        if isinstance(decision, Grant):
            former = self._tokens.pop(digest, None)
            used = former.used if former is not None and keep_used else 0
            limits: frozenset[str] | None = frozenset()
            if decision.token.limited or decision.account.limited:
                # The grant has those that its model has, and the others are read by the next refresh.
                limits = None if former is None else former.limits
                passed = {state.limit.id for state in decision.limits if needs_database(state.limit)}
                if passed:
                    limits = (limits or frozenset()) | passed
            self._tokens[digest] = CachedToken(decision.token, decision.account, decision.counted, clock, used, limits)
            if len(self._tokens) > MAX_TOKENS:
                self._tokens.popitem(last=False)
        elif isinstance(decision, _TOKEN_REFUSALS):
            self._tokens.pop(digest, None)

    def remove_stale(self, clock: float) -> list[bytes]:
        """Remove the tokens that were verified before the window; return the digests of the others."""
        while self._tokens and next(iter(self._tokens.values())).verified_at < clock - self.limits.window:
            self._tokens.popitem(last=False)
        return list(self._tokens)

    def refresh(
        self, digest: bytes, found: tuple[Token, Account] | None, limits: Iterable[Limit], now: datetime
    ) -> None:
        """Take over a token's rows, and its limits, as they are now; remove it if it is no longer valid.

        This does not verify the token: no request of it was admitted.
        """
        cached = self._tokens.get(digest)
        if cached is None:
            return
        if found is None or verdict(*found, now) is not None:
            del self._tokens[digest]
            return
        cached.token, cached.account = found
        cached.limits = frozenset(limit.id for limit in limits if needs_database(limit))
        # A transaction may have counted further since the rows were read.
        cached.counted = max(cached.counted, cached.token.request_count)

    def authorize_offline(self, request: AdmissionRequest, clock: float, now: datetime) -> tuple[CachedToken, str]:
        """Judge a request by its cached token; return that and the provider. The caller adds to `used`.

        Raises ProxyError. If the token itself is the reason, it is `DatabaseUnavailable`: the token may have been
        changed where this worker cannot see it.
        """
        cached = self._tokens.get(request.digest)
        if cached is None or cached.verified_at < clock - self.limits.window or cached.used >= self.limits.requests:
            raise DatabaseUnavailable
        if cached.limits is None or cached.limits:
            raise DatabaseUnavailable
        token, project = cached.token, cached.account.project
        provider = request.provider(cached.account)
        taken = cached.counted - token.request_count + cached.used
        unusable = (
            verdict(token, cached.account, now) or key_verdict(cached.account, provider) or limit_verdict(token, taken)
        )
        # Which objects are the project's is known to the database alone.
        named = request.named is not None and request.named.judged
        refusal = (
            DatabaseUnavailable()
            if unusable
            else request.refusal(provider)
            or list_verdict(request, token, cached.account, provider)
            or (DatabaseUnavailable() if named else None)
        )
        if refusal is not None:
            raise refusal.about(token.id, project.id, provider)
        return cached, provider

    def has_valid(self, clock: float) -> bool:
        """Whether any token is within the window."""
        last = next(reversed(self._tokens.values()), None)
        return last is not None and last.verified_at >= clock - self.limits.window
