"""What the upstream remembers: one entry per request, counts, and a log file that is ahead of every answer."""

from __future__ import annotations

import os
import time
from collections import Counter, deque
from hashlib import sha256
from pathlib import Path
from typing import Any

import msgspec
import trio
from attrs import define, field, frozen

Headers = tuple[tuple[bytes, bytes], ...]


@define
class Entry:
    """One request. Times are seconds since the epoch, so that they compare between processes.

    `closed_early_at` is when the client was seen to have left before its answer was complete; `ended` is None while
    the request is being answered, and `status` None when no head was sent.
    """

    number: int
    connection: int
    method: str
    target: str
    headers: Headers
    body_length: int
    body_sha256: bytes
    started: float
    ended: float | None = None
    status: int | None = None
    closed_early_at: float | None = None

    def to_json(self) -> dict[str, Any]:
        """Return the entry as `/__requests` and the log show it."""
        return {
            "number": self.number,
            "connection": self.connection,
            "method": self.method,
            "target": self.target,
            "headers": [[name.decode("latin-1"), value.decode("latin-1")] for name, value in self.headers],
            "body_length": self.body_length,
            "body_sha256": self.body_sha256.hex(),
            "started": self.started,
            "ended": self.ended,
            "status": self.status,
            "closed_early_at": self.closed_early_at,
        }


@frozen
class Counts:
    """The counts at one moment.

    Attributes:
        requests: requests that were read completely, since the start or the last reset.
        answered: those whose answer was sent completely.
        closed_early: those whose client left before.
        broken: bytes that were no HTTP request, or connections that broke within one.
        in_flight, in_flight_peak: requests being answered, now and at most.
        connections_accepted, connections_open: client connections; those of control requests are left out.
        statuses: answers by status.
    """

    requests: int
    answered: int
    closed_early: int
    broken: int
    in_flight: int
    in_flight_peak: int
    connections_accepted: int
    connections_open: int
    statuses: dict[int, int]


@define
class Journal:
    """Counts every request and keeps the last `keep` of them; with `log`, writes each down before it is answered."""

    keep: int = 20_000
    log: Path | None = None
    requests: int = field(default=0, init=False)
    answered: int = field(default=0, init=False)
    closed_early: int = field(default=0, init=False)
    broken: int = field(default=0, init=False)
    in_flight: int = field(default=0, init=False)
    in_flight_peak: int = field(default=0, init=False)
    connections_accepted: int = field(default=0, init=False)
    connections_open: int = field(default=0, init=False)
    statuses: Counter[int] = field(factory=Counter, init=False)
    _entries: deque[Entry] = field(init=False, repr=False)
    _log: int | None = field(default=None, init=False, repr=False)
    _gate: trio.Event | None = field(default=None, init=False, repr=False)

    def __attrs_post_init__(self) -> None:
        """Open the log for appending."""
        self._entries = deque(maxlen=self.keep)
        if self.log is not None:
            self._log = os.open(self.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)

    def begin(self, connection: int, method: str, target: bytes, headers: Headers, body: bytes) -> Entry:
        """Count a request, write it to the log with one write(), and return its entry."""
        self.requests += 1
        self.in_flight += 1
        self.in_flight_peak = max(self.in_flight_peak, self.in_flight)
        digest = sha256(body).digest() if self.keep or self._log is not None else b""
        entry = Entry(
            self.requests, connection, method, target.decode("latin-1"), headers, len(body), digest, time.time()
        )
        self._entries.append(entry)
        if self._log is not None:
            os.write(self._log, msgspec.json.encode(entry.to_json()) + b"\n")
        return entry

    def end(self, entry: Entry, status: int | None, *, complete: bool) -> None:
        """Note how an answer ended; `complete` False means that the client or the script broke it off."""
        entry.ended = time.time()
        entry.status = status
        self.in_flight -= 1
        if complete:
            self.answered += 1
        if status is not None:
            self.statuses[status] += 1

    def left(self, entry: Entry) -> None:
        """Note that the client left before its answer was complete."""
        entry.closed_early_at = time.time()
        self.closed_early += 1

    def entries(self, since: int = 0) -> list[dict[str, Any]]:
        """Return the kept entries with numbers above `since`, oldest first."""
        return [entry.to_json() for entry in self._entries if entry.number > since]

    def counts(self) -> Counts:
        """Return the counts now."""
        return Counts(
            self.requests,
            self.answered,
            self.closed_early,
            self.broken,
            self.in_flight,
            self.in_flight_peak,
            self.connections_accepted,
            self.connections_open,
            dict(self.statuses),
        )

    def reset(self) -> None:
        """Forget the past; what is going on (requests in flight, connections) stays counted."""
        self.requests = self.answered = self.closed_early = self.broken = 0
        self.connections_accepted = self.connections_open
        self.in_flight_peak = self.in_flight
        self.statuses.clear()
        self._entries.clear()

    def hold(self) -> None:
        """Let no answer begin until `release`; requests are read, counted and logged meanwhile."""
        if self._gate is None:
            self._gate = trio.Event()

    def release(self) -> None:
        """Let the held answers go."""
        if self._gate is not None:
            self._gate.set()
            self._gate = None

    @property
    def held(self) -> trio.Event | None:
        """The event to wait for before answering, or None."""
        return self._gate
