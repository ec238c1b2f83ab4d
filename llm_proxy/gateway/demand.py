"""What a request will use, for limits: its models, its prompt, and the most that it can cost."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from attrs import define, field

from llm_proxy.gateway.requested_model import requested_model
from llm_proxy.gateway.usage import Usage, estimate
from llm_proxy.gateway.worst_case import worst_case
from llm_proxy.limits import Bound

if TYPE_CHECKING:
    from llm_proxy.gateway.inbound import Inbound
    from llm_proxy.gateway.providers.provider import Providers
    from llm_proxy.prices import Prices


@define(eq=False)
class RequestDemand:
    """Reads the request's body when a limit asks, once; see `llm_proxy.limits.Demand`."""

    _inbound: Inbound
    _providers: Providers
    _prices: Prices
    _models: dict[str, Sequence[str]] = field(factory=dict)
    _bounds: dict[str, Bound] = field(factory=dict)
    _input: int | None = None

    def models(self, provider: str) -> Sequence[str]:
        found = self._models.get(provider)
        if found is None:
            model = requested_model(self._inbound, self._providers.by_name[provider])
            found = self._models[provider] = (model,) if model else ()
        return found

    def generates(self, provider: str) -> bool:
        inbound, entry = self._inbound, self._providers.by_name[provider]
        return inbound.method == "POST" and (
            estimate.reads(inbound.route.path) or entry.endpoints.model(inbound.route.path) is not None
        )

    def input_tokens(self) -> int:
        if self._input is None:
            inbound = self._inbound
            size = max(inbound.received, inbound.content_length or 0)
            self._input = estimate.input_tokens(*inbound.ends(), size)
        return self._input

    def input_cost(self, provider: str) -> int | None:
        for model in self.models(provider):
            usage = Usage(model=model, input_tokens=self.input_tokens(), output_tokens=0)
            cost = self._prices.cost(provider, (usage,), datetime.now(UTC), model)
            return None if cost is None else cost.nanousd
        return None

    def worst_case(self, provider: str) -> Bound:
        found = self._bounds.get(provider)
        if found is None:
            inbound = self._inbound
            if inbound.method == "POST":
                models = self.models(provider)
                found = worst_case(inbound.route.path, inbound.complete(), models, provider, self._prices)
            else:
                found = Bound(0, 0, 0)
            self._bounds[provider] = found
        return found
