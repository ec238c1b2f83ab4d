"""The shared transaction: what it is given, what it decides, and the plain function that runs it in a thread."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from datetime import UTC, datetime

import msgspec
from attrs import define, field

from db import Connection
from db.queries import ledger as queries
from db.queries import objects
from db.records import Account, Project, ProviderObject, Reservation, Result, SealedKey, SettledRequest, Token
from llm_proxy.errors import ProxyError, TokenInvalid, TokenLocked
from llm_proxy.ledger import isolation, late
from llm_proxy.ledger.isolation import Isolation, Named
from llm_proxy.ledger.label_values import LabelValues
from llm_proxy.ledger.late import ObjectUsage
from llm_proxy.ledger.limits import Admitted, Limits, LimitState, subjects_of
from llm_proxy.limits import Blocked, Demand, model_refusal
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
        demand: what it will use, for limits; None if its body is not read yet.
    """

    id: str
    digest: bytes
    provider: Callable[[Account], str]
    method: str
    path: str
    refusal: Callable[[str], ProxyError | None]
    named: Named | None = None
    wrong_labels: ProxyError | None = None
    demand: Demand | None = None


class Grant(msgspec.Struct, frozen=True):
    """An admitted request: its reservation, and whose it is.

    `token` is the token before the admission, and `counted` its counter with this request. `limits` are those that it
    passed.
    """

    reservation: Reservation
    digest: bytes
    account: Account
    token: Token
    counted: int
    limits: tuple[LimitState, ...] = ()

    @property
    def key(self) -> SealedKey:
        """The key to send."""
        return self.account.keys[self.reservation.provider]

    @property
    def makes_room(self) -> bool:
        """Whether other requests may wait for what it holds."""
        return any(one.limit.metric == "concurrency" or one.limit.policy == "reserved" for one in self.limits)


#: What the transaction says of a request.
Decision = Grant | ProxyError | Blocked


class Checked(msgspec.Struct, frozen=True):
    """A request that would be admitted, judged by its head.

    Attributes:
        provider: the name of the one that it is for.
        needs_body: its body must be read for the objects that it names.
        limited: its body must be read for what it may use.
    """

    token: Token
    project: Project
    provider: str
    needs_body: bool
    limited: bool = False


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


def allow_lists(token: Token, project: Project) -> list[dict[str, list[str]]]:
    """The allow-lists of models that apply."""
    return [one for one in (token.models, project.models) if one is not None]


def list_verdict(request: AdmissionRequest, token: Token, account: Account, provider: str) -> ProxyError | None:
    """Check the models that a request names; None if they are allowed, or its body is not read yet."""
    if (token.models is None and account.project.models is None) or request.demand is None:
        return None
    return model_refusal(allow_lists(token, account.project), request.demand, provider)


def judge(request: AdmissionRequest, token: Token, account: Account, provider: str, now: datetime) -> ProxyError | None:
    """Check a request to `provider`, but for the limit of its token; None means that it may pass."""
    refusal = verdict(token, account, now) or key_verdict(account, provider) or request.refusal(provider)
    if refusal is None:
        refusal = list_verdict(request, token, account, provider)
    if refusal is None and account.project.allow_request_labels:
        return request.wrong_labels
    return refusal


def transact(  # noqa: PLR0913 - all that one transaction does
    connection: Connection,
    worker_id: str,
    requests: Sequence[AdmissionRequest],
    settlements: Sequence[Settlement],
    now: datetime,
    *,
    doubtful: bool = False,
    skip_locked: bool = False,
    waiting: Collection[str] = (),
    retried: int = 0,
    booked: list[SettledRequest] | None = None,
    unjudged: Sequence[Reservation] = (),
    label_values: LabelValues | None = None,
) -> list[Decision]:
    """Settle, then admit, in the transaction of `connection`. Decisions come in the order of the requests.

    `now` is the worker's clock. `doubtful`: some of the settlements may have been written before, been swept, or never
    been reserved. `skip_locked`: do not wait for a token that another transaction holds: its requests get TokenLocked.
    `waiting`: limits that requests of other transactions wait for, in front of all but the first `retried` of these.
    `booked` gets the rows of late usage. `unjudged`: reservations that this transaction has written without a decision.
    `label_values` remembers from one transaction to the next.
    """
    label_values = label_values or LabelValues()
    written, replaced, late_rows = _settle(connection, settlements, label_values, doubtful=doubtful)
    given_back = {row.reservation.id: row.reservation.token_id for row in written if row.result.outcome == "void"}
    admission = _Admission(worker_id, now)
    if requests or given_back:
        digests = {request.digest for request in requests}
        if given_back:
            digests.update(one.digest for one in settlements if one.row.reservation.id in given_back)
        admission.read(connection, digests, with_accounts=bool(requests), skip_locked=skip_locked)
        for token_id in given_back.values():
            # A token whose secret was replaced meanwhile is not found by its digest.
            admission.counts[token_id] = admission.counts.get(token_id, 0) - 1
    limits = admission.limits = _read_limits(connection, admission, written, late_rows, unjudged, waiting)
    if limits is not None:
        limits.hold(unjudged)
        limits.lock(connection, admission.accounts_of_tokens(), written, skip_locked=skip_locked)
        late_rows = limits.settle(written, replaced, late_rows)
    decisions = admission.decide(connection, requests, retried)
    if limits is not None:
        limits.write(connection)
    queries.add_late(connection, late_rows)
    queries.roll_up(connection, [*written, *late_rows] if late_rows else written, replaced)
    if booked is not None:
        booked[:] = late_rows
    return decisions


def book_late(connection: Connection, seen: SettledRequest, usage: ObjectUsage) -> list[SettledRequest]:
    """Book the usage of an object that the proxy itself has asked for; `seen` is not written.

    Returns:
        The late row; nothing if the usage was booked before, or there is none.
    """
    _, found = late.book(connection, [(seen, usage)])
    if not found:
        return []
    late_rows = queries.describe_late(connection, found)
    limits = Limits.of_rows(connection, late_rows)
    late_rows = limits.settle((), (), late_rows)
    limits.write(connection)
    queries.add_late(connection, late_rows)
    queries.roll_up(connection, late_rows)
    return late_rows


def _settle(
    connection: Connection, settlements: Sequence[Settlement], label_values: LabelValues, *, doubtful: bool
) -> tuple[Sequence[SettledRequest], Sequence[SettledRequest], list[SettledRequest]]:
    """Write the rows of requests that ended.

    Returns:
        The rows that were written, those that they replaced, and rows of late usage, which are still to be written.
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
    written = label_values.bound(connection, written)
    if doubtful:
        written, replaced = queries.settle_doubtful(connection, written)
    else:
        queries.settle(connection, written)
    return written, replaced, queries.describe_late(connection, late_rows) if late_rows else late_rows


def _read_limits(
    connection: Connection,
    admission: _Admission,
    written: Sequence[SettledRequest],
    late_rows: Sequence[SettledRequest],
    unjudged: Sequence[Reservation],
    waiting: Collection[str],
) -> Limits | None:
    """The limits of this transaction; None, and no statement, if there are none."""
    subjects = {token.id for token in admission.tokens.values() if token.limited} if admission.accounts else set()
    subjects.update(key for key, account in admission.accounts.items() if account.limited)
    subjects |= subjects_of(row.reservation for row in written if row.reservation.limits)
    subjects |= subjects_of(row.reservation for row in late_rows)
    subjects |= subjects_of(one for one in unjudged if one.limits)
    return Limits.read(connection, subjects, waiting) if subjects else None


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


@define(eq=False)
class _Admission:
    """Judges requests by what their transaction has read.

    Attributes:
        counts: how much the counter of each token moves.
        locked: digests of tokens that another transaction holds.
    """

    _worker_id: str
    _now: datetime
    tokens: dict[bytes, Token] = field(factory=dict, init=False)
    accounts: dict[str, Account] = field(factory=dict, init=False)
    locked: set[bytes] = field(factory=set, init=False)
    counts: dict[str, int] = field(factory=dict, init=False)
    limits: Limits | None = field(default=None, init=False)

    def read(self, connection: Connection, digests: set[bytes], *, with_accounts: bool, skip_locked: bool) -> None:
        """Lock the tokens, and read their projects."""
        if skip_locked:
            self.tokens, self.locked = queries.lock_free_tokens(connection, digests)
        else:
            self.tokens = queries.lock_tokens(connection, digests)
        self.counts = dict.fromkeys((token.id for token in self.tokens.values()), 0)
        if with_accounts and self.tokens:
            self.accounts = queries.find_accounts(connection, {token.project_id for token in self.tokens.values()})

    def accounts_of_tokens(self) -> Iterable[tuple[Token, Account]]:
        """The tokens, each with its project, if there are requests."""
        if self.accounts:
            for token in self.tokens.values():
                yield token, self.accounts[token.project_id]

    def decide(self, connection: Connection, requests: Sequence[AdmissionRequest], retried: int) -> list[Decision]:
        """Judge the requests in order of arrival, write their reservations, and move the counters."""
        decisions: list[Decision] = []
        reservations: list[Reservation] = []
        known = _read_isolation(connection, requests, self.tokens, self.accounts)
        for number, request in enumerate(requests):
            if self.limits is not None and number == retried:
                self.limits.end_retries()
            decision = self._decision(request, known)
            if isinstance(decision, Grant):
                reservations.append(decision.reservation)
            decisions.append(decision)
        queries.add_to_counters(connection, self.counts, self._now if reservations else None)
        queries.reserve(connection, reservations)
        return decisions

    def _decision(self, request: AdmissionRequest, known: Isolation | None) -> Decision:
        token = self.tokens.get(request.digest)
        account = None if token is None else self.accounts.get(token.project_id)
        if token is None or account is None:
            return TokenLocked() if request.digest in self.locked else TokenInvalid()
        provider = request.provider(account)
        whose = (token.id, account.project.id, provider)
        judged = self._judge(request, token, account, provider, known)
        if isinstance(judged, Blocked):
            judged.error.about(*whose)
            return judged
        if isinstance(judged, ProxyError):
            return judged.about(*whose)
        holds: dict[str, int] | None = None
        states: tuple[LimitState, ...] = ()
        admitted_at = self._now
        if judged is not None:
            # The window of a request is that of the database's clock, and its row must say so.
            holds, states, admitted_at = judged
        count = self.counts[token.id] = self.counts[token.id] + 1
        reservation = Reservation(request.id, self._worker_id, *whose, request.method, request.path, admitted_at, holds)
        return Grant(reservation, request.digest, account, token, token.request_count + count, states)

    def _judge(
        self, request: AdmissionRequest, token: Token, account: Account, provider: str, known: Isolation | None
    ) -> ProxyError | Blocked | Admitted | None:
        """Why this request is refused or waits, or what it holds of its limits; None if it is admitted without any.

        A mistake in the rules must not stop the worker, because a client could repeat it: it refuses the one request.
        The exception is the refusal's cause.
        """
        try:
            refusal = judge(request, token, account, provider, self._now)
            if refusal is None and known is not None and request.named is not None:
                refusal = known.refusal(request.named, account.project, provider)
            refusal = refusal or limit_verdict(token, self.counts[token.id])
            if refusal is not None or self.limits is None:
                return refusal
            return self.limits.judge(token, account, provider, request.demand)
        except ProxyError as error:
            return error
        except Exception as error:  # noqa: BLE001 - whatever a rule raises
            refusal = ProxyError()
            refusal.__cause__ = error
            return refusal


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
