"""Where a request turns off: paths of the control plane go to Quart, all others to the data plane.

What concerns both alike happens here, before and after: whose request it is, and which web pages may see the answer.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

from quart_trio.asgi import TrioASGIHTTPConnection

from llm_proxy.gateway.providers.provider import Route

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from hypercorn.typing import HTTPScope

    from llm_proxy.web.app import LLMProxy
    from llm_proxy.web.cors import CrossOrigin, HeaderList

    Send = Callable[[Any], Awaitable[None]]


class RequestConnection:
    """One HTTP request, as the app's `asgi_http_class`."""

    def __init__(self, app: LLMProxy, scope: dict[str, Any]) -> None:
        """Keep the scope; nothing is parsed for the data plane."""
        self._app = app
        self._scope = scope

    async def __call__(self, receive: Callable[[], Awaitable[Any]], send: Send) -> None:
        """Serve the request."""
        app, scope = self._app, self._scope
        if app.trusted_proxies is not None and scope.get("client"):
            peer, port = scope["client"]
            client = app.trusted_proxies.client(peer, scope["headers"])
            scope["client"] = (client, port if client == peer else 0)
        if app.cross_origin is not None:
            permission = app.cross_origin.preflight(scope["method"], scope["headers"])
            if permission is not None:
                await _permit(permission, send)
                return
            send = _marking(app.cross_origin, app.cross_origin.origin(scope["headers"]), send)
        relay = app.services.relay
        raw_path = scope["raw_path"]
        route = relay.route(raw_path)
        if route is not None:
            await relay(route, scope, receive, send)
        elif app.is_own(raw_path):
            await TrioASGIHTTPConnection(app, cast("HTTPScope", scope))(receive, send)
        else:
            await relay(Route(None, raw_path, "openai"), scope, receive, send, relay.providers.unknown(raw_path))


async def _permit(permission: HeaderList, send: Send) -> None:
    """Answer a preflight."""
    await send({"type": "http.response.start", "status": 204, "headers": permission})
    await send({"type": "http.response.body", "body": b"", "more_body": False})


def _marking(cross_origin: CrossOrigin, origin: bytes | None, send: Send) -> Send:
    """Give a `send` that marks the answer for the browser."""

    async def mark_and_send(message: Any) -> None:
        if message["type"] == "http.response.start":
            message = {**message, "headers": cross_origin.mark(message["headers"], origin)}
        await send(message)

    return mark_and_send
