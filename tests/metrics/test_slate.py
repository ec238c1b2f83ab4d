from __future__ import annotations

import math
import os
import random

import pytest

from llm_proxy.metrics import slate as slate_module
from llm_proxy.metrics.slate import SharedSlate, Slate, Slates


def in_a_child(slates: Slates, number: int, *figures: tuple[str, bool, float]) -> None:
    """Write figures from another process, which then ends without a word."""
    pid = os.fork()
    if pid == 0:
        slate = slates.take(number)
        for name, lasting, value in figures:
            slate.cells((name, ()), lasting=lasting)[0] = value
        os._exit(0)
    os.waitpid(pid, 0)


def seen(slate: Slate, of: int) -> dict[str, list[float]]:
    (other,) = [one for one in slate.everyone() if one.number == of]
    return {name: list(cells) for (name, _), cells in (*other.lasting.items(), *other.momentary.items())}


@pytest.mark.parametrize("slate", [Slate(), Slates(1).take(0)], ids=["own memory", "shared memory"])
def test_cells_are_made_once(slate: Slate) -> None:
    cells = slate.cells(("a", ("x",)), 3)
    assert list(cells) == [0, 0, 0]
    cells[1] += 2
    assert list(slate.cells(("a", ("x",)), 3)) == [0, 2, 0]
    assert list(slate.cells(("a", ("y",)), 3)) == [0, 0, 0]
    assert math.isnan(slate.cells(("b", ()), lasting=False)[0])


def test_each_sees_what_the_others_write() -> None:
    slates = Slates(2)
    slate = slates.take(1)
    in_a_child(slates, 0, ("counted", True, 3), ("waiting", False, 4))
    assert seen(slate, 0) == {"counted": [3], "waiting": [4]}
    in_a_child(slates, 0, ("later", True, 5))
    assert seen(slate, 0)["later"] == [5]
    assert seen(slate, 1) == {}


def test_the_next_worker_goes_on_with_what_was_counted_and_with_nothing_else() -> None:
    slates = Slates(2)
    in_a_child(slates, 0, ("counted", True, 3), ("waiting", False, 4), ("gone", True, 1))
    slate = slates.take(0)
    assert slate.cells(("counted", ()))[0] == 3
    assert math.isnan(slate.cells(("waiting", ()), lasting=False)[0])
    slate.cells(("counted", ()))[0] += 1
    assert seen(slates.take(1), 0)["counted"] == [4]
    assert seen(slate, 0)["gone"] == [1]


def test_who_has_ended_is_known() -> None:
    slates = Slates(2)
    slate = slates.take(1)
    in_a_child(slates, 0)
    assert {one.number: one.process for one in slate.everyone()} == {0: None, 1: os.getpid()}


def test_a_full_slate_goes_on_in_its_own_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slate_module, "SIZE", 1024)
    slates = Slates(2)
    slate = slates.take(0)
    for number in range(100):
        slate.cells(("counted", (str(number),)))[0] = 1
    assert sum(cells[0] for cells in slate.lasting.values()) == 100
    in_a_child(slates, 1, *((f"counted {number}", True, 1) for number in range(100)))
    assert 10 < len(seen(slates.take(0), 1)) < 100


def test_whatever_is_written_is_read_back() -> None:
    """Names of any length, sizes of any number."""
    chance = random.Random(4)
    slates = Slates(2)
    slate = slates.take(0)
    for number in range(200):
        cells = slate.cells(("é" * chance.randrange(9), (str(number), "x" * chance.randrange(20))), 1 + number % 20)
        for index, _ in enumerate(cells):
            cells[index] = chance.random()
    other = next(iter(slates.take(1).everyone()))
    assert isinstance(other, SharedSlate)
    assert {series: list(cells) for series, cells in other.lasting.items()} == {
        series: list(cells) for series, cells in slate.lasting.items()
    }
    assert len(other.lasting) == 200
