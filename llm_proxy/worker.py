"""One serving process: its sockets, its signals, and how it drains."""

from __future__ import annotations

import os
import resource
import signal
import socket
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import Final

import trio

from llm_proxy.config import ListenAddress, Settings, SettingsError
from llm_proxy.errors import server_error
from llm_proxy.logging import log
from llm_proxy.metrics import MetricStore
from llm_proxy.server.asgi import Address, LifespanFailed
from llm_proxy.server.context import MAX_CONNECTIONS, ServerConfig
from llm_proxy.server.listener import bind
from llm_proxy.server.process import serve_until_signal
from llm_proxy.server.tls import BadCertificate, server_context
from llm_proxy.services import load_files
from llm_proxy.web.app import create_app

#: Files of a process besides its connections to clients, providers and the database.
OWN_FILES: Final = 64
#: Files of one database connection: SQLite has the database, its log and its shared memory open.
FILES_PER_DATABASE_CONNECTION: Final = 3


def check_files(settings: Settings) -> None:
    """Read the provider and price files and the certificate before anything starts.

    Raises `SettingsError` with all mistakes.
    """
    mistakes: list[str] = []
    try:
        load_files(settings)
    except SettingsError as error:
        mistakes += error.mistakes
    certificate, key = settings.tls_cert_file, settings.tls_key_file
    if settings.enable_tls and certificate is not None and key is not None:
        try:
            server_context(certificate, key)
        except BadCertificate as error:
            mistakes.append(f"TLS_CERT_FILE and TLS_KEY_FILE: {error}")
    if mistakes:
        raise SettingsError(mistakes)


def bind_listeners(settings: Settings) -> tuple[socket.socket, ...]:
    """Bind the configured address. Raises `OSError` with a message for the operator."""
    address = settings.listen_addr
    try:
        return bind(address.host, address.port)
    except OSError as error:
        reason = f"cannot listen on {address}: {error.strerror}; choose another address with --addr"
        raise OSError(error.errno, reason) from None


def connection_limit(settings: Settings) -> int:
    """Raise the limit on open files as far as allowed, and return how many client connections it allows.

    Up to half of the files are reserved for connections to providers, at most one for each concurrent request.
    """
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if limit == resource.RLIM_INFINITY:
        return MAX_CONNECTIONS
    room = limit - OWN_FILES - FILES_PER_DATABASE_CONNECTION * settings.database_pool_size
    connections = min(MAX_CONNECTIONS, max(1, room - min(settings.max_concurrent_requests, room // 2)))
    if connections < MAX_CONNECTIONS:
        log.logger("server").warning(
            "the limit on open files bounds the connections of clients; raise it (ulimit -n, LimitNOFILE=)",
            open_files=limit,
            connections=connections,
        )
    return connections


def serve_config(settings: Settings, sockets: Sequence[socket.socket]) -> ServerConfig:
    events = log.logger("server")
    tls = settings.enable_tls
    return ServerConfig(
        sockets=tuple(sockets),
        shared=settings.workers > 1,
        tls_cert=settings.tls_cert_file if tls else None,
        tls_key=settings.tls_key_file if tls else None,
        shutdown_grace=settings.shutdown_grace,
        write_timeout=settings.client_write_timeout,
        keep_alive_timeout=settings.keep_alive_timeout,
        max_connections=connection_limit(settings),
        report=lambda error: events.error("unexpected failure", exc_info=error),
        error_response=server_error,
    )


def url_of(settings: Settings, address: Address) -> str:
    """The base URL of the server at one of its addresses."""
    scheme = "https" if settings.enable_tls else "http"
    return f"{scheme}://{ListenAddress(address[0], address[1] or 0)}"


def serve_until_stopped(
    settings: Settings,
    sockets: Sequence[socket.socket],
    store: MetricStore | None = None,
    *,
    on_serving: Callable[[], None] = lambda: None,
) -> None:
    """Migrate, serve until SIGTERM or Ctrl-C, and drain. Raises the error for which the application did not start."""
    draining = False

    def end(number: int, _: object) -> None:
        # A second SIGTERM must not make a process that drains look as if it was killed.
        if not draining:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)

    def start_draining() -> None:
        nonlocal draining
        draining = True

    # While trio serves, its own handler comes first; this one is for the time before and after.
    signal.signal(signal.SIGTERM, end)
    trio.run(_serve, settings, sockets, store, start_draining, on_serving)
    # The interpreter would restore the default handler while it shuts down.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


async def _serve(
    settings: Settings,
    sockets: Sequence[socket.socket],
    store: MetricStore | None,
    on_stop: Callable[[], None],
    on_serving: Callable[[], None],
) -> None:
    app = create_app(settings, store=store)
    config = serve_config(settings, sockets)
    events = log.logger("server")
    in_terminal = os.isatty(0)

    def stop() -> None:
        on_stop()
        app.report_draining()

    async def reload() -> None:
        await app.started.wait()
        try:
            await app.services.reload()
        except SettingsError as error:
            events.error("the provider or price file is wrong, and nothing was changed", mistakes=error.mistakes)
        else:
            names = ", ".join(app.services.providers.by_name)
            events.info("provider and price files reloaded; other settings need a restart", providers=names)

    def start_reload() -> bool:
        if not in_terminal:
            nursery.start_soon(reload)
        return not in_terminal

    try:
        async with trio.open_nursery() as nursery:
            serving = partial(
                serve_until_signal,
                app,
                config,
                delay=settings.shutdown_delay,
                on_stop=stop,
                on_drain=app.report_draining,
                on_reload=start_reload,
            )
            addresses = await nursery.start(serving)
            if settings.allow_weak_management_token:
                events.warning(
                    "ALLOW_WEAK_MANAGEMENT_TOKEN is set: a short MANAGEMENT_TOKEN can be guessed; give it at least 20 "
                    "characters, the next release does not start with fewer"
                )
            events.info("serving", urls=[url_of(settings, address) for address in addresses])
            on_serving()
    except* LifespanFailed:
        if app.failure is not None:
            raise app.failure from None
        raise
    events.info("stopped")
