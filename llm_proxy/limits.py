"""Limits: their windows, what a request holds of them, and when it is refused. Pure functions.

Windows are calendar periods in UTC by the database's clock. A request counts in the window in which it was admitted.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from functools import lru_cache
from typing import TYPE_CHECKING, Final, Protocol

import msgspec

from llm_proxy.errors import (
    BodyNotRead,
    BudgetExceeded,
    BudgetReserved,
    ModelNotAllowed,
    ModelNotPriced,
    ProxyError,
    RateLimitExceeded,
    RequestLimitExceeded,
)
from llm_proxy.logging.redaction import quoted

if TYPE_CHECKING:
    from db.records import Limit, Metric, Period

_NANO: Final = 10**9
_TOKENS: Final = frozenset({"tokens", "input_tokens", "output_tokens"})
_SHORT: Final = frozenset({"minute", "hour"})
_LENGTHS: Final = {
    "minute": timedelta(minutes=1),
    "hour": timedelta(hours=1),
    "day": timedelta(days=1),
    "week": timedelta(weeks=1),
}
#: Longest `Retry-After` in seconds of a refusal that only running requests cause.
_SOON: Final = 1


class Bound(msgspec.Struct, frozen=True):
    """The most that a request can use; `cost` is in 10^-9 USD, None without a price."""

    input_tokens: int
    output_tokens: int
    cost: int | None

    def amount(self, metric: Metric) -> int | None:
        match metric:
            case "cost":
                return self.cost
            case "input_tokens":
                return self.input_tokens
            case "output_tokens":
                return self.output_tokens
            case _:
                return self.input_tokens + self.output_tokens


class Demand(Protocol):
    """What a request will use, read from its body when a limit asks."""

    def models(self, provider: str) -> Sequence[str]:
        """All models that it names; raises `ModelNotAllowed` if it may name others."""

    def generates(self, provider: str) -> bool:
        """Whether its endpoint bills tokens or anything else."""

    def input_tokens(self) -> int:
        """An estimate of the tokens of its prompt."""

    def input_cost(self, provider: str) -> int | None:
        """The price of that in 10^-9 USD; None if the model has no price."""

    def is_unpriced_later(self, provider: str) -> bool:
        """Whether it is charged when its usage is known, and names a model without a price, or may name one."""

    def worst_case(self, provider: str) -> Bound:
        """The most that it can use; raises `CostUnbounded` if that cannot be computed."""


class Blocked(msgspec.Struct, frozen=True):
    """Only running requests are in the way: the request may wait for `seconds`, behind others of the same limit."""

    limit_id: str
    seconds: float
    error: ProxyError


def started_at(period: Period, now: datetime) -> datetime | None:
    """The start of the window; None if it has none."""
    if period == "total":
        return None
    if period == "minute":
        return now.replace(second=0, microsecond=0)
    hour = now.replace(minute=0, second=0, microsecond=0)
    if period == "hour":
        return hour
    day = hour.replace(hour=0)
    if period == "day":
        return day
    return day.replace(day=1) if period == "month" else day - timedelta(days=day.weekday())


def ends_at(period: Period, start: datetime | None) -> datetime | None:
    """When the window that starts then ends; None if it never does."""
    if start is None:
        return None
    if period == "month":
        return (start + timedelta(days=32)).replace(day=1)
    return start + _LENGTHS[period]


@lru_cache(maxsize=1024)
def _compiled(patterns: tuple[str, ...]) -> re.Pattern[str]:
    return re.compile("|".join(map(fnmatch.translate, patterns)), re.IGNORECASE)


def matches(patterns: Sequence[str], model: str) -> bool:
    """Whether a model's name matches one of these patterns (`*`, `?`, `[…]`); case does not matter."""
    return _compiled(tuple(patterns)).match(model) is not None


def covers(models: Mapping[str, Sequence[str]], demand: Demand, provider: str) -> bool:
    """Whether a limit of these models counts the request; it does if its models cannot be read."""
    try:
        return any(matches(models["patterns"], model) for model in demand.models(provider))
    except ModelNotAllowed:
        return True


def model_refusal(lists: Iterable[Mapping[str, Sequence[str]]], demand: Demand, provider: str) -> ProxyError | None:
    """Why a request is refused by these allow-lists of models; None if each allows all models that it names."""
    for allowed in lists:
        patterns = allowed["patterns"]
        try:
            wrong = next((model for model in demand.models(provider) if not matches(patterns, model)), None)
        except BodyNotRead as error:
            return error
        except ModelNotAllowed as error:
            reason = error.message
        else:
            if wrong is None:
                continue
            reason = f"The model {quoted(wrong)} is not allowed here."
        return ModelNotAllowed(f"{reason.rstrip('.')}. Allowed models: {', '.join(patterns)}.", param="model")
    return None


def held(limit: Limit, demand: Demand, provider: str) -> int:
    """What the request holds of the limit from its admission to its settlement.

    Under `reserved`, that is its worst case. Otherwise it is what the request is charged if its worker dies: the
    estimate of its input.

    Raises:
        ModelNotPriced: the limit is one of money, and the model has no price.
        CostUnbounded: the limit is `reserved`, and the maximum cost of the request cannot be computed.
    """
    if limit.metric in ("requests", "concurrency"):
        return 1
    needs_price = limit.metric == "cost" and not limit.allow_unpriced and limit.policy != "warn"
    if limit.policy == "reserved":
        amount = demand.worst_case(provider).amount(limit.metric)
    elif not demand.generates(provider):
        amount = None if needs_price and demand.is_unpriced_later(provider) else 0
    elif limit.metric == "cost":
        amount = demand.input_cost(provider)
        if amount is None and not needs_price:
            amount = 0
    else:
        amount = 0 if limit.metric == "output_tokens" else demand.input_tokens()
    if amount is None:
        raise _unpriced(demand, provider)
    return amount


def verdict(limit: Limit, used: int, reserved: int, wanted: int, now: datetime) -> ProxyError | Blocked | None:
    """Why a request that holds `wanted` is refused, None if it is admitted.

    `used` and `reserved` are the counter of the limit's window before it.
    """
    counted = used + reserved + wanted if limit.reserves else used + 1
    if limit.policy == "warn" or counted <= limit.amount:
        return None
    if limit.metric == "concurrency":
        message = f"{_name(limit)} is reached: {reserved} run now."
        return Blocked(limit.id, limit.wait_ms / 1000, RateLimitExceeded(message, retry_after=_SOON))
    if limit.metric == "requests":
        return _exceeded(limit, used + reserved, now)
    if used >= limit.amount:
        return _exceeded(limit, used, now)
    if used + wanted > limit.amount:
        return _exceeded(limit, used, now, wanted)
    message = (
        f"{_name(limit)} is reserved by running requests: {_shown(limit, used)} are used and"
        f" {_shown(limit, reserved)} reserved; this request may use up to {_shown(limit, wanted)}. Send it again soon."
    )
    return Blocked(limit.id, limit.wait_ms / 1000, BudgetReserved(message, retry_after=_SOON))


def behind(limit: Limit) -> Blocked:
    """Why a request waits that would be admitted if no earlier request waited for the same limit."""
    kind = RateLimitExceeded if limit.metric == "concurrency" else BudgetReserved
    message = (
        f"{_name(limit)} is reserved by running requests, and other requests wait for it. Send the request again soon."
    )
    return Blocked(limit.id, limit.wait_ms / 1000, kind(message, retry_after=_SOON))


def warns(limit: Limit, used: int) -> bool:
    """Whether what is used is a reason to warn."""
    if limit.policy == "warn" and used >= limit.amount:
        return True
    return limit.warn_at is not None and used * 100 >= limit.amount * limit.warn_at


def _exceeded(limit: Limit, used: int, now: datetime, wanted: int = 0) -> ProxyError:
    """The refusal of a request that does not fit, with its worst case under `reserved` if that is what does not."""
    resets_at = ends_at(limit.period, started_at(limit.period, now))
    if wanted:
        left = f"{_shown(limit, limit.amount - used)} of {_shown(limit, limit.amount)}"
        message = f"{_name(limit)} has {left} left, and this request may use up to {_shown(limit, wanted)}."
        less = "" if limit.metric == "input_tokens" else ", or with a smaller maximum of output tokens"
        message += f" Send a shorter one{less}."
    else:
        of = _shown(limit, used) if limit.metric == "cost" else used
        message = f"{_name(limit)} is used up: {of} of {_shown(limit, limit.amount)} are used."
    retry_after = None
    if wanted > limit.amount:
        message += " Waiting does not help."
    elif resets_at is None:
        message += " Ask the operator of this proxy to raise it."
    else:
        message += f" It resets at {resets_at:%Y-%m-%dT%H:%M:%SZ}."
        retry_after = max(1, -int((now - resets_at).total_seconds() // 1))
    if limit.metric == "requests" and resets_at is None:
        return RequestLimitExceeded(message)
    if limit.metric == "requests" or (limit.metric in _TOKENS and limit.period in _SHORT):
        return RateLimitExceeded(message, retry_after=retry_after)
    return BudgetExceeded(message, retry_after=retry_after)


def _unpriced(demand: Demand, provider: str) -> ProxyError:
    try:
        named = " or ".join(f"'{model}'" for model in demand.models(provider)) or "of this request"
    except ModelNotAllowed as error:
        return ModelNotPriced(f"{error.message} A cost limit applies, so the price must be known.")
    return ModelNotPriced(
        f"The model {named} has no price, and a cost limit applies. Ask the operator of this proxy for a price."
    )


def _name(limit: Limit) -> str:
    whose = {"token": "the API token", "project": "the project", "proxy": "this proxy"}[limit.scope]
    metric = limit.metric.replace("_", " ")
    if limit.metric == "concurrency":
        kind = f"limit of {limit.amount} concurrent requests"
    elif limit.period == "total":
        kind = f"limit of {metric}" if limit.metric != "cost" else "budget"
    else:
        kind = f"limit of {metric} per {limit.period}" if limit.metric != "cost" else f"budget per {limit.period}"
    models = "" if limit.models is None else f" for {', '.join(limit.models['patterns'])}"
    return f"The {kind}{models} of {whose}"


def _shown(limit: Limit, amount: int) -> str:
    """An amount with its unit."""
    if limit.metric == "cost":
        return f"${dollars(amount)}"
    return f"{amount} {limit.metric.replace('_', ' ')}"


def dollars(nanousd: int) -> str:
    """An amount of money in USD, with two digits after the point or as many as it needs."""
    fraction = f"{nanousd % _NANO:09d}".rstrip("0")
    return f"{nanousd // _NANO}.{fraction:0<2}"
