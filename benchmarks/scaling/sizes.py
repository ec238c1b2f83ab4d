"""What fleets take, by the model, as tables: rows for their sizes, a column for each database."""

from __future__ import annotations

import math
from collections.abc import Mapping

from benchmarks.findings import Table, write_number
from benchmarks.scaling.model import Fleet, HotToken, Parameters

#: Replicas, and requests per second of all together.
_FLEETS = ((1, 100), (2, 100), (2, 1000), (10, 100), (10, 1000), (10, 5000), (100, 1000), (100, 5000), (100, 20_000))
#: Replicas that all serve one token, and requests per second on it.
_ON_ONE_TOKEN = ((2, 100), (10, 100), (10, 500), (100, 100), (100, 500))


def fleets(found: Mapping[str, Parameters]) -> Table:
    """Return the cores that are busy, of the proxies and of the database, by databases' names."""
    rows = []
    for replicas, rate in _FLEETS:
        sized = [Fleet.sized(parameters, replicas, rate) for parameters in found.values()]
        cores = [f"{write_number(one.proxy_cores)} + {write_number(one.database_cores)}" for one in sized]
        rows.append((f"{replicas:,}", f"{rate:,}", *cores))
    columns = ("replicas", "requests/s of all", *(f"cores of proxies + {name}" for name in found))
    return Table(columns, rows)


def hot_tokens(found: Mapping[str, Parameters]) -> Table:
    """Return how long a transaction takes that waits for its turn at the token's row, by databases' names."""
    rows = []
    for replicas, rate in _ON_ONE_TOKEN:
        sized = [HotToken.sized(parameters, replicas, rate) for parameters in found.values()]
        times = ["cannot be had" if math.isinf(one.n) else f"{write_number(one.seconds * 1000)} ms" for one in sized]
        rows.append((f"{replicas:,}", f"{rate:,}", *times))
    columns = ("replicas", "requests/s on the token", *(f"{name}, a transaction" for name in found))
    return Table(columns, rows)
