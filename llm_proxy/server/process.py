"""One serving process and its signals."""

from __future__ import annotations

import signal
from collections.abc import Callable

import trio

from llm_proxy.server.asgi import Address, ASGIApp
from llm_proxy.server.context import ServerConfig
from llm_proxy.server.server import serve


async def serve_until_signal(
    app: ASGIApp,
    config: ServerConfig,
    *,
    delay: float = 0.0,
    on_stop: Callable[[], None] = lambda: None,
    on_drain: Callable[[], None] | None = None,
    on_reload: Callable[[], bool] = lambda: False,
    task_status: trio.TaskStatus[list[Address]] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve `app` until SIGTERM or SIGINT, then drain; a second SIGINT ends everything at once.

    A supervisor sends SIGUSR1 if another worker replaces this one: all accepted connections are served.

    If SIGINT or SIGHUP was ignored when the process started, it stays ignored. Workers of a supervisor do that: Ctrl-C
    in a terminal reaches them too, but their parent decides.

    For `delay` seconds between SIGTERM or SIGINT and the drain, all requests are served as before, so that load
    balancers notice that the application is not ready. `on_stop` is called before that delay, `on_drain` after it, and
    `on_reload` at SIGHUP: if it returns False, SIGHUP means the same as SIGTERM. All else is as for `serve`.
    """
    stop = trio.Event()
    stopping = replaced = False
    numbers = [signal.SIGTERM, signal.SIGUSR1]
    numbers += [number for number in (signal.SIGINT, signal.SIGHUP) if signal.getsignal(number) is not signal.SIG_IGN]
    with trio.open_signal_receiver(*numbers) as signals, trio.CancelScope() as serving:

        async def stop_after_delay() -> None:
            on_stop()
            await trio.sleep(delay)
            stop.set()

        async def listen() -> None:
            nonlocal stopping, replaced
            async for number in signals:
                if number == signal.SIGHUP and on_reload():
                    continue
                if stopping:
                    if number == signal.SIGINT:
                        serving.cancel()
                    continue
                stopping = True
                if number == signal.SIGUSR1:
                    replaced = True
                    stop.set()
                else:
                    nursery.start_soon(stop_after_delay)

        failure: Exception | None = None
        async with trio.open_nursery() as nursery:
            nursery.start_soon(listen)
            try:
                await serve(
                    app, config, stop=stop, on_drain=on_drain, others_accept=lambda: replaced, task_status=task_status
                )
            except Exception as error:  # noqa: BLE001 - raised below, outside of the nursery, which would put it into a group
                failure = error
            nursery.cancel_scope.cancel()
        if failure is not None:
            raise failure
