"""Where a request turns off: provider paths go to the data plane, everything else to Quart."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

from quart_trio.asgi import TrioASGIHTTPConnection

from llm_proxy.proxy import paths
from llm_proxy.proxy.providers import Route

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from hypercorn.typing import HTTPScope

    from llm_proxy.app import LLMProxy


class RequestConnection:
    """One HTTP request, as the app's `asgi_http_class`."""

    def __init__(self, app: LLMProxy, scope: dict[str, Any]) -> None:
        """Keep the scope; nothing is parsed for the data plane."""
        self._app = app
        self._scope = scope

    async def __call__(self, receive: Callable[[], Awaitable[Any]], send: Callable[[Any], Awaitable[None]]) -> None:
        """Serve the request."""
        relay = self._app.services.relay
        raw_path = self._scope["raw_path"]
        route = relay.route(raw_path)
        if route is None and not paths.is_clear(raw_path):
            # Nobody can say whose path it would have been, so that nobody gets to guess: it is refused here.
            route = Route(None, raw_path, "openai")
        if route is None:
            await TrioASGIHTTPConnection(self._app, cast("HTTPScope", self._scope))(receive, send)
        else:
            await relay(route, self._scope, receive, send)
