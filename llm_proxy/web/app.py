"""The ASGI application of one worker: routes a provider's paths to the gateway, and its own to the management API.

Any ASGI server that runs on trio can serve it: our own, or `hypercorn -k trio 'llm_proxy.web.app:create_app()'`.
"""

from __future__ import annotations

import gc
import os
from collections.abc import Awaitable, Callable
from typing import Any, cast

import trio
from quart_trio import QuartTrio
from quart_trio.asgi import TrioASGIHTTPConnection, TrioASGILifespan

from llm_proxy.api import register
from llm_proxy.api.operations import BODY_LIMIT
from llm_proxy.config import Settings
from llm_proxy.config.checks import reserved
from llm_proxy.gateway.http import paths
from llm_proxy.gateway.providers.provider import Route
from llm_proxy.logging import log
from llm_proxy.logging.log import Log
from llm_proxy.metrics import MetricStore
from llm_proxy.services import Services, open_services
from llm_proxy.web.cors import CrossOrigin
from llm_proxy.web.forwarded import TrustedProxies

Send = Callable[[Any], Awaitable[None]]

#: Seconds in which the body of a request to the management API must be complete.
BODY_TIMEOUT = 30


class ServicesLifespan(TrioASGILifespan):
    """Opens the services at the server's startup and closes them at its shutdown, in one task."""

    async def __call__(self, receive: Callable[[], Awaitable[Any]], send: Send) -> None:
        app = cast("LLMProxy", self.app)
        await receive()
        try:
            async with (
                open_services(app.settings, app.request_log, app.store) as services,
                trio.open_nursery() as nursery,
            ):
                app.nursery = nursery
                app.services = services
                register(app, services)
                await app.startup()
                _tune_garbage_collector()
                await send({"type": "lifespan.startup.complete"})
                services.readiness.draining = app.draining
                app.started.set()
                await receive()
                await app.shutdown()
                nursery.cancel_scope.cancel()
        except Exception as error:
            if app.started.is_set():
                raise
            app.failure = error
            await send({"type": "lifespan.startup.failed", "message": _one_line(error)})
            return
        await send({"type": "lifespan.shutdown.complete"})


class LLMProxy(QuartTrio):
    """The application of one worker process.

    Attributes:
        settings, request_log, store: what it was made with.
        services: once it has `started`.
        draining: whether it reports that it is not ready.
        failure: why it did not start. ASGI passes on a message only; the exit code needs the error.
    """

    asgi_lifespan_class = ServicesLifespan
    services: Services

    def __init__(self, settings: Settings, request_log: Log, store: MetricStore) -> None:
        super().__init__("llm_proxy", static_folder=None)
        self.settings = settings
        self.request_log = request_log
        self.store = store
        self.started = trio.Event()
        self.draining = False
        self.failure: Exception | None = None
        origins, networks = settings.cors_allowed_origins, settings.trusted_proxies
        self._cross_origin = CrossOrigin(origins) if origins else None
        self._trusted_proxies = TrustedProxies(networks) if networks else None
        self._own = frozenset(name.encode("ascii") for name in reserved(settings) - {"v1"})
        # Streams have no time limit; the server has its own timeouts for a client that stalls.
        self.config["RESPONSE_TIMEOUT"] = None
        self.config["BODY_TIMEOUT"] = BODY_TIMEOUT
        self.config["MAX_CONTENT_LENGTH"] = BODY_LIMIT

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await super().__call__(scope, receive, send)
            return
        if self._trusted_proxies is not None and scope.get("client"):
            peer, port = scope["client"]
            client = self._trusted_proxies.client(peer, scope["headers"])
            scope["client"] = (client, port if client == peer else 0)
        if self._cross_origin is not None:
            headers = self._cross_origin.preflight(scope["method"], scope["headers"])
            if headers is not None:
                await send({"type": "http.response.start", "status": 204, "headers": headers})
                await send({"type": "http.response.body", "body": b"", "more_body": False})
                return
            send = _with_cors(self._cross_origin, self._cross_origin.origin(scope["headers"]), send)
        relay = self.services.relay
        raw_path = scope["raw_path"]
        route = relay.route(raw_path)
        if route is not None:
            await relay(route, scope, receive, send)
        elif self._is_own(raw_path):
            await TrioASGIHTTPConnection(self, scope)(receive, send)
        else:
            await relay(
                Route(None, raw_path, "openai"), scope, receive, send, relay.routing.providers.unknown(raw_path)
            )

    def _is_own(self, raw_path: bytes) -> bool:
        """Whether the management API answers a path, which may contain escapes from the third segment on: in names.

        Quart matches the decoded path, and a reverse proxy in front may have matched the path as it was sent.
        """
        first, _, rest = raw_path[1:].partition(b"/")
        return first in self._own and b"%" not in rest.partition(b"/")[0] and paths.is_clear(raw_path)

    def report_draining(self) -> None:
        """Report not ready and continue to serve, so that load balancers send new requests to other servers."""
        self.draining = True
        if self.started.is_set():
            self.services.readiness.draining = True


def create_app(settings: Settings | None = None, store: MetricStore | None = None) -> LLMProxy:
    """Make the application; without `settings`, they are read from the environment. Raises `SettingsError`."""
    if settings is None:
        settings = Settings.load(os.environ, {}, None, serving=True)
    request_log = log.configure(
        level=settings.log_level,
        form=settings.log_format,
        path=settings.log_file,
        secrets=(settings.management_token, settings.encryption_key, settings.database_url),
    )
    return LLMProxy(settings, request_log, store or MetricStore())


def _with_cors(cross_origin: CrossOrigin, origin: bytes | None, send: Send) -> Send:
    async def send_with_cors(message: Any) -> None:
        if message["type"] == "http.response.start":
            message = {**message, "headers": cross_origin.mark(message["headers"], origin)}
        await send(message)

    return send_with_cors


def _tune_garbage_collector() -> None:
    """Keep the garbage collector from scanning the program itself again and again.

    What exists after startup stays until the process ends. Requests free their memory by reference counting; cycles
    come from exceptions only, are few, and can wait for a larger round.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 20)


def _one_line(error: BaseException) -> str:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return str(error) or type(error).__name__
