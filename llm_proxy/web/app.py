"""The ASGI application: data plane and control plane under one roof, alive for as long as its services are open.

Any ASGI server that runs on trio can serve it: our own, or `hypercorn -k trio 'llm_proxy.web.app:create_app()'`.
"""

from __future__ import annotations

import gc
import os
from typing import TYPE_CHECKING, Any, cast

import trio
from quart_trio import QuartTrio
from quart_trio.asgi import TrioASGILifespan

from llm_proxy.api import register
from llm_proxy.config import Settings
from llm_proxy.config.checks import reserved
from llm_proxy.gateway.http import paths
from llm_proxy.logging import log
from llm_proxy.metrics import Slate
from llm_proxy.services import open_services
from llm_proxy.web.asgi import RequestConnection
from llm_proxy.web.cors import CrossOrigin
from llm_proxy.web.forwarded import TrustedProxies

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from llm_proxy.logging.log import Log
    from llm_proxy.services import Services

#: Largest body of a request to the control plane, in bytes.
MANAGE_BODY_LIMIT = 1024 * 1024
#: Seconds in which the body of a request to the control plane must be complete.
MANAGE_BODY_TIMEOUT = 30


class ServicesLifespan(TrioASGILifespan):
    """Opens the services at the server's startup and closes them at its shutdown, in one task."""

    async def __call__(self, receive: Callable[[], Awaitable[Any]], send: Callable[[Any], Awaitable[None]]) -> None:
        """Follow the ASGI lifespan protocol; a start that fails is told to the server in words."""
        app = cast("LLMProxy", self.app)
        await receive()
        started = False
        try:
            async with (
                open_services(app.settings, app.request_log, app.slate) as services,
                trio.open_nursery() as nursery,
            ):
                app.nursery = nursery
                app.assemble(services)
                await app.startup()
                _relieve_the_collector()
                await send({"type": "lifespan.startup.complete"})
                started = True
                await receive()
                await app.shutdown()
                nursery.cancel_scope.cancel()
        except Exception as error:
            if started:
                raise
            app.failure = error
            await send({"type": "lifespan.startup.failed", "message": _words(error)})
            return
        await send({"type": "lifespan.shutdown.complete"})


class LLMProxy(QuartTrio):
    """The application of one worker process.

    Attributes:
        settings: what it is configured with.
        request_log: where the line of each request goes.
        slate: where its figures stand.
        services: what its routes work with, from startup on.
        cross_origin: which web pages may call it; None for none.
        trusted_proxies: who is believed about whose request it is; None for nobody.
        failure: what kept it from starting: ASGI passes on words only, and exit codes need more.
    """

    asgi_http_class = RequestConnection  # type: ignore[assignment]  # ours takes plain scopes
    asgi_lifespan_class = ServicesLifespan
    services: Services

    def __init__(self, settings: Settings, request_log: Log, slate: Slate) -> None:
        """Nothing is opened yet."""
        super().__init__("llm_proxy", static_folder=None)
        self.settings = settings
        self.request_log = request_log
        self.slate = slate
        self.failure: Exception | None = None
        origins, networks = settings.cors_allowed_origins, settings.trusted_proxies
        self.cross_origin = CrossOrigin(origins) if origins else None
        self.trusted_proxies = TrustedProxies(networks) if networks else None
        self._own = frozenset(name.encode("ascii") for name in reserved(settings) - {"v1"})
        # Streams may last for as long as they like; the server has deadlines of its own for a client that stalls.
        self.config["RESPONSE_TIMEOUT"] = None
        self.config["BODY_TIMEOUT"] = MANAGE_BODY_TIMEOUT
        self.config["MAX_CONTENT_LENGTH"] = MANAGE_BODY_LIMIT

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Serve an ASGI scope. Requests go the shortest way to `asgi`, which hands Quart those that it is to answer."""
        if scope["type"] == "http":
            await RequestConnection(self, scope)(receive, send)
        else:
            await super().__call__(scope, receive, send)

    def is_own(self, raw_path: bytes) -> bool:
        """Whether a path is one of the control plane's, and means the same to everybody: it has no escape at all.

        Quart matches the decoded path, and a reverse proxy in front may have matched the one that was sent.
        """
        return raw_path[1:].partition(b"/")[0] in self._own and b"%" not in raw_path and paths.is_clear(raw_path)

    def assemble(self, services: Services) -> None:
        """Put up the control plane's routes on open services."""
        self.services = services
        register(self, services)

    def leave(self) -> None:
        """Report not ready and serve as ever, so that load balancers send their requests elsewhere."""
        self.services.leave()


def create_app(settings: Settings | None = None, slate: Slate | None = None) -> LLMProxy:
    """Make the application.

    Args:
        settings: the process's environment and `.env` file where None.
        slate: where the figures of this worker stand, if it is one of several.

    Raises:
        llm_proxy.config.SettingsError: what is wrong with the settings, all of it.
    """
    if settings is None:
        settings = Settings.load(os.environ, {}, None, serving=True)
    request_log = log.configure(
        level=settings.log_level,
        form=settings.log_format,
        path=settings.log_file,
        secrets=(settings.management_token, settings.encryption_key, settings.database_url),
    )
    return LLMProxy(settings, request_log, slate or Slate())


def _relieve_the_collector() -> None:
    """Keep the garbage collector from walking over the program itself again and again.

    What is there at the end of the start stays as long as the process does. Requests free what they use by reference
    counting; the cycles that exceptions leave are few, and can wait for a larger round.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 20)


def _words(error: BaseException) -> str:
    """One line about a failed start."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return str(error) or type(error).__name__
