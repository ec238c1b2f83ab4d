"""The faults of databases, one row each: how to inject it, how to end it, and the message for the operator.

A fault is done to a `Stage`: a proxy that reaches its database over a wire, and that database. `test_database_faults`
says on which databases each of them is tested and what must hold.
"""

from __future__ import annotations

import resource
import signal
import time
from collections.abc import Callable

from attrs import field, frozen

from benchmarks.processes import family
from db.dsn.target import Target
from tests.databases.admin import Admin
from tests.databases.disks import Disk
from tests.databases.kinds import Kind
from tests.databases.programs import Instance
from tests.databases.servers import wait_until_answers
from tests.harness.deployment import Deployment
from tests.harness.wire_beside import WireBeside

#: How often sessions are ended, or connections cut, by a fault that repeats it, and seconds in between.
_BLOWS = 15
_BETWEEN = 0.1
#: How much a process may write to one file before writing fails: more than its log has, less than SQLite's does get.
_FILE_LIMIT = 1 << 20


@frozen
class Stage:
    """A proxy and its database.

    Attributes:
        target: the database, reached directly.
        deployment: the proxy, which reaches it over the wire, and the provider.
        secret: of a token.
        wire: between the proxy and the database server; SQLite has none.
        admin: of the server.
        instance: the server's process, if it is ours to stop.
        disk: where the data are, if it is small enough to be filled.
    """

    kind: Kind
    target: Target
    deployment: Deployment
    secret: str
    _wire: WireBeside | None = field(alias="wire")
    _admin: Admin | None = field(alias="admin")
    _instance: Instance | None = field(alias="instance")
    _disk: Disk | None = field(alias="disk")

    @property
    def wire(self) -> WireBeside:
        assert self._wire is not None
        return self._wire

    @property
    def admin(self) -> Admin:
        assert self._admin is not None
        return self._admin

    @property
    def instance(self) -> Instance:
        assert self._instance is not None
        return self._instance

    @property
    def disk(self) -> Disk:
        assert self._disk is not None
        return self._disk

    def lacks(self, fault: Fault) -> bool:
        """Whether something is missing here that the fault is done to."""
        return (fault.of_process and self._instance is None) or (fault.of_disk and self._disk is None)


@frozen(kw_only=True)
class Fault:
    """One thing that can happen.

    Attributes:
        strike, heal: do it, and undo it; both block.
        seconds: how long it lasts at least.
        refuses: clients must be told, and the operator too, since the database cannot be used meanwhile. Where False,
            some clients may be told.
        reason: what the log says of it then, a regular expression.
        of_process: done to the process of the database server.
        of_disk: done to its disk.
    """

    name: str
    strike: Callable[[Stage], None]
    heal: Callable[[Stage], None] = lambda _: None
    seconds: float = 1.5
    refuses: bool = True
    reason: str = ""
    of_process: bool = False
    of_disk: bool = False

    def __str__(self) -> str:
        return self.name


def _start(stage: Stage) -> None:
    stage.instance.start()
    wait_until_answers(stage.kind, stage.instance, lambda: stage.instance.log)


def _free(stage: Stage) -> None:
    stage.disk.free()
    if stage.kind is Kind.SQLITE:
        return
    # PostgreSQL ends where there is no room for its write-ahead log.
    if stage.instance.running:
        wait_until_answers(stage.kind, stage.instance, lambda: stage.instance.log)
    else:
        _start(stage)


def _end_sessions(stage: Stage) -> None:
    for _ in range(_BLOWS):
        stage.admin.end_sessions(stage.target.database)
        time.sleep(_BETWEEN)


def _drop(stage: Stage) -> None:
    stage.wire.refuse()
    stage.wire.cut()


def _flap(stage: Stage) -> None:
    for _ in range(_BLOWS):
        stage.wire.cut()
        time.sleep(_BETWEEN)


def _limit_files(stage: Stage) -> None:
    for pid in family(stage.deployment.server.pid):
        _, most = resource.prlimit(pid, resource.RLIMIT_FSIZE)
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (_FILE_LIMIT, most))


def _lift_limit(stage: Stage) -> None:
    for pid in family(stage.deployment.server.pid):
        _, most = resource.prlimit(pid, resource.RLIMIT_FSIZE)
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (most, most))


#: What the log says while nothing listens, or answers, where the database was.
_GONE = r"connection was lost|connection refused|temporarily unavailable|no answer within the deadline"

RESTART = Fault(name="restart", strike=lambda s: s.instance.stop(), heal=_start, reason=_GONE, of_process=True)
CRASH = Fault(name="crash", strike=lambda s: s.instance.kill(), heal=_start, reason=_GONE, of_process=True)
FROZEN = Fault(
    name="frozen",
    strike=lambda s: s.instance.pause(),
    heal=lambda s: s.instance.resume(),
    # Longer than a statement may take, and its socket wait.
    seconds=4.5,
    reason="no answer within the deadline",
    of_process=True,
)
FULL_DISK = Fault(
    name="full-disk",
    strike=lambda s: s.disk.fill(),
    heal=_free,
    # MariaDB sometimes waits for room without a word.
    reason=r"disk or a table is full|the disk is full|no answer within the deadline",
    of_disk=True,
)
#: What is written of a file is limited for the process: the error is the operating system's (EFBIG).
FAILING_DISK = Fault(
    name="failing-disk", strike=_limit_files, heal=_lift_limit, reason="the disk failed to read or write"
)
SESSIONS_ENDED = Fault(name="sessions-ended", strike=_end_sessions, seconds=0, refuses=False)
NETWORK_DROPS = Fault(
    name="network-drops", strike=_drop, heal=lambda s: s.wire.accept(), reason="connection was lost|connection refused"
)
NETWORK_FLAPS = Fault(name="network-flaps", strike=_flap, seconds=0, refuses=False)
NETWORK_STALLS = Fault(
    name="network-stalls",
    strike=lambda s: s.wire.freeze(),
    heal=lambda s: s.wire.thaw(),
    seconds=4.5,
    reason="no answer within the deadline",
)
#: Whether the operating system lets one process set another's limits; macOS does not.
CAN_LIMIT = hasattr(resource, "prlimit") and hasattr(signal, "SIGXFSZ")
