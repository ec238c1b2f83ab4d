"""What one process counts, and what it shows when Prometheus asks."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Callable, Iterable, Mapping
from typing import Final, Protocol, get_args

from attrs import define, field, frozen

from db.records import Outcome
from llm_proxy import errors
from llm_proxy.metrics import families
from llm_proxy.metrics.exposition import exposition
from llm_proxy.metrics.families import Family
from llm_proxy.metrics.slate import Cells, Slate

_OTHER: Final = "other"
_OUTCOMES: Final = frozenset(get_args(Outcome))

#: Reads a figure, None where there is none; or, of a family with a label, the figures by its values.
Read = Callable[[], float | Mapping[str, float] | None]


class TokenUsage(Protocol):
    """What a response cost in tokens; None where the provider did not say."""

    @property
    def input_tokens(self) -> int | None:
        """Tokens of the prompt."""

    @property
    def output_tokens(self) -> int | None:
        """Tokens of the answer."""

    @property
    def cached_tokens(self) -> int | None:
        """Tokens of the prompt that the provider had in its cache."""


class Histogram:
    """Counts per bucket, and the sum, in cells of its own."""

    __slots__ = ("_bounds", "_cells")

    def __init__(self, bounds: tuple[float, ...], cells: Cells) -> None:
        """Take the upper bounds, inclusive and in ascending order, and two cells more than there are bounds."""
        self._bounds = bounds
        self._cells = cells

    def observe(self, value: float) -> None:
        """Count one value."""
        self._cells[bisect_left(self._bounds, value)] += 1
        self._cells[-1] += value


@define(eq=False)
class _Provider:
    """The figures of one provider's requests. `ends` counts by outcome and hundreds of the status (0: none)."""

    name: str
    duration: Histogram
    first_byte: Histogram
    in_flight: Cells
    input: Cells
    output: Cells
    cached: Cells
    ends: dict[tuple[str, int], Cells] = field(factory=dict)


@frozen
class _Watch:
    """A figure that is read now and then: its cells by label, and what a counter stood at before this process."""

    family: Family
    read: Read
    cells: dict[str, Cells] = field(factory=dict)
    before: dict[str, float] = field(factory=dict)


class Metrics:
    """All figures of one process; what it shows are those of all workers."""

    def __init__(self, providers: Iterable[str] = (), version: str = "", slate: Slate | None = None) -> None:
        """Start from zero, or where the last worker with this slate has left off.

        Args:
            providers: the names that may become labels; every other one is counted as `other`.
            version: of this program.
            slate: where the figures stand; this process's own memory where None.
        """
        self._slate = Slate() if slate is None else slate
        self._providers = {name: self._provider(name) for name in providers}
        codes = sorted({kind.code for kind in errors.DATA_PLANE})
        self._refusals = {code: self._cells(families.REFUSALS, code) for code in (*codes, _OTHER)}
        self._transaction = self._histogram(families.TRANSACTION_SECONDS)
        self._admitted = self._histogram(families.BATCH_ADMITTED)
        self._settled = self._histogram(families.BATCH_SETTLED)
        self._watches: list[_Watch] = []
        self._cells(families.BUILD, version)[0] = 1
        self._cells(families.WORKERS)[0] = 1
        self._cells(families.WORKER_STARTS)[0] += 1

    @property
    def shared(self) -> bool:
        """Whether other processes show the figures of this one, so that it has to `publish` now and then."""
        return self._slate.shared

    def request(
        self,
        provider: str,
        outcome: str,
        status: int | None,
        duration_s: float,
        first_byte_s: float | None,
        usage: TokenUsage | None,
    ) -> None:
        """Count one request that was admitted and has ended.

        Args:
            provider: the name of the provider that it went to.
            outcome: one of `db.records.Outcome`.
            status: what the client was sent, None where nothing was.
            duration_s: seconds from its arrival to its end.
            first_byte_s: seconds from its arrival to the first byte of the answer's body, None where there was none.
            usage: its tokens, None where they are not known.
        """
        figures = self._providers.get(provider) or self._other()
        end = (outcome, 0 if status is None else status // 100)
        (figures.ends.get(end) or self._end(figures, *end))[0] += 1
        figures.duration.observe(duration_s)
        if first_byte_s is not None:
            figures.first_byte.observe(first_byte_s)
        if usage is not None:
            figures.input[0] += usage.input_tokens or 0
            figures.output[0] += usage.output_tokens or 0
            figures.cached[0] += usage.cached_tokens or 0

    def refusal(self, code: str) -> None:
        """Count one request that the proxy answered itself, by its error code."""
        self._refusals[code if code in self._refusals else _OTHER][0] += 1

    def upstream_started(self, provider: str) -> None:
        """Count a request as being with its provider, until `upstream_ended`."""
        (self._providers.get(provider) or self._other()).in_flight[0] += 1

    def upstream_ended(self, provider: str) -> None:
        """End what `upstream_started` began; exactly once each."""
        (self._providers.get(provider) or self._other()).in_flight[0] -= 1

    def observe_transaction(self, seconds: float, admitted: int, settled: int) -> None:
        """Count one committed transaction of the ledger: how long it took and how many requests it carried."""
        self._transaction.observe(seconds)
        self._admitted.observe(admitted)
        self._settled.observe(settled)

    def watch(self, family: Family, read: Read) -> None:
        """Show a figure that is read when Prometheus asks, and each time that this process publishes.

        Args:
            family: one of `families` with no label, or one.
            read: gives the figure, or with a label a figure for each of its values, whose number must be bounded. A
                counter's counts from the start of this process. Where it raises, the figure is left out.

        Raises:
            ValueError: it is watched already.
        """
        if any(watch.family is family for watch in self._watches):
            raise ValueError(f"this metric is watched already: {family.name}")
        self._watches.append(_Watch(family, read))

    def publish(self) -> None:
        """Write down what is watched, for the other workers to show."""
        for watch in self._watches:
            self._look(watch)

    def render(self) -> tuple[bytes, str]:
        """Give the figures of all workers in Prometheus' text format, and its content type.

        What is shown has been written down before, so that no later answer, of whatever worker, shows a lower count.
        """
        self.publish()
        return exposition(self._slate)

    def _look(self, watch: _Watch) -> None:
        family = watch.family
        try:
            read = watch.read()
            by_label = read if isinstance(read, Mapping) else {} if read is None else {"": read}
            figures = {key: float(value) for key, value in by_label.items()}
        except Exception:  # noqa: BLE001 (one figure that cannot be had must not hide the others)
            figures = {}
        for key, value in figures.items():
            if key not in watch.cells:
                labels = (key,) if family.labels else ()
                watch.cells[key] = self._slate.cells((family.name, labels), lasting=family.lasting)
                watch.before[key] = watch.cells[key][0] if family.lasting else 0
            watch.cells[key][0] = watch.before[key] + value
        if not family.lasting:
            for key in watch.cells.keys() - figures.keys():
                watch.cells[key][0] = math.nan

    def _cells(self, family: Family, *labels: str) -> Cells:
        cells = self._slate.cells((family.name, labels), family.size, lasting=family.lasting)
        if not family.lasting:
            cells[0] = 0
        return cells

    def _histogram(self, family: Family, *labels: str) -> Histogram:
        return Histogram(family.bounds, self._cells(family, *labels))

    def _provider(self, name: str) -> _Provider:
        return _Provider(
            name,
            self._histogram(families.DURATION, name),
            self._histogram(families.FIRST_BYTE, name),
            self._cells(families.UPSTREAM_REQUESTS, name),
            self._cells(families.TOKENS, name, "input"),
            self._cells(families.TOKENS, name, "output"),
            self._cells(families.TOKENS, name, "cached"),
        )

    def _other(self) -> _Provider:
        """The figures of those that have no name here; shown from their first request on."""
        found = self._providers[_OTHER] = self._providers.get(_OTHER) or self._provider(_OTHER)
        return found

    def _end(self, figures: _Provider, outcome: str, hundreds: int) -> Cells:
        known = outcome if outcome in _OUTCOMES else _OTHER
        cells = self._cells(families.REQUESTS, figures.name, known, f"{hundreds}xx" if hundreds else "none")
        if known == outcome:
            figures.ends[outcome, hundreds] = cells
        return cells
