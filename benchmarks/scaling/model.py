"""What limits many replicas on one database, as arithmetic on a few measured costs.

A shared transaction costs something by itself, and something for each request that it admits. So what a request costs
falls as more of them share a transaction: cost = each + fixed / n, alike for the CPU time of the proxy, for that of the
database, and for the time that a transaction takes. How many share one follows from the rate at one replica, and from
how long a transaction takes. Nothing here measures, or knows a database by its name.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from attrs import frozen

from llm_proxy.ledger.batch import MAX_BATCH
from llm_proxy.ledger.writer import SETTLEMENT_PATIENCE


@frozen
class Cost:
    """A straight line: `fixed` for a transaction, and `each` for a request in it; in µs, or in seconds."""

    fixed: float
    each: float

    @classmethod
    def fitted(cls, points: Sequence[tuple[float, float]]) -> Cost:
        """The line of least squares through pairs of requests per transaction and cost per request."""
        slope, intercept = statistics.linear_regression([1 / n for n, _ in points], [cost for _, cost in points])
        # A cost below nothing is noise of the measurement.
        return cls(max(0.0, slope), max(0.0, intercept))

    def per_request(self, n: float) -> float:
        """Return the cost of a request if `n` share a transaction."""
        return self.each + self.fixed / n

    def per_transaction(self, n: float) -> float:
        """Return the cost of a transaction that admits `n` requests."""
        return self.fixed + self.each * n


@frozen
class Parameters:
    """What was measured on one database.

    Attributes:
        proxy: CPU time of the proxy, in µs.
        database: CPU time of the database server, in µs.
        others: CPU time of the load and the provider, µs per request, on the same machine.
        seconds: duration of a transaction with one replica.
        shared: requests in a transaction over a process's connections, each of which sends one request after the other,
            if processes contend for the cores.
        busy: the part of the cores in use when nothing more gets through.
    """

    proxy: Cost
    database: Cost
    others: float
    seconds: Cost
    shared: float
    busy: float

    def sharing(self, rate: float) -> float:
        """Return how many requests share a transaction at a replica that serves `rate` requests per second.

        A lone request takes two transactions, for its admission and its settlement, unless the next one comes soon
        enough for the settlement to wait for it. At a higher rate, all share a transaction that come during the last.
        """
        met = min(1.0, rate * SETTLEMENT_PATIENCE)
        alone = 1 / (2 - met)
        return min(MAX_BATCH, max(alone, filled(rate, self.seconds)))

    def on_one_machine(self, cores: int, connections: int, processes: int) -> float:
        """Return the requests per second of processes that share a machine with the database, load and provider.

        `connections` send one request after the other, spread evenly over the processes.
        """
        n = max(1.0, self.shared * connections / processes)
        cpu_us = self.proxy.per_request(n) + self.database.per_request(n) + self.others
        return self.busy * cores * 1e6 / cpu_us

    def on_one_token(self, connections: int, processes: int) -> float:
        """Return the most requests per second of processes whose requests all have one token, as above.

        Its row is locked from a transaction's first statement to its commit, so the transactions of all processes
        take turns.
        """
        n = max(1.0, self.shared * connections / processes)
        return n / self.seconds.per_transaction(n)


def filled(rate: float, cost: Cost) -> float:
    """Return the requests in a transaction at which transactions that take turns carry a rate; endless if none do.

    It solves n = rate · (fixed + each · n).
    """
    left = 1 - rate * cost.each
    return rate * cost.fixed / left if left > 0 else float("inf")


@frozen
class Fleet:
    """What a number of replicas, each with one worker, take at a rate that is spread evenly over them and many tokens.

    Attributes:
        n: requests that share a transaction.
        proxy_cores: in use, of all replicas together.
        database_cores: in use at the database.
        commits: transactions per second.
    """

    n: float
    proxy_cores: float
    database_cores: float
    commits: float

    @classmethod
    def sized(cls, found: Parameters, replicas: int, rate: float) -> Fleet:
        """Work it out from what was measured."""
        n = found.sharing(rate / replicas)
        return cls(
            n,
            rate * found.proxy.per_request(n) / 1e6,
            rate * found.database.per_request(n) / 1e6,
            rate / n,
        )


@frozen
class HotToken:
    """What one token carries that all replicas serve: their transactions take turns at its row.

    Attributes:
        n: requests in a transaction at which the rate is reached; infinite if it cannot be reached.
        seconds: from a transaction's begin to its commit, on average, waiting for its turn included.
    """

    n: float
    seconds: float

    @classmethod
    def sized(cls, found: Parameters, replicas: int, rate: float) -> HotToken:
        """Work it out from what was measured.

        The wait is the Pollaczek-Khinchine formula for a constant service time, limited by one transaction of each
        replica.
        """
        n = max(1.0, filled(rate, found.seconds))
        turn = found.seconds.per_transaction(n)
        load = rate * found.seconds.per_transaction(1)
        longest = replicas * turn
        return cls(n, min(longest, turn * (1 + load / (2 * (1 - load)))) if load < 1 else longest)
