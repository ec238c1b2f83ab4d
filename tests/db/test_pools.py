"""What the three settings of the pool mean, seen from the pool and from the server."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable

import pytest
import trio
from attrs import define, field
from sqlalchemy.exc import TimeoutError as PoolTimeout

from db import Connection
from db.database import Database, opened
from db.dialects.server import ServerPool
from db.dsn import Target
from db.options import Options
from tests.databases.kinds import SERVERS, Kind, on
from tests.databases.scratch import Databases


@define(eq=False)
class Session:
    """What a driver would return."""

    closed: bool = False

    def close(self) -> None:
        self.closed = True


@define
class Clock:
    """The time of day, moved by the test."""

    now: float = 1e9

    def __call__(self) -> float:
        return self.now


@define
class Sessions:
    """Makes sessions, and remembers them."""

    made: list[Session] = field(factory=list)

    def __call__(self) -> Session:
        self.made.append(Session())
        return self.made[-1]

    @property
    def open(self) -> list[Session]:
        return [session for session in self.made if not session.closed]


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(time, "time", clock)
    return clock


@pytest.fixture
def sessions() -> Sessions:
    return Sessions()


def use(pool: ServerPool, at_once: int) -> None:
    for connection in [pool.connect() for _ in range(at_once)]:
        connection.close()


@pytest.mark.parametrize(("max_idle", "kept"), [(0, 0), (1, 1), (3, 3), (9, 5)])
def test_no_more_stay_open_than_may_be_idle(sessions: Sessions, max_idle: int, kept: int) -> None:
    pool = ServerPool(sessions, Options(pool_size=5, max_idle=max_idle))
    use(pool, 5)
    assert (len(sessions.made), len(sessions.open)) == (5, kept)
    assert (pool.checkedout(), pool.checkedin()) == (0, kept)
    use(pool, 5)
    assert (len(sessions.made), len(sessions.open)) == (10 - kept, kept)
    pool.dispose()
    assert sessions.open == []


def test_the_pool_has_an_end(sessions: Sessions) -> None:
    pool = ServerPool(sessions, Options(pool_size=2, connect_timeout=0.01))
    taken = [pool.connect() for _ in range(2)]
    with pytest.raises(PoolTimeout):
        pool.connect()
    assert pool.status() == "2 in use, 0 idle"
    taken.pop().close()
    use(pool, 1)
    taken.pop().close()
    assert len(sessions.made) == 2


def test_a_session_that_cannot_be_made_leaves_its_place(sessions: Sessions) -> None:
    def refuse() -> Session:
        raise OSError

    pool = ServerPool(refuse, Options(pool_size=1, connect_timeout=0.01))
    for _ in range(3):
        with pytest.raises(OSError, match=r"^$"):
            pool.connect()
    assert pool.checkedout() == 0


def test_the_last_that_came_back_is_the_first_that_goes_out(sessions: Sessions) -> None:
    pool = ServerPool(sessions, Options(pool_size=3, max_idle=3))
    use(pool, 3)
    for _ in range(5):
        connection = pool.connect()
        assert sessions.made.index(connection.dbapi_connection) == 2  # type: ignore[arg-type]  # a session of ours
        connection.close()


def test_a_session_is_not_taken_beyond_its_life(sessions: Sessions, clock: Clock) -> None:
    pool = ServerPool(sessions, Options(pool_size=1, max_lifetime=60.5))
    use(pool, 1)
    clock.now += 60
    use(pool, 1)
    assert len(sessions.made) == 1
    clock.now += 1
    use(pool, 1)
    assert (len(sessions.made), len(sessions.open)) == (2, 1)


def test_idle_sessions_do_not_outlive_their_life_either(sessions: Sessions, clock: Clock) -> None:
    """The ones at the bottom are not taken, for as long as there is little to do."""
    pool = ServerPool(sessions, Options(pool_size=4, max_idle=4, max_lifetime=60))
    use(pool, 3)
    clock.now += 50
    late = [pool.connect() for _ in range(4)]
    clock.now += 11
    late.pop().close()  # the one that was made late
    assert (len(sessions.open), pool.checkedin()) == (4, 1)
    for connection in late:
        connection.close()
    assert sessions.open == [sessions.made[3]]


def test_after_one_was_lost_none_from_before_is_kept(sessions: Sessions, clock: Clock) -> None:
    pool = ServerPool(sessions, Options(pool_size=3, max_idle=3))
    use(pool, 2)
    clock.now += 1
    lost = pool.connect()
    pool._invalidate(lost)
    clock.now += 1
    lost.close()
    assert sessions.open == []
    use(pool, 1)
    assert (len(sessions.made), pool.checkedin()) == (3, 1)


@pytest.fixture
def watcher(databases: Databases, database_kind: Kind, shared_target: Target) -> Callable[[int], None]:
    """Waits until so many sessions use the database."""
    admin = databases.server(database_kind).admin

    def wait_for(number: int) -> None:
        deadline = time.monotonic() + 30
        while (seen := admin.sessions(shared_target.database)) != number:
            assert time.monotonic() < deadline, f"{seen} sessions, not {number}"
            time.sleep(0.01)

    return wait_for


@on(*SERVERS)
def test_idle_connections_are_probed_on_their_way(database: Database) -> None:
    """By the kernel, so that a firewall does not forget them."""

    def probes(connection: Connection) -> list[int]:
        driver = connection.connection.dbapi_connection
        wire = getattr(driver, "_usock", None) or getattr(driver, "_sock")  # noqa: B009 (no public name in either)
        names = ("TCP_KEEPIDLE" if hasattr(socket, "TCP_KEEPIDLE") else "TCP_KEEPALIVE", "TCP_KEEPINTVL")
        alive = wire.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        return [bool(alive), *(wire.getsockopt(socket.IPPROTO_TCP, getattr(socket, name)) for name in names)]

    assert database.read_now(probes) == [True, 30, 10]


@on(*SERVERS)
@pytest.mark.parametrize("max_idle", [0, 2])
async def test_what_the_server_sees(shared_target: Target, watcher: Callable[[int], None], max_idle: int) -> None:
    gate = threading.Barrier(5)

    async def use_all(database: Database) -> None:
        async with trio.open_nursery() as nursery:
            for _ in range(4):
                nursery.start_soon(database.write, lambda _: (gate.wait(30), gate.wait(30)))
            await trio.to_thread.run_sync(gate.wait, 30)
            await trio.to_thread.run_sync(watcher, 4)
            await trio.to_thread.run_sync(gate.wait, 30)

    with opened(shared_target, Options(pool_size=4, max_idle=max_idle)) as database:
        for _ in range(2):
            await use_all(database)
            await trio.to_thread.run_sync(watcher, max_idle)
    await trio.to_thread.run_sync(watcher, 0)
