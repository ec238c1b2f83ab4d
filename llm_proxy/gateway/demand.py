"""What a request will use, for limits: its models, its prompt, and the most that it can cost."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

import trio
from attrs import define, field

from llm_proxy.errors import CostUnbounded, ModelNotAllowed
from llm_proxy.gateway import named_models
from llm_proxy.gateway.http.headers import content_of
from llm_proxy.gateway.usage import Usage, estimate
from llm_proxy.gateway.worst_case import is_free, worst_case
from llm_proxy.limits import Bound

if TYPE_CHECKING:
    from llm_proxy.gateway.inbound import Inbound
    from llm_proxy.gateway.providers.provider import Providers
    from llm_proxy.prices import Prices

#: Endpoints whose usage is known later, and charged then.
_LATER: Final = re.compile(rb".*/(?:batches|batch/jobs|threads/(?:[^/]+/)?runs)")
#: Bodies with sound, images and files, whose tokens cannot be estimated.
_NO_TEXT: Final = re.compile(rb"(?:multipart|audio|image|video)/.*|application/octet-stream")


@define(eq=False)
class RequestDemand:
    """Reads the request's body when a limit asks, once; see `llm_proxy.limits.Demand`."""

    _inbound: Inbound
    _providers: Providers
    _prices: Prices
    #: The models by provider, or why they cannot be read.
    _models: dict[str, Sequence[str] | ModelNotAllowed] = field(factory=dict)
    _bounds: dict[str, Bound] = field(factory=dict)
    _generates: dict[str, bool] = field(factory=dict)
    _costs: dict[str, int | None] = field(factory=dict)
    _input: int | None = None

    def models(self, provider: str) -> Sequence[str]:
        if provider not in self._models:
            for _ in self._read(provider):
                pass
        found = self._models[provider]
        if isinstance(found, ModelNotAllowed):
            raise ModelNotAllowed(found.message)
        return found

    async def read(self, provider: str) -> None:
        """Read the models in a body that may be long, while other tasks run."""
        for _ in self._read(provider):
            await trio.lowlevel.checkpoint()

    def names_models(self, provider: str) -> bool:
        """Whether the endpoint generates anything, so that its body must say by which model."""
        return named_models.generates(self._inbound, self._providers.by_name[provider])

    def _read(self, provider: str) -> Iterator[None]:
        try:
            found = yield from named_models.named_models(self._inbound, self._providers.by_name[provider])
            self._models[provider] = found
        except ModelNotAllowed as error:
            self._models[provider] = error

    def generates(self, provider: str) -> bool:
        if (found := self._generates.get(provider)) is None:
            inbound = self._inbound
            found = inbound.method == "POST" and not self._is_later()
            found = found and named_models.bills(inbound, self._providers.by_name[provider])
            self._generates[provider] = found
        return found

    def _is_later(self) -> bool:
        return _LATER.fullmatch(self._inbound.route.path) is not None

    def is_unpriced_later(self, provider: str) -> bool:
        if self._inbound.method != "POST" or not self._is_later():
            return False
        try:
            self.models(provider)
        except ModelNotAllowed as error:
            # What is stored at the provider names them, a file or an assistant: that cannot be judged.
            return error.message not in named_models.ELSEWHERE
        return self.input_cost(provider) is None

    def input_tokens(self) -> int:
        if self._input is None:
            inbound = self._inbound
            if _NO_TEXT.fullmatch(content_of(inbound.content)[0]):
                self._input = 0
                return 0
            named_models.require_body(inbound)
            size = max(inbound.received, inbound.content_length or 0)
            self._input = estimate.input_tokens(*inbound.ends(), size)
        return self._input

    def input_cost(self, provider: str) -> int | None:
        if provider not in self._costs:
            self._costs[provider] = self._input_cost(provider)
        return self._costs[provider]

    def _input_cost(self, provider: str) -> int | None:
        most: int | None = None
        try:
            models = self.models(provider)
        except ModelNotAllowed:
            return None
        for model in dict.fromkeys(models):
            now, tokens = datetime.now(UTC), self.input_tokens()
            cost = self._prices.cost(provider, (Usage(model=model, input_tokens=tokens, output_tokens=0),), now, model)
            if cost is None:
                rates = self._prices.price(provider, model, "", now, model).rates(tokens)
                if rates is None or rates.in_tokens:
                    return None
            # What is paid by the image, page or hour is not known before the answer.
            most = max(most or 0, 0 if cost is None else cost.nanousd)
        return most

    def worst_case(self, provider: str) -> Bound:
        found = self._bounds.get(provider)
        if found is None:
            found = self._bounds[provider] = self._worst_case(provider)
        return found

    def _worst_case(self, provider: str) -> Bound:
        inbound = self._inbound
        path = inbound.route.path
        if is_free(inbound.method, path, self._prices.vendors.get(provider)):
            return Bound(0, 0, 0)
        try:
            models = self.models(provider)
        except ModelNotAllowed as error:
            raise CostUnbounded(error.message) from None
        return worst_case(path, inbound.complete(), models, provider, self._prices)
