"""One process that serves: what it does at which signal."""

from __future__ import annotations

import signal
from collections.abc import Callable

import trio

from llm_proxy.server.asgi import Address, Application
from llm_proxy.server.config import ServeConfig
from llm_proxy.server.server import serve


async def serve_until_signal(
    app: Application,
    config: ServeConfig,
    *,
    delay: float = 0.0,
    on_leave: Callable[[], None] = lambda: None,
    on_drain: Callable[[], None] | None = None,
    on_hang_up: Callable[[], bool] = lambda: False,
    task_status: trio.TaskStatus[list[Address]] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve `app` until SIGTERM or SIGINT, then drain; a second SIGINT ends everything at once.

    SIGUSR1 is a supervisor's word that another worker takes this one's place: all that was accepted is served.

    A SIGINT that the process was started to ignore is ignored, as the workers of a supervisor do: Ctrl-C in a terminal
    reaches them too, but it is their parent that decides. The same goes for SIGHUP.

    Args:
        app: an ASGI 3 application.
        config: addresses, limits and deadlines.
        delay: seconds between SIGTERM or SIGINT and the drain, in which everything is served as ever: time for load
            balancers to see that the application says that it is not ready.
        on_leave: is called before that delay.
        on_drain: is called behind it, as `serve` does.
        on_hang_up: is called at SIGHUP; where it returns False, SIGHUP means what SIGTERM does.
        task_status: for `nursery.start`; gets the addresses that are listened on, when connections are accepted.

    Raises:
        Exception: what `serve` raises.
    """
    stop = trio.Event()
    leaving = replaced = False
    numbers = [signal.SIGTERM, signal.SIGUSR1]
    numbers += [number for number in (signal.SIGINT, signal.SIGHUP) if signal.getsignal(number) is not signal.SIG_IGN]
    with trio.open_signal_receiver(*numbers) as signals, trio.CancelScope() as serving:

        async def leave() -> None:
            on_leave()
            await trio.sleep(delay)
            stop.set()

        async def listen() -> None:
            nonlocal leaving, replaced
            async for number in signals:
                if number == signal.SIGHUP and on_hang_up():
                    continue
                if leaving:
                    if number == signal.SIGINT:
                        serving.cancel()
                    continue
                leaving = True
                if number == signal.SIGUSR1:
                    replaced = True
                    stop.set()
                else:
                    nursery.start_soon(leave)

        failure: Exception | None = None
        async with trio.open_nursery() as nursery:
            nursery.start_soon(listen)
            try:
                await serve(
                    app, config, stop=stop, on_drain=on_drain, others_accept=lambda: replaced, task_status=task_status
                )
            except Exception as error:  # noqa: BLE001 - raised below, where the nursery does not make a group of it
                failure = error
            nursery.cancel_scope.cancel()
        if failure is not None:
            raise failure
