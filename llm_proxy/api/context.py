"""What the control plane works with."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from datetime import UTC, datetime

from attrs import field, frozen

from db.database import Database
from llm_proxy.metrics import Metrics
from llm_proxy.secrets.encryption import KeyRing


def _now() -> datetime:
    return datetime.now(UTC)


@frozen(kw_only=True)
class Context:
    """Everything that the routes of the control plane need, filled by the composition root.

    Attributes:
        database: where projects, tokens and the ledger are.
        keyring: seals the providers' API keys.
        management_token: opens `/manage`.
        providers: names of the configured providers, at least one.
        default_provider: the one of projects that name none.
        version: of this program.
        metrics: shown at `metrics_path`.
        survey: brings the metrics of the database up to date.
        metrics_path: None where the metrics are not served.
        not_ready: names what keeps this process from serving: some of `database`, `schema`, `writer`, `draining`.
        carries_on: whether requests are served although the database is away.
        clock: the time, aware UTC.
    """

    database: Database
    keyring: KeyRing
    management_token: str = field(repr=False)
    providers: tuple[str, ...]
    default_provider: str
    version: str
    metrics: Metrics
    metrics_path: str | None
    not_ready: Callable[[], Awaitable[Iterable[str]]]
    survey: Callable[[], Awaitable[None]]
    carries_on: Callable[[], bool] = lambda: False
    clock: Callable[[], datetime] = _now
