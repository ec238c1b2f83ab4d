"""The connections at work, each with one request at a time."""

from __future__ import annotations

import contextlib
import ssl
import time
from collections.abc import Iterator, Sequence

import trio
from attrs import define, field

from llm_proxy.load.framing import Answer, BadAnswer
from llm_proxy.load.pacing import ClosedLoop, OpenLoop, Pace, Plan
from llm_proxy.load.tally import TIMED_OUT, Refusal, Tally, error_of
from llm_proxy.load.target import Target
from llm_proxy.load.timer import Timer
from llm_proxy.load.wire import Address, Wire, connect, resolve

#: Seconds: a server that refuses must not be hammered without pause.
_PAUSE = 0.01
#: Seconds after which it is worth a look whether the server has closed an idle connection.
_IDLE = 0.5
#: Seconds between looks at requests that take too long, and seconds to connect at the start.
_LOOK_EVERY = 0.25
_CONNECT_SECONDS = 10.0


class CannotBegin(Exception):
    """The server cannot be reached at all; the message says why."""


@define(eq=False)
class Load:
    """Load on one target. `run` it once; what it measures is in `tally` meanwhile, too.

    Attributes:
        stop_if_refused: end the load if the first answer says that the token opens nothing (401, 403).
    """

    target: Target
    plan: Plan
    stop_if_refused: bool = False
    tally: Tally = field(factory=Tally)
    _requests: Iterator[bytes] = field(init=False, repr=False)

    def __attrs_post_init__(self) -> None:
        """Begin with the first token."""
        self._requests = self.target.requests()

    async def run(self) -> None:
        """Open all connections, then put load on them until the plan is fulfilled.

        What was measured until then is in the tally, too, if this is cancelled.

        Raises:
            CannotBegin: there is no connection at all.
        """
        plan, tally = self.plan, self.tally
        number = plan.connections if plan.requests is None else min(plan.connections, plan.requests)
        address, first = await self._reach()
        connections = [_Connection(self, address) for _ in range(number)]
        connections[0].wire = first
        with Timer() as timer:
            try:
                async with trio.open_nursery() as nursery:
                    for connection in connections[1:]:
                        nursery.start_soon(connection.open_early)
                cpu, began = time.process_time(), time.perf_counter()
                pace: Pace = ClosedLoop(plan, began) if plan.rate is None else OpenLoop(plan, began, timer, tally)
                try:
                    await self._put(connections, pace)
                finally:
                    tally.elapsed = time.perf_counter() - began
                    tally.cpu = time.process_time() - cpu
                    tally.unfinished = sum(connection.since is not None for connection in connections)
            finally:
                for connection in connections:
                    connection.drop()

    async def _reach(self) -> tuple[Address, Wire]:
        """Find an address of the host that takes connections."""
        target = self.target
        try:
            addresses = await resolve(target.host, target.port)
        except OSError as error:
            raise CannotBegin(f"cannot find {target.host}: {error.strerror or error}") from error
        reason = "it has no address"
        for address in addresses:
            try:
                with trio.fail_after(_CONNECT_SECONDS):
                    return address, await connect(address, target.host, target.tls)
            except ssl.SSLCertVerificationError as error:
                reason = f"its certificate is not trusted: {error.verify_message}"
            except OSError as error:
                reason = error.strerror or type(error).__name__
            except trio.TooSlowError:
                reason = f"no answer within {_CONNECT_SECONDS:g} s"
        raise CannotBegin(f"cannot connect to {target.host}:{target.port}: {reason}")

    async def _put(self, connections: Sequence[_Connection], pace: Pace) -> None:
        async with trio.open_nursery() as watch:
            watch.start_soon(self._give_up_late_ones, connections)
            async with trio.open_nursery() as nursery:
                for connection in connections:
                    nursery.start_soon(connection.work, pace, nursery.cancel_scope)
            watch.cancel_scope.cancel()

    async def _give_up_late_ones(self, connections: Sequence[_Connection]) -> None:
        """Look after all requests together, because a scope with a deadline for each of them would cost too much."""
        timeout = self.plan.timeout
        while True:
            await trio.sleep(min(_LOOK_EVERY, timeout))
            now = time.perf_counter()
            for connection in connections:
                if connection.since is not None and now - connection.since > timeout:
                    connection.scope.cancel()

    def next_request(self) -> bytes:
        """Return the bytes of the next request."""
        return next(self._requests)


class _Connection:
    """One connection after the other, as long as the load lasts; a failure costs the connection and is counted."""

    def __init__(self, load: Load, address: Address) -> None:
        self._load = load
        self._address = address
        self._tally = load.tally
        self._bodiless = load.target.bodiless
        self._open_loop = load.plan.rate is not None
        self._used = 0.0
        self.wire: Wire | None = None
        #: The moment that the request under way is counted from.
        self.since: float | None = None
        self.scope = trio.CancelScope()

    def drop(self) -> None:
        """Close the connection, if there is one."""
        if self.wire is not None:
            self.wire.close()
            self.wire = None

    async def open_early(self) -> None:
        """Connect before it counts; what goes wrong will go wrong again when it does."""
        with trio.move_on_after(_CONNECT_SECONDS), contextlib.suppress(OSError):
            self.wire = await self._connect()

    async def work(self, pace: Pace, whole: trio.CancelScope) -> None:
        """Send requests until the plan has no more; a first answer that refuses the token ends the `whole` load."""
        done = False
        while not done:
            with trio.CancelScope() as self.scope:
                await self._work(pace, whole)
                done = True
            if not done:
                self._fail(TIMED_OUT)

    async def _work(self, pace: Pace, whole: trio.CancelScope) -> None:
        tally = self._tally
        while tally.refusal is None and (moment := await pace.take()) is not None:
            self.since = moment
            try:
                answer = await self._exchange(moment)
            except (OSError, BadAnswer) as error:
                self._fail(type(error).__name__)
                await trio.sleep(_PAUSE)
                continue
            self.since = None
            if not answer.keeps:
                self.drop()
            if answer.status in (401, 403) and self._load.stop_if_refused and tally.answered == 1:
                tally.refusal = Refusal(answer.status, error_of(answer.body)[1])
                whole.cancel()

    def _fail(self, name: str) -> None:
        self._tally.failures[name] += 1
        self.since = None
        self.drop()

    async def _connect(self) -> Wire:
        target = self._load.target
        return await connect(self._address, target.host, target.tls)

    async def _exchange(self, moment: float) -> Answer:
        """Send a request and read its answer, with all times. Raises OSError and BadAnswer."""
        tally = self._tally
        wire = self.wire
        if wire is not None and moment - self._used > _IDLE and wire.gone():
            self.drop()
            wire = None
        if wire is None:
            wire = self.wire = await self._connect()
        answer = Answer(bodiless=self._bodiless)
        sent = time.perf_counter()
        await wire.send(self._load.next_request())
        data = await wire.receive()
        first = time.perf_counter()
        answer.feed(data)
        if not data:
            answer.end()
        if not answer.complete:
            await self._read_on(wire, answer, first)
        done = self._used = time.perf_counter()
        tally.latencies.add(done - sent)
        tally.first_bytes.add(first - sent)
        if self._open_loop:
            tally.intended.add(done - moment)
        tally.record(answer)
        return answer

    async def _read_on(self, wire: Wire, answer: Answer, before: float) -> None:
        """Read the rest of an answer whose beginning came at the moment `before`."""
        received = answer.received
        while not answer.complete:
            data = await wire.receive()
            if not data:
                answer.end()
                return
            answer.feed(data)
            # An arrival of nothing but framing is none: some servers send the end with the last piece, others later.
            if answer.stream and answer.received > received:
                now = time.perf_counter()
                if received:
                    self._tally.gaps.add(now - before)
                before = now
                received = answer.received
