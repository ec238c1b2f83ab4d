"""The writer's unit of work: the requests and settlements of one transaction, and how a refused one is divided."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from operator import attrgetter

import trio
from attrs import Factory, define, field, frozen

from llm_proxy.errors import DatabaseUnavailable, ProxyError
from llm_proxy.ledger.transaction import AdmissionRequest, Grant, Settlement
from llm_proxy.limits import Blocked
from llm_proxy.logging import log

#: Maximum number of admissions, and of settlements, in one transaction: bounds its locks and statement sizes.
MAX_BATCH = 500

_log = log.logger("ledger")


@define(eq=False, repr=False)
class PendingAdmission:
    """A request's place in the queue, and the task that waits for the decision.

    `blocked`: why it waits for running requests to end, which it does until `waits_until`, in trio's time. `arrived` is
    when it came, `queued` when it began to wait for the database.
    """

    request: AdmissionRequest
    arrived: float = field(factory=trio.current_time, init=False)
    queued: float = field(default=Factory(attrgetter("arrived"), takes_self=True), init=False)
    task: trio.lowlevel.Task = field(factory=trio.lowlevel.current_task, init=False)
    answered: bool = False
    blocked: Blocked | None = None
    waits_until: float = math.inf
    decision: Grant | ProxyError = field(init=False)

    async def wait(self) -> Grant | ProxyError:
        """Sleep until `answer`. If cancelled, a later grant is void: `answer` returns False."""

        def give_up(_: object) -> trio.lowlevel.Abort:
            self.answered = True
            return trio.lowlevel.Abort.SUCCEEDED

        await trio.lowlevel.wait_task_rescheduled(give_up)
        return self.decision

    def answer(self, decision: Grant | ProxyError) -> bool:
        """Wake the task; False if it does not wait any more."""
        if self.answered:
            return False
        self.answered = True
        self.decision = decision
        trio.lowlevel.reschedule(self.task)
        return True


def refuse(pending: Iterable[PendingAdmission], refusal: type[DatabaseUnavailable], latest: float = math.inf) -> None:
    """Refuse the requests that were queued at `latest` or before."""
    for one in pending:
        if one.queued <= latest:
            one.answer(refusal())


@frozen(eq=False)
class Batch:
    """What one transaction is to write. `doubtful` and `skip_locked` are those of `transact`."""

    pending: Sequence[PendingAdmission]
    settlements: Sequence[Settlement]
    doubtful: bool = False
    skip_locked: bool = False

    @property
    def retried(self) -> int:
        """How many requests have waited for running ones to end; they are the first of the batch."""
        return sum(one.blocked is not None for one in self.pending)

    def parts(self) -> list[Batch]:
        """The same work for two transactions, in the same order; empty if it cannot be divided.

        Requests that do not wait for their admission any more are left out.
        """
        pending = [one for one in self.pending if not one.answered]
        settlements = self.settlements
        if settlements and self.pending:
            cut = [Batch([], settlements, self.doubtful), Batch(pending, [], skip_locked=self.skip_locked)]
        elif len(settlements) > 1:
            middle = len(settlements) // 2
            cut = [Batch([], half, self.doubtful) for half in (settlements[:middle], settlements[middle:])]
        elif len(self.pending) > 1:
            middle = len(pending) // 2
            cut = [Batch(half, [], skip_locked=self.skip_locked) for half in (pending[:middle], pending[middle:])]
        else:
            return []
        return [part for part in cut if part.pending or part.settlements]

    def give_up(self, error: Exception) -> None:
        """Drop what the database refuses even alone, and write all of it to the log."""
        for settlement in self.settlements:
            # The reservation stays, and is settled as `unknown` when this worker has ended.
            _log.error("a settlement was refused and is lost", settlement=settlement.row.by_column(), exc_info=error)
        message = "This request could not be recorded. Nothing was sent to the provider."
        for pending in self.pending:
            if pending.answer(DatabaseUnavailable(message)):
                request = pending.request
                _log.error(
                    "a request could not be recorded and was rejected",
                    request_id=request.id,
                    method=request.method,
                    path=request.path,
                    exc_info=error,
                )
