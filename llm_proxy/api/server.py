"""The server itself: its provider and price files can be read again while it serves."""

from __future__ import annotations

from typing import Annotated, Final

from msgspec import Struct

from llm_proxy.api.operations import Call, Change, Operation, Resource
from llm_proxy.api.schema import doc
from llm_proxy.config import SettingsError
from llm_proxy.errors import InvalidConfiguration
from llm_proxy.logging import log

RESOURCE: Final = Resource("Server", "server")

_log = log.logger("manage")


class Reloaded(Struct):
    """What the server serves now."""

    providers: Annotated[list[str], doc("The names of the configured providers.")]


@Operation(RESOURCE, "POST", "/manage/reload", "reloadServer", Reloaded, errors=(InvalidConfiguration,))
async def _reload(call: Call) -> Reloaded:
    """Read the provider and price files again. If one is wrong, nothing changes. Running requests end as they began."""
    services = call.services
    before = list(services.providers.by_name)
    try:
        await services.reload()
    except SettingsError as error:
        raise InvalidConfiguration("; ".join(error.mistakes)) from None
    answer = Reloaded(list(services.providers.by_name))
    await call.write(lambda _: Change(Reloaded(before), answer, id=""))
    _log.info("provider and price files reloaded", providers=", ".join(answer.providers))
    return answer
