"""Reports to the operator: limits that warn, and requests that used more than they had reserved."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Final

from attrs import define, field

from llm_proxy.limits import Bound
from llm_proxy.logging import log

if TYPE_CHECKING:
    from collections.abc import Iterable

    from structlog.typing import FilteringBoundLogger

    from db.records import Result
    from llm_proxy.ledger import Grant
    from llm_proxy.ledger.limits import LimitState
    from llm_proxy.metrics import Metrics

#: Windows of limits for which it is known that the warning was given. Tokens can have any number of limits.
_REMEMBERED: Final = 4096


@define(eq=False)
class LimitReports:
    """Reports on requests with limits. A limit warns once in each of its windows, in each process."""

    _metrics: Metrics
    _warned: dict[tuple[str, datetime | None], None] = field(factory=dict, init=False)
    _events: FilteringBoundLogger = field(factory=lambda: log.logger("limits"), init=False)

    def judged(self, states: Iterable[LimitState]) -> None:
        """Warn of the limits of which enough is used. These have judged a request, which may have been refused."""
        for state in states:
            limit = state.limit
            window = limit.id, state.ends_at
            if state.warns and window not in self._warned:
                if len(self._warned) >= _REMEMBERED:
                    del self._warned[next(iter(self._warned))]
                self._warned[window] = None
                self._metrics.limit_warning(limit.scope)
                self._events.warning(
                    "a limit is nearly used up" if state.used < limit.amount else "a limit is used up",
                    limit_id=limit.id,
                    scope=limit.scope,
                    subject=limit.subject,
                    metric=limit.metric,
                    window=limit.period,
                    used=state.used,
                    amount=limit.amount,
                )

    def settled(self, grant: Grant, result: Result) -> None:
        """Report that the request used more than it had reserved. That is charged anyway."""
        reserved = [state.limit for state in grant.limits if state.limit.policy == "reserved"]
        if not reserved:
            return
        used = Bound(result.input_tokens or 0, result.output_tokens or 0, result.cost_nanousd)
        held = {key.partition(" ")[0]: amount for key, amount in (grant.reservation.limits or {}).items()}
        for limit in reserved:
            if (amount := used.amount(limit.metric) or 0) > held[limit.id]:
                self._metrics.reservation_exceeded(grant.reservation.provider)
                self._events.error(
                    "a request used more than it had reserved",
                    request_id=grant.reservation.id,
                    limit_id=limit.id,
                    metric=limit.metric,
                    used=amount,
                    reserved=held[limit.id],
                )
