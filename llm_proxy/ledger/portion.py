"""The work that one transaction takes on: places in the queue, settlements, and how both are cut into smaller work."""

from __future__ import annotations

from typing import TYPE_CHECKING

import trio
from attrs import asdict, frozen

from llm_proxy.errors import DatabaseUnavailable
from llm_proxy.ledger.transaction import Batch
from llm_proxy.logging import log

if TYPE_CHECKING:
    from collections.abc import Sequence

    from llm_proxy.errors import ProxyError
    from llm_proxy.ledger.transaction import Application, Grant, Settlement

_log = log.logger("ledger")


class Ticket:
    """One application's place in the queue, and the task that waits there."""

    __slots__ = ("answered", "application", "decision", "queued", "task")

    def __init__(self, application: Application) -> None:
        """Belong to the task that is running."""
        self.application = application
        self.queued = trio.current_time()
        self.task = trio.lowlevel.current_task()
        self.answered = False
        self.decision: Grant | ProxyError

    async def wait(self) -> Grant | ProxyError:
        """Sleep until `answer`. Cancelling takes the ticket out of the game: whatever is decided then is void."""

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


@frozen(eq=False)
class Portion:
    """What one transaction is to write. `doubtful` and `skip_locked` are those of the batch."""

    tickets: Sequence[Ticket]
    settlements: Sequence[Settlement]
    doubtful: bool = False
    skip_locked: bool = False

    def batch(self, worker_id: str) -> Batch:
        """The portion as the transaction takes it."""
        applications = [ticket.application for ticket in self.tickets]
        return Batch(worker_id, applications, self.settlements, self.doubtful, self.skip_locked)

    def parts(self) -> list[Portion]:
        """The same work for two transactions, in the same order; empty where it cannot be cut.

        Those who do not wait for their admission any more are left out.
        """
        tickets = [ticket for ticket in self.tickets if not ticket.answered]
        settlements = self.settlements
        if settlements and self.tickets:
            cut = [Portion([], settlements, self.doubtful), Portion(tickets, [], skip_locked=self.skip_locked)]
        elif len(settlements) > 1:
            middle = len(settlements) // 2
            cut = [Portion([], half, self.doubtful) for half in (settlements[:middle], settlements[middle:])]
        elif len(self.tickets) > 1:
            middle = len(tickets) // 2
            halves = (tickets[:middle], tickets[middle:])
            cut = [Portion(half, [], skip_locked=self.skip_locked) for half in halves]
        else:
            return []
        return [part for part in cut if part.tickets or part.settlements]

    def refuse(self, refusal: type[DatabaseUnavailable]) -> None:
        """Answer all that wait for their admission."""
        for ticket in self.tickets:
            ticket.answer(refusal())

    def give_up(self, error: Exception) -> None:
        """Leave undone what the database does not take even alone, and tell the log everything about it."""
        for settlement in self.settlements:
            # The reservation stays, and is settled as `unknown` when this worker has ended.
            _log.error("a settlement was refused and is lost", settlement=asdict(settlement.row), exc_info=error)
        words = "This request could not be written down. Nothing was sent to the provider."
        for ticket in self.tickets:
            application = ticket.application
            if ticket.answer(DatabaseUnavailable(words)):
                _log.error(
                    "a request could not be written down and was turned away",
                    request_id=application.id,
                    method=application.method,
                    path=application.path,
                    exc_info=error,
                )
