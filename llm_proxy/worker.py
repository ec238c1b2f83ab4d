"""One serving process, from its settings to its last answer."""

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
from attrs import define

from llm_proxy.config import ListenAddress, Mistake, Settings, SettingsError
from llm_proxy.errors import server_error
from llm_proxy.gateway.providers import provider_file
from llm_proxy.logging import log
from llm_proxy.metrics import Slate
from llm_proxy.server.asgi import Address, LifespanFailed
from llm_proxy.server.context import MAX_CONNECTIONS, ServerConfig
from llm_proxy.server.listener import bind
from llm_proxy.server.process import serve_until_signal
from llm_proxy.server.tls import BadCertificate, server_context
from llm_proxy.web.app import create_app

#: Files that a process needs besides its connections to clients, providers and the database.
OWN_FILES: Final = 64
#: Files of one database connection: SQLite has the database, its log and its shared memory open.
FILES_PER_DATABASE_CONNECTION: Final = 3


def check_files(settings: Settings) -> None:
    """Read the files that the settings name, before anything is made or started.

    Raises:
        SettingsError: what is wrong with the providers and with the certificate.
    """
    mistakes: list[Mistake] = []
    try:
        provider_file.load(settings)
    except SettingsError as error:
        mistakes += error.mistakes
    certificate, key = settings.tls_cert_file, settings.tls_key_file
    if settings.enable_tls and certificate is not None and key is not None:
        try:
            server_context(certificate, key)
        except BadCertificate as error:
            mistakes.append(Mistake("TLS_CERT_FILE and TLS_KEY_FILE", str(error)))
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
    """How many connections of clients fit below the limit on open files, which is raised as far as this user may.

    Half of what is left beside the process's own files is kept for connections to providers, but no more than requests
    may run at once.
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
    """What the settings mean for the server."""
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
    """The base URL at one of the server's own addresses."""
    scheme = "https" if settings.enable_tls else "http"
    return f"{scheme}://{ListenAddress(address[0], address[1] or 0)}"


@define(eq=False)
class Termination:
    """SIGTERM outside of serving: it ends the process before, as ever, and says nothing new once it is obeyed.

    A process that has drained must not end as one that was killed because it was told twice.

    Attributes:
        obeyed: the process is on its way out.
    """

    obeyed: bool = False

    def __attrs_post_init__(self) -> None:
        """Listen from now on, for the rest of the process."""
        signal.signal(signal.SIGTERM, self._told)

    def _told(self, number: int, frame: object) -> None:
        if not self.obeyed:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)

    def ignore(self) -> None:
        """Be deaf while the interpreter is taken down, which would give the signal its old meaning."""
        signal.signal(signal.SIGTERM, signal.SIG_IGN)


def _why_not_anew(settings: Settings) -> str:
    """Why SIGHUP does not give a server of one process new settings, and what does."""
    if settings.db_driver == "sqlite":
        return (
            "SIGHUP changes nothing: a SQLite file has one server process, and the next one can start only when this "
            "one has ended; restart the server to have its settings read anew"
        )
    return (
        "SIGHUP changes nothing: this server has one process, and nobody to serve while it is replaced; restart it to "
        "have its settings read anew, or set WORKERS to 2 or more, which are replaced one by one"
    )


def work(
    settings: Settings,
    sockets: Sequence[socket.socket],
    slate: Slate | None = None,
    *,
    on_serving: Callable[[], None] = lambda: None,
) -> None:
    """Migrate, serve until SIGTERM or Ctrl-C, and drain.

    Args:
        settings: of the server.
        sockets: bound already.
        slate: where the figures of this worker stand, if it is one of several.
        on_serving: called once it serves.

    Raises:
        Exception: whatever kept the application from starting, in the words of its maker.
    """
    termination = Termination()
    trio.run(_work, settings, sockets, slate, termination, on_serving)
    termination.ignore()


async def _work(
    settings: Settings,
    sockets: Sequence[socket.socket],
    slate: Slate | None,
    termination: Termination,
    on_serving: Callable[[], None],
) -> None:
    app = create_app(settings, slate=slate)
    config = serve_config(settings, sockets)
    events = log.logger("server")

    in_terminal = os.isatty(0)

    def leave() -> None:
        termination.obeyed = True
        app.report_draining()

    def reload() -> bool:
        if not in_terminal:
            events.warning(_why_not_anew(settings))
        return not in_terminal

    try:
        async with trio.open_nursery() as nursery:
            serving = partial(
                serve_until_signal,
                app,
                config,
                delay=settings.shutdown_delay,
                on_stop=leave,
                on_drain=app.report_draining,
                on_reload=reload,
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
