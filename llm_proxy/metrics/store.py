"""The memory that holds the metrics: one store for each process.

A server of one process keeps its metrics in its own memory. With several workers, each writes to its own part of memory
that they all share, so that any of them can answer for all. The counters of a worker that has ended stay there, and the
worker that replaces it continues them: counters never go down.

In shared memory every cell has eight bytes, is aligned, and has one writer. An entry is written as

    words of its name, number of cells, whether it is a counter, name (JSON, padded), cells

and the first word is written last, so that a reader sees a whole entry or none.
"""

from __future__ import annotations

import json
import math
import mmap
import os
from collections.abc import Iterator, Mapping
from typing import Final, TypeAlias

#: A family's name, and the values of its labels.
Series = tuple[str, tuple[str, ...]]
#: The numbers of one series: in memory of its own, or in shared memory.
Cells: TypeAlias = "list[float] | memoryview[float]"

#: Bytes of shared memory for each worker: room for some hundred providers. The system allocates only what is written.
SIZE: Final = 1 << 20
_WORD: Final = 8
_HEAD: Final = 1  # cells before the first entry: the process that writes
_ENTRY: Final = 3  # cells before an entry's name


class MetricStore:
    """The metrics of one process, in its own memory.

    Attributes:
        number: of the worker, from 0.
        shared: whether other processes read it.
        counters: series that stay when the process ends: counters and histograms.
        gauges: series that mean nothing without the process; NaN if there is no value.
    """

    shared = False

    def __init__(self, number: int = 0) -> None:
        self.number = number
        self.counters: dict[Series, Cells] = {}
        self.gauges: dict[Series, Cells] = {}

    def cells(self, series: Series, size: int = 1, *, counter: bool = True) -> Cells:
        """The cells of a series. New ones are 0 for a counter, else NaN."""
        known = self.counters if counter else self.gauges
        found = known.get(series)
        if found is None:
            found = known[series] = self._make(series, size, counter=counter)
        return found

    @property
    def process(self) -> int | None:
        """The id of the process that writes here; None if it has ended."""
        return os.getpid()

    def everyone(self) -> Iterator[MetricStore]:
        """The stores of all workers of this server, including this one."""
        yield self

    def _make(self, series: Series, size: int, *, counter: bool) -> Cells:
        return [0.0 if counter else math.nan] * size


class SharedMetricStore(MetricStore):
    """A store that all workers can read. Its worker calls `take` before it writes."""

    shared = True

    def __init__(self, number: int, memory: memoryview[int], stores: Mapping[int, SharedMetricStore]) -> None:
        super().__init__(number)
        self._words = memory.cast("q")
        self._values = memory.cast("d")
        self._bytes = memory
        self._end = _HEAD
        self._stores = stores

    @property
    def process(self) -> int | None:
        pid = self._words[0]
        try:
            if pid:
                os.kill(pid, 0)
        except ProcessLookupError:
            return None
        except PermissionError:
            pass  # another program's, which has got the id of a worker that has ended; too rare to handle
        return pid or None

    def take(self) -> None:
        """Continue the counters of the last worker with this number; its gauges end."""
        self.read()
        for cells in self.gauges.values():
            for index, _ in enumerate(cells):
                cells[index] = math.nan
        self._words[0] = os.getpid()

    def read(self) -> None:
        """Find the entries that its writer has added since the last call."""
        while self._end + _ENTRY < len(self._words) and (name_words := self._words[self._end]):
            size, counter = self._words[self._end + 1], self._words[self._end + 2]
            start = self._end + _ENTRY
            family, *labels = json.loads(bytes(self._bytes[start * _WORD : (start + name_words) * _WORD]))
            known = self.counters if counter else self.gauges
            known[family, tuple(labels)] = self._values[start + name_words : start + name_words + size]
            self._end = start + name_words + size

    def everyone(self) -> Iterator[MetricStore]:
        for store in self._stores.values():
            if store is not self:
                store.read()
            yield store

    def _make(self, series: Series, size: int, *, counter: bool) -> Cells:
        fresh = super()._make(series, size, counter=counter)
        name = json.dumps([series[0], *series[1]]).encode()
        name += b" " * (-len(name) % _WORD)
        words = len(name) // _WORD
        start = self._end + _ENTRY
        end = start + words + size
        if end >= len(self._words):
            return fresh  # full: only this worker can show it
        self._bytes[start * _WORD : (start + words) * _WORD] = name
        cells = self._values[start + words : end]
        for index, value in enumerate(fresh):
            cells[index] = value
        self._words[self._end + 1], self._words[self._end + 2] = size, counter
        self._words[self._end] = words
        self._end = end
        return cells


class MetricStores:
    """The stores of a server with several workers. Create them before the workers are forked."""

    def __init__(self, workers: int) -> None:
        memory = memoryview(mmap.mmap(-1, workers * SIZE))
        self._stores: dict[int, SharedMetricStore] = {}
        for number in range(workers):
            part = memory[number * SIZE : (number + 1) * SIZE]
            self._stores[number] = SharedMetricStore(number, part, self._stores)

    def take(self, number: int) -> SharedMetricStore:
        """The store of the calling worker; call it once in a process."""
        store = self._stores[number]
        store.take()
        return store
