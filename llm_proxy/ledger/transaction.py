"""The shared transaction: what it is given, what it decides, and the plain function that runs it in a thread."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import UTC, datetime

import msgspec

from db import Connection
from db.queries import ledger as queries
from db.queries import objects
from db.records import Account, Project, ProviderObject, Reservation, Result, SealedKey, SettledRequest, Token
from llm_proxy.errors import ProxyError, TokenInvalid, TokenLocked
from llm_proxy.ledger import isolation, late
from llm_proxy.ledger.isolation import Isolation, Named
from llm_proxy.ledger.late import ObjectUsage
from llm_proxy.tokens import key_verdict, limit_verdict, verdict


class AdmissionRequest(msgspec.Struct, frozen=True):
    """A request that is to be admitted.

    Attributes:
        id: the request's id, canonical UUIDv7.
        digest: SHA-256 of the token secret that it came with.
        provider: chooses the provider that it goes to, by name, of those of the token's project.
        method, path: written into the reservation; the path has no query and no credentials.
        refusal: judges the request by the rules of that provider (its name is given), without I/O.
        named: the objects at the provider that it names, None if it names and lists none.
        wrong_labels: why its labels are not valid; it is refused if its project takes labels of requests.
    """

    id: str
    digest: bytes
    provider: Callable[[Account], str]
    method: str
    path: str
    refusal: Callable[[str], ProxyError | None]
    named: Named | None = None
    wrong_labels: ProxyError | None = None


class Grant(msgspec.Struct, frozen=True):
    """An admitted request: its reservation, and whose it is.

    `token` is the token before the admission, and `counted` its counter with this request.
    """

    reservation: Reservation
    digest: bytes
    account: Account
    token: Token
    counted: int

    @property
    def key(self) -> SealedKey:
        """The key to send."""
        return self.account.keys[self.reservation.provider]


class Checked(msgspec.Struct, frozen=True):
    """A request that would be admitted, judged by its head.

    Attributes:
        provider: the name of the one that it is for.
        needs_body: its body must be read for the objects that it names.
    """

    token: Token
    project: Project
    provider: str
    needs_body: bool


#: Objects at a provider that a request created, each with its kind; the kind is empty for one that it deleted.
Objects = tuple[tuple[str, str], ...]


class Settlement(msgspec.Struct, frozen=True, omit_defaults=True):
    """A ledger row that is to be written. By the digest its token is found when the count is given back.

    `objects` are those that were not recorded while the request was running. `usage`: the request has seen the final
    state of an object.
    """

    row: SettledRequest
    digest: bytes
    objects: Objects = ()
    usage: ObjectUsage | None = None

    @classmethod
    def of(cls, grant: Grant, result: Result, objects: Objects = (), usage: ObjectUsage | None = None) -> Settlement:
        """The ledger row of a request that ends now with this result."""
        model = result.model.strip()
        if model != result.model:
            # MySQL and MariaDB compare a key without the space at its end: the sums would differ from the rows.
            result = msgspec.structs.replace(result, model=model)
        return cls(SettledRequest(grant.reservation, result, datetime.now(UTC)), grant.digest, objects, usage)


def judge(request: AdmissionRequest, token: Token, account: Account, provider: str, now: datetime) -> ProxyError | None:
    """Check a request to `provider`, but for the limit of its token; None means that it may pass."""
    refusal = verdict(token, account, now) or key_verdict(account, provider) or request.refusal(provider)
    if refusal is None and account.project.allow_request_labels:
        return request.wrong_labels
    return refusal


def transact(
    connection: Connection,
    worker_id: str,
    requests: Sequence[AdmissionRequest],
    settlements: Sequence[Settlement],
    now: datetime,
    *,
    doubtful: bool = False,
    skip_locked: bool = False,
) -> list[Grant | ProxyError]:
    """Settle, then admit, in the transaction of `connection`. Decisions come in the order of the requests.

    `now` is the worker's clock. `doubtful`: some of the settlements may have been written before, been swept, or never
    been reserved. `skip_locked`: do not wait for a token that another transaction holds: its requests get TokenLocked.
    """
    written: Sequence[SettledRequest] = [settlement.row for settlement in settlements]
    replaced: Sequence[SettledRequest] = ()
    _record_objects(connection, settlements)
    seen = [(one.row, one.usage) for one in settlements if one.usage is not None]
    late_rows: list[SettledRequest] = []
    if seen:
        again, late_rows = late.book(connection, seen)
        written = [
            SettledRequest(row.reservation, late.without_usage(row.result), row.settled_at) if row.id in again else row
            for row in written
        ]
    if doubtful:
        written, replaced = queries.settle_doubtful(connection, written)
    else:
        queries.settle(connection, written)
    if late_rows:
        late_rows = queries.add_late(connection, late_rows)
    given_back = {row.reservation.id: row.reservation.token_id for row in written if row.result.outcome == "void"}
    decisions: list[Grant | ProxyError] = []
    if requests or given_back:
        digests = {request.digest for request in requests}
        if given_back:
            digests.update(one.digest for one in settlements if one.row.reservation.id in given_back)
        if skip_locked:
            tokens, locked = queries.lock_free_tokens(connection, digests)
        else:
            tokens, locked = queries.lock_tokens(connection, digests), set()
        counts = dict.fromkeys((token.id for token in tokens.values()), 0)
        for token_id in given_back.values():
            # A token whose secret was replaced meanwhile is not found by its digest.
            counts[token_id] = counts.get(token_id, 0) - 1
        decisions = _decide(connection, worker_id, requests, tokens, locked, counts, now)
    queries.roll_up(connection, [*written, *late_rows] if late_rows else written, replaced)
    return decisions


def _record_objects(connection: Connection, settlements: Sequence[Settlement]) -> None:
    """Record what requests created and deleted; doing so again changes nothing."""
    changed = [one for one in settlements if one.objects]
    if changed:
        reservations = [(one.row.reservation, one.objects) for one in changed]
        objects.record(
            connection,
            [row for reservation, made in reservations for row in records_of(reservation, made)],
        )
        objects.forget(
            connection,
            [(r.provider, key, r.project_id) for r, made in reservations for key, kind in made if not kind],
        )


def records_of(reservation: Reservation, made: Objects) -> list[ProviderObject]:
    """The records of the objects that a request created."""
    whose = (reservation.project_id, reservation.token_id, reservation.id, reservation.admitted_at)
    return [
        ProviderObject(reservation.provider, key, kind, *whose, "" if kind in late.AWAITED else None)
        for key, kind in made
        if kind
    ]


def _judge(
    request: AdmissionRequest,
    token: Token,
    account: Account,
    provider: str,
    count: int,
    now: datetime,
    known: Isolation | None,
) -> ProxyError | None:
    """Why this request is refused, None if it is admitted. `count` is how much the token's counter moves before it.

    A mistake in the rules must not stop the worker, because a client could repeat it: it refuses the one request. The
    exception is the refusal's cause.
    """
    try:
        refusal = judge(request, token, account, provider, now)
        if refusal is None and known is not None and request.named is not None:
            refusal = known.refusal(request.named, account.project, provider)
        return refusal or limit_verdict(token, count)
    except Exception as error:  # noqa: BLE001 - whatever a rule raises
        refusal = ProxyError()
        refusal.__cause__ = error
        return refusal


def _decide(
    connection: Connection,
    worker_id: str,
    requests: Sequence[AdmissionRequest],
    tokens: dict[bytes, Token],
    locked: set[bytes],
    counts: dict[str, int],
    now: datetime,
) -> list[Grant | ProxyError]:
    """Judge the requests in order of arrival, write their reservations, and move the counters."""
    wanted = {token.project_id for token in tokens.values()} if requests else set()
    accounts = queries.find_accounts(connection, wanted) if wanted else {}
    decisions: list[Grant | ProxyError] = []
    reservations: list[Reservation] = []
    known = _read_isolation(connection, requests, tokens, accounts)
    for request in requests:
        token = tokens.get(request.digest)
        account = None if token is None else accounts.get(token.project_id)
        if token is None or account is None:
            decisions.append(TokenLocked() if request.digest in locked else TokenInvalid())
            continue
        project = account.project
        provider = request.provider(account)
        refusal = _judge(request, token, account, provider, counts[token.id], now, known)
        if refusal is not None:
            decisions.append(refusal.about(token.id, project.id, provider))
            continue
        count = counts[token.id] = counts[token.id] + 1
        reservation = Reservation(
            request.id, worker_id, token.id, project.id, provider, request.method, request.path, now
        )
        reservations.append(reservation)
        decisions.append(Grant(reservation, request.digest, account, token, token.request_count + count))
    queries.add_to_counters(connection, counts, now if reservations else None)
    queries.reserve(connection, reservations)
    return decisions


def _read_isolation(
    connection: Connection,
    requests: Sequence[AdmissionRequest],
    tokens: dict[bytes, Token],
    accounts: dict[str, Account],
) -> Isolation | None:
    """What is known of the objects that these requests name; None, and no statement, if they name none."""
    wanted = []
    for request in requests:
        if request.named is None or (token := tokens.get(request.digest)) is None:
            continue
        account = accounts.get(token.project_id)
        if account is not None:
            wanted.append((request.named, account.project.id, request.provider(account)))
    return isolation.read(connection, wanted) if wanted else None
