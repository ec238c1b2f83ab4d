"""The shared transaction: what is asked of it, what it decides, and the plain function that runs it in a thread."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from attrs import frozen

from db.queries import ledger as books
from db.records import Outcome, Reservation, SettledRequest
from llm_proxy.errors import ProxyError, TokenInvalid, TokenLocked
from llm_proxy.tokens import limit_verdict, verdict

if TYPE_CHECKING:
    from collections.abc import Sequence

    from db import Connection
    from db.records import Project, Token


@frozen
class Application:
    """A request that asks to be admitted.

    Attributes:
        id: the request's id, canonical UUIDv7.
        digest: SHA-256 of the token secret that it came with.
        provider: the provider that its path names, None where the project's own is meant.
        method, path: written into the reservation; the path without its query.
        refusal: judges the request against the rules of the project's provider (its name is given), purely.
    """

    id: str
    digest: bytes
    provider: str | None
    method: str
    path: str
    refusal: Callable[[str], ProxyError | None]


@frozen
class Grant:
    """An admitted request: its reservation, and its project's API key in sealed form.

    `token` is as it was before, and `counted` its counter with this request in it.
    """

    reservation: Reservation
    digest: bytes
    sealed_key: str
    token: Token
    counted: int

    @property
    def provider(self) -> str:
        """The name of the provider that the request goes to."""
        return self.reservation.provider


@frozen(kw_only=True)
class Result:
    """What became of an admitted request; units as in `SettledRequest`."""

    outcome: Outcome
    status: int | None = None
    model: str = ""
    streamed: bool = False
    first_byte_us: int | None = None
    duration_us: int | None = None
    request_bytes: int = 0
    response_bytes: int = 0
    input_tokens: int | None = None
    output_tokens: int | None = None
    cached_tokens: int | None = None
    unmetered: bool = False
    provider_request_id: str | None = None


@frozen
class Settlement:
    """A settled row on its way, with the digest that finds its token's counter when the count is given back."""

    row: SettledRequest
    digest: bytes

    @classmethod
    def of(cls, grant: Grant, result: Result) -> Settlement:
        """The final row of a reservation that ends now with this result."""
        reservation = grant.reservation
        row = SettledRequest(
            id=reservation.id,
            worker_id=reservation.worker_id,
            token_id=reservation.token_id,
            project_id=reservation.project_id,
            provider=reservation.provider,
            method=reservation.method,
            path=reservation.path,
            outcome=result.outcome,
            status=result.status,
            # MySQL and MariaDB compare a key without the space at its end: the sums would differ from the rows.
            model=result.model.strip(),
            streamed=result.streamed,
            admitted_at=reservation.admitted_at,
            settled_at=datetime.now(UTC),
            first_byte_us=result.first_byte_us,
            duration_us=result.duration_us,
            request_bytes=result.request_bytes,
            response_bytes=result.response_bytes,
            input_tokens=result.input_tokens,
            output_tokens=result.output_tokens,
            cached_tokens=result.cached_tokens,
            unmetered=result.unmetered,
            provider_request_id=result.provider_request_id,
        )
        return cls(row, grant.digest)


@frozen
class Batch:
    """The work of one shared transaction."""

    worker_id: str
    applications: Sequence[Application] = ()
    settlements: Sequence[Settlement] = ()
    # Some of the settlements may have been written, swept or never reserved.
    doubtful: bool = False
    # Wait for no token that another transaction holds: its applications are decided with `TokenLocked`.
    skip_locked: bool = False


def judge(application: Application, token: Token, project: Project, now: datetime) -> ProxyError | None:
    """Judge everything about a request but the limit of its token; None means that it may pass."""
    return verdict(token, project, now, provider=application.provider) or application.refusal(project.provider)


def transact(connection: Connection, batch: Batch, now: datetime) -> list[Grant | ProxyError]:
    """Run the shared transaction: settle, then admit. Decisions come in the order of the applications."""
    written: Sequence[SettledRequest] = [settlement.row for settlement in batch.settlements]
    replaced: Sequence[SettledRequest] = ()
    if batch.doubtful:
        written, replaced = books.settle_doubtful(connection, written)
    else:
        books.settle(connection, written)
    given_back = [row for row in written if row.outcome == "void"]
    decisions: list[Grant | ProxyError] = []
    if batch.applications or given_back:
        returning = {row.id for row in given_back}
        digests = {application.digest for application in batch.applications}
        digests.update(settlement.digest for settlement in batch.settlements if settlement.row.id in returning)
        locked: set[bytes] = set()
        if batch.skip_locked:
            tokens, locked = books.lock_free_tokens(connection, digests)
        else:
            tokens = books.lock_tokens(connection, digests)
        counts = dict.fromkeys((token.id for token in tokens.values()), 0)
        for row in given_back:
            # Its digest does not find a token whose secret was replaced meanwhile.
            counts[row.token_id] = counts.get(row.token_id, 0) - 1
        decisions = _decide(connection, batch, tokens, locked, counts, now)
    books.roll_up(connection, written, replaced)
    return decisions


def _judge(application: Application, token: Token, project: Project, count: int, now: datetime) -> ProxyError | None:
    """Why this request is refused, None if it is admitted. `count` is how much the token's counter moves before it.

    A mistake in the rules must not stop the worker, because a client could then do so again and again: it refuses the
    one request. The exception is the refusal's cause.
    """
    try:
        return judge(application, token, project, now) or limit_verdict(token, count)
    except Exception as error:  # noqa: BLE001 - whatever a rule raises
        refusal = ProxyError()
        refusal.__cause__ = error
        return refusal


def _decide(
    connection: Connection,
    batch: Batch,
    tokens: dict[bytes, Token],
    locked: set[bytes],
    counts: dict[str, int],
    now: datetime,
) -> list[Grant | ProxyError]:
    """Judge the applications in order of arrival, write their reservations, and move the counters."""
    wanted = {token.project_id for token in tokens.values()} if batch.applications else set()
    projects = books.find_projects(connection, wanted) if wanted else {}
    decisions: list[Grant | ProxyError] = []
    reservations: list[Reservation] = []
    for application in batch.applications:
        token = tokens.get(application.digest)
        project = None if token is None else projects.get(token.project_id)
        if token is None or project is None:
            decisions.append(TokenLocked() if application.digest in locked else TokenInvalid())
            continue
        refusal = _judge(application, token, project, counts[token.id], now)
        if refusal is not None:
            decisions.append(refusal.about(token.id, project.id, project.provider))
            continue
        count = counts[token.id] = counts[token.id] + 1
        reservation = Reservation(
            application.id,
            batch.worker_id,
            token.id,
            project.id,
            project.provider,
            application.method,
            application.path,
            now,
        )
        reservations.append(reservation)
        decisions.append(Grant(reservation, application.digest, project.api_key, token, token.request_count + count))
    books.add_to_counters(connection, counts, now if reservations else None)
    books.reserve(connection, reservations)
    return decisions
