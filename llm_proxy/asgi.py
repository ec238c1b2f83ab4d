"""Where a request turns off: provider paths go to the data plane, everything else to Quart."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

from quart_trio.asgi import TrioASGIHTTPConnection

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
        route = relay.route(self._scope["raw_path"])
        if route is None:
            await TrioASGIHTTPConnection(self._app, cast("HTTPScope", self._scope))(receive, send)
        else:
            await relay(route, self._scope, receive, send)
