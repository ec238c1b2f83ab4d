"""Where figures stand: one slate for each process.

A server of one process keeps its slate in its own memory. Where several workers serve, each of them writes on one in
memory that all of them share, so that whichever is asked can read all of them, and what a killed worker has counted is
still there. The next worker with the number of one that has ended goes on with its slate: counts never go down.

On a shared slate every cell is eight bytes wide and aligned, and has one writer. An entry is laid down as

    words of its name, number of cells, whether it lasts, name (JSON, padded), cells

with the first word written last, so that a reader sees an entry whole or not at all.
"""

from __future__ import annotations

import json
import math
import mmap
import os
from collections.abc import Iterator, Mapping
from typing import Final, Protocol

#: A family's name, and the values of its labels.
Series = tuple[str, tuple[str, ...]]

#: Bytes of a shared slate, taken from the system only as they are written: room for some hundred providers.
SIZE: Final = 1 << 20
_WORD: Final = 8
_HEAD: Final = 1  # cells before the first entry: the process that writes
_ENTRY: Final = 3  # cells before an entry's name


class Cells(Protocol):
    """Some numbers that belong together: a list, or a piece of shared memory."""

    def __getitem__(self, index: int) -> float:
        """Read one."""

    def __setitem__(self, index: int, value: float) -> None:
        """Write one."""

    def __iter__(self) -> Iterator[float]:
        """Read all."""


class Slate:
    """The figures of one process, in its own memory.

    Attributes:
        number: of the worker, from 0; no two living workers of a server have the same.
        shared: whether other processes read it.
        lasting: the figures that outlive the process: what it has counted.
        momentary: those that are of no meaning without it, such as the length of a queue; NaN where there is none.
    """

    shared = False

    def __init__(self, number: int = 0) -> None:
        """Begin with nothing."""
        self.number = number
        self.lasting: dict[Series, Cells] = {}
        self.momentary: dict[Series, Cells] = {}

    def cells(self, series: Series, size: int = 1, *, lasting: bool = True) -> Cells:
        """The cells of one series, made where there are none yet: of zeros where they last, else of NaN."""
        known = self.lasting if lasting else self.momentary
        found = known.get(series)
        if found is None:
            found = known[series] = self._make(series, size, lasting=lasting)
        return found

    @property
    def process(self) -> int | None:
        """The process that writes here; None where it has ended."""
        return os.getpid()

    def everyone(self) -> Iterator[Slate]:
        """The slates of all workers of this server, this one among them."""
        yield self

    def _make(self, series: Series, size: int, *, lasting: bool) -> Cells:
        return [0.0 if lasting else math.nan] * size


class SharedSlate(Slate):
    """A slate that all workers can read. Its worker calls `take` before it writes."""

    shared = True

    def __init__(self, number: int, memory: memoryview[int], all_of_them: Mapping[int, SharedSlate]) -> None:
        """Take `SIZE` bytes of shared memory, all zero, or as another process has left them."""
        super().__init__(number)
        self._words = memory.cast("q")
        self._values = memory.cast("d")
        self._bytes = memory
        self._end = _HEAD
        self._all = all_of_them

    @property
    def process(self) -> int | None:
        """The process that writes here; None where it has ended, or none has ever begun."""
        pid = self._words[0]
        try:
            if pid:
                os.kill(pid, 0)
        except ProcessLookupError:
            return None
        except PermissionError:
            pass  # it is somebody else's, who was given the number of one that has ended: not worth more
        return pid or None

    def take(self) -> None:
        """Go on where the last worker of this number has left off; its momentary figures are gone with it."""
        self.read()
        for cells in self.momentary.values():
            for index, _ in enumerate(cells):
                cells[index] = math.nan
        self._words[0] = os.getpid()

    def read(self) -> None:
        """Find the entries that its writer has added since the last time."""
        while self._end + _ENTRY < len(self._words) and (name_words := self._words[self._end]):
            size, lasting = self._words[self._end + 1], self._words[self._end + 2]
            start = self._end + _ENTRY
            family, *labels = json.loads(bytes(self._bytes[start * _WORD : (start + name_words) * _WORD]))
            known = self.lasting if lasting else self.momentary
            known[family, tuple(labels)] = self._values[start + name_words : start + name_words + size]
            self._end = start + name_words + size

    def everyone(self) -> Iterator[Slate]:
        """The slates of all workers, with everything that is on them by now."""
        for slate in self._all.values():
            if slate is not self:
                slate.read()
            yield slate

    def _make(self, series: Series, size: int, *, lasting: bool) -> Cells:
        fresh = super()._make(series, size, lasting=lasting)
        name = json.dumps([series[0], *series[1]]).encode()
        name += b" " * (-len(name) % _WORD)
        words = len(name) // _WORD
        start = self._end + _ENTRY
        end = start + words + size
        if end >= len(self._words):
            return fresh  # full: no worker but this one can show it
        self._bytes[start * _WORD : (start + words) * _WORD] = name
        cells = self._values[start + words : end]
        for index, value in enumerate(fresh):
            cells[index] = value
        self._words[self._end + 1], self._words[self._end + 2] = size, lasting
        self._words[self._end] = words
        self._end = end
        return cells


class Slates:
    """The slates of a server with several workers. Made before they are forked."""

    def __init__(self, workers: int) -> None:
        """Take shared memory for so many workers."""
        memory = memoryview(mmap.mmap(-1, workers * SIZE))
        self._all: dict[int, SharedSlate] = {}
        for number in range(workers):
            self._all[number] = SharedSlate(number, memory[number * SIZE : (number + 1) * SIZE], self._all)

    def take(self, number: int) -> SharedSlate:
        """Give the calling worker its slate; once in the life of a process."""
        slate = self._all[number]
        slate.take()
        return slate
