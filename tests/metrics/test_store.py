from __future__ import annotations

import math
import os
import random

import pytest

from llm_proxy.metrics import store as store_module
from llm_proxy.metrics.store import MetricStore, MetricStores, SharedMetricStore


def in_a_child(stores: MetricStores, number: int, *values: tuple[str, bool, float]) -> None:
    """Write values from another process, which then ends."""
    pid = os.fork()
    if pid == 0:
        store = stores.take(number)
        for name, counter, value in values:
            store.cells((name, ()), counter=counter)[0] = value
        os._exit(0)
    os.waitpid(pid, 0)


def seen(store: MetricStore, of: int) -> dict[str, list[float]]:
    (other,) = [one for one in store.everyone() if one.number == of]
    return {name: list(cells) for (name, _), cells in (*other.counters.items(), *other.gauges.items())}


@pytest.mark.parametrize("store", [MetricStore(), MetricStores(1).take(0)], ids=["own memory", "shared memory"])
def test_cells_are_made_once(store: MetricStore) -> None:
    cells = store.cells(("a", ("x",)), 3)
    assert list(cells) == [0, 0, 0]
    cells[1] += 2
    assert list(store.cells(("a", ("x",)), 3)) == [0, 2, 0]
    assert list(store.cells(("a", ("y",)), 3)) == [0, 0, 0]
    assert math.isnan(store.cells(("b", ()), counter=False)[0])


def test_each_sees_what_the_others_write() -> None:
    stores = MetricStores(2)
    store = stores.take(1)
    in_a_child(stores, 0, ("counted", True, 3), ("waiting", False, 4))
    assert seen(store, 0) == {"counted": [3], "waiting": [4]}
    in_a_child(stores, 0, ("later", True, 5))
    assert seen(store, 0)["later"] == [5]
    assert seen(store, 1) == {}


def test_the_next_worker_goes_on_with_what_was_counted_and_with_nothing_else() -> None:
    stores = MetricStores(2)
    in_a_child(stores, 0, ("counted", True, 3), ("waiting", False, 4), ("gone", True, 1))
    store = stores.take(0)
    assert store.cells(("counted", ()))[0] == 3
    assert math.isnan(store.cells(("waiting", ()), counter=False)[0])
    store.cells(("counted", ()))[0] += 1
    assert seen(stores.take(1), 0)["counted"] == [4]
    assert seen(store, 0)["gone"] == [1]


def test_who_has_ended_is_known() -> None:
    stores = MetricStores(2)
    store = stores.take(1)
    in_a_child(stores, 0)
    assert {one.number: one.process for one in store.everyone()} == {0: None, 1: os.getpid()}


def test_a_full_store_continues_in_its_own_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_module, "SIZE", 1024)
    stores = MetricStores(2)
    store = stores.take(0)
    for number in range(100):
        store.cells(("counted", (str(number),)))[0] = 1
    assert sum(cells[0] for cells in store.counters.values()) == 100
    in_a_child(stores, 1, *((f"counted {number}", True, 1) for number in range(100)))
    assert 10 < len(seen(stores.take(0), 1)) < 100


def test_whatever_is_written_is_read_back() -> None:
    """Names of any length, sizes of any number."""
    chance = random.Random(4)
    stores = MetricStores(2)
    store = stores.take(0)
    for number in range(200):
        cells = store.cells(("é" * chance.randrange(9), (str(number), "x" * chance.randrange(20))), 1 + number % 20)
        for index, _ in enumerate(cells):
            cells[index] = chance.random()
    other = next(iter(stores.take(1).everyone()))
    assert isinstance(other, SharedMetricStore)
    assert {series: list(cells) for series, cells in other.counters.items()} == {
        series: list(cells) for series, cells in store.counters.items()
    }
    assert len(other.counters) == 200
