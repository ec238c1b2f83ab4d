"""The connections, each with one request at a time."""

from __future__ import annotations

import contextlib
import socket
import ssl
import time
from collections.abc import Iterator, Sequence

import trio
from attrs import define, field

from llm_proxy.load.measurements import Measurements, TokenRefused, error_of
from llm_proxy.load.pacing import TIMED_OUT, ClosedLoop, FixedRate, LoadPlan, Pace
from llm_proxy.load.response import Answer, BadAnswer
from llm_proxy.load.target import LoadTarget
from llm_proxy.net.client_socket import ClientSocket, connect, describe_error

#: Seconds after a failure: a server that refuses connections must not get the next request at once.
_PAUSE = 0.01
#: Seconds after which an idle connection is checked before it is used again.
_IDLE = 0.5
#: Seconds between two checks for requests that take too long.
_CHECK_INTERVAL = 0.25
_CONNECT_TIMEOUT = 10.0


class CannotStart(Exception):
    """The server cannot be reached; the message says why."""


@define(eq=False)
class Load:
    """Load on one target. `run` it once; `measured` is current at any time."""

    target: LoadTarget
    plan: LoadPlan
    #: End the load if the first response refuses the token (401, 403).
    stop_if_refused: bool = False
    measured: Measurements = field(init=False, factory=Measurements)
    requests: Iterator[bytes] = field(init=False, repr=False)

    def __attrs_post_init__(self) -> None:
        self.requests = self.target.requests()

    async def run(self) -> None:
        """Open all connections, then put load on them until the plan is done or this is cancelled.

        Raises CannotStart if the first connection fails.
        """
        plan, measured = self.plan, self.measured
        number = plan.connections if plan.requests is None else min(plan.connections, plan.requests)
        first = await self._connect_first()
        connections = [_Connection(self, first.peer) for _ in range(number)]
        connections[0].socket = first
        try:
            async with trio.open_nursery() as nursery:
                for connection in connections[1:]:
                    nursery.start_soon(connection.open_early)
            cpu, began = time.process_time(), time.perf_counter()
            pace = ClosedLoop(plan, began) if plan.rate is None else FixedRate(plan, began, measured)
            try:
                await self._put(connections, pace)
            finally:
                measured.elapsed = time.perf_counter() - began
                measured.cpu = time.process_time() - cpu
                measured.unfinished = sum(connection.since is not None for connection in connections)
        finally:
            for connection in connections:
                connection.drop()

    async def _connect_first(self) -> ClientSocket:
        target = self.target
        try:
            with trio.fail_after(_CONNECT_TIMEOUT):
                return await connect(target.host, target.port, target.tls, need_close_notify=False)
        except socket.gaierror as error:
            raise CannotStart(f"cannot find {target.host}: {error.strerror}") from error
        except ssl.SSLCertVerificationError as error:
            reason = f"its certificate is not trusted: {error.verify_message}"
        except OSError as error:
            reason = describe_error(error)
        except trio.TooSlowError:
            reason = f"no answer within {_CONNECT_TIMEOUT:g} s"
        raise CannotStart(f"cannot connect to {target.host}:{target.port}: {reason}")

    async def _put(self, connections: Sequence[_Connection], pace: Pace) -> None:
        async with trio.open_nursery() as timeouts:
            timeouts.start_soon(self._give_up_late_ones, connections)
            async with trio.open_nursery() as nursery:
                for connection in connections:
                    nursery.start_soon(connection.work, pace, nursery.cancel_scope)
            timeouts.cancel_scope.cancel()

    async def _give_up_late_ones(self, connections: Sequence[_Connection]) -> None:
        """Check all requests together, because a deadline for each of them would cost too much."""
        timeout = self.plan.timeout
        while True:
            await trio.sleep(min(_CHECK_INTERVAL, timeout))
            now = time.perf_counter()
            for connection in connections:
                if connection.since is not None and now - connection.since > timeout:
                    connection.scope.cancel()


class _Connection:
    """A connection that is opened again after each failure; failures are counted."""

    def __init__(self, load: Load, address: str) -> None:
        self._load = load
        self._address = address
        self._measured = load.measured
        self._bodiless = load.target.bodiless
        self._fixed_rate = load.plan.rate is not None
        self._used = 0.0
        self.socket: ClientSocket | None = None
        #: The time from which the running request counts.
        self.since: float | None = None
        self.scope = trio.CancelScope()

    def drop(self) -> None:
        if self.socket is not None:
            self.socket.close()
            self.socket = None

    async def open_early(self) -> None:
        """Connect before the measurement starts. An error will happen again during the load, and counts then."""
        with trio.move_on_after(_CONNECT_TIMEOUT), contextlib.suppress(OSError):
            self.socket = await self._connect()

    async def work(self, pace: Pace, whole: trio.CancelScope) -> None:
        """Send requests until the plan has no more. Cancel the `whole` load if the first response refuses the token."""
        done = False
        while not done:
            with trio.CancelScope() as self.scope:
                await self._work(pace, whole)
                done = True
            if not done:
                self._fail(TIMED_OUT)

    async def _work(self, pace: Pace, whole: trio.CancelScope) -> None:
        measured = self._measured
        while measured.token_refused is None and (start := await pace.next_start()) is not None:
            self.since = start
            try:
                answer = await self._exchange(start)
            except (OSError, BadAnswer) as error:
                self._fail(type(error).__name__)
                await trio.sleep(_PAUSE)
                continue
            self.since = None
            if not answer.keeps:
                self.drop()
            if answer.status in (401, 403) and self._load.stop_if_refused and measured.answered == 1:
                measured.token_refused = TokenRefused(answer.status, error_of(answer.body)[1])
                whole.cancel()

    def _fail(self, name: str) -> None:
        self._measured.failures[name] += 1
        self.since = None
        self.drop()

    async def _connect(self) -> ClientSocket:
        target = self._load.target
        return await connect(
            self._address, target.port, target.tls, server_hostname=target.host, need_close_notify=False
        )

    async def _exchange(self, start: float) -> Answer:
        """Send a request and read its response, and measure the durations. Raises OSError and BadAnswer."""
        measured = self._measured
        connected = self.socket
        if connected is not None and start - self._used > _IDLE and not connected.is_quiet():
            self.drop()
            connected = None
        if connected is None:
            connected = self.socket = await self._connect()
        answer = Answer(bodiless=self._bodiless)
        sent = time.perf_counter()
        await connected.send_all(next(self._load.requests))
        data = await connected.receive()
        first = time.perf_counter()
        answer.feed(data)
        if not data:
            answer.end()
        if not answer.complete:
            await self._read_rest(connected, answer, first)
        done = self._used = time.perf_counter()
        measured.latencies.add(done - sent)
        measured.first_bytes.add(first - sent)
        if self._fixed_rate:
            measured.intended.add(done - start)
        measured.record(answer)
        return answer

    async def _read_rest(self, connected: ClientSocket, answer: Answer, before: float) -> None:
        received = answer.received
        while not answer.complete:
            data = await connected.receive()
            if not data:
                answer.end()
                return
            answer.feed(data)
            # Bytes without a body do not count as an arrival: some servers send the end with the last piece.
            if answer.stream and answer.received > received:
                now = time.perf_counter()
                if received:
                    self._measured.gaps.add(now - before)
                before = now
                received = answer.received
