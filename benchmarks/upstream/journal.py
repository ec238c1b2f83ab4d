"""What the upstream records: one entry per request, counts, and a log file that is written before each answer."""

from __future__ import annotations

import os
import time
from collections import Counter, deque
from hashlib import sha256
from pathlib import Path
from typing import Any

import msgspec
import trio
from attrs import define, field

Headers = tuple[tuple[bytes, bytes], ...]


@define
class Entry:
    """One request. Times are seconds since the epoch, so that they compare between processes.

    `closed_early_at` is when the client disconnected before its answer was complete; `ended` is None while the request
    is being answered, and `status` is None if no head was sent.
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


@define
class Counts:
    """The counts since the start or the last reset.

    Attributes:
        requests: requests that were read completely.
        answered: those whose answer was sent completely.
        closed_early: those whose client disconnected before.
        broken: bytes that were no HTTP request, or connections that broke within one.
        in_flight, in_flight_peak: requests being answered, now and at most.
        connections_accepted, connections_open: client connections, without those of control requests.
        statuses: answers by status.
    """

    requests: int = 0
    answered: int = 0
    closed_early: int = 0
    broken: int = 0
    in_flight: int = 0
    in_flight_peak: int = 0
    connections_accepted: int = 0
    connections_open: int = 0
    statuses: Counter[int] = field(factory=Counter)


@define
class Journal:
    """Counts every request and keeps the last `keep` of them; with `log`, writes each one before it is answered.

    `held` is the event to wait for before answering, or None.
    """

    keep: int = 20_000
    log: Path | None = None
    counts: Counts = field(factory=Counts, init=False)
    held: trio.Event | None = field(default=None, init=False, repr=False)
    _entries: deque[Entry] = field(init=False, repr=False)
    _log: int | None = field(default=None, init=False, repr=False)

    def __attrs_post_init__(self) -> None:
        """Open the log for appending."""
        self._entries = deque(maxlen=self.keep)
        if self.log is not None:
            self._log = os.open(self.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)

    def begin(self, connection: int, method: str, target: bytes, headers: Headers, body: bytes) -> Entry:
        """Count a request, write it to the log with one write(), and return its entry."""
        counts = self.counts
        counts.requests += 1
        counts.in_flight += 1
        counts.in_flight_peak = max(counts.in_flight_peak, counts.in_flight)
        digest = sha256(body).digest() if self.keep or self._log is not None else b""
        entry = Entry(
            counts.requests, connection, method, target.decode("latin-1"), headers, len(body), digest, time.time()
        )
        self._entries.append(entry)
        if self._log is not None:
            os.write(self._log, msgspec.json.encode(entry.to_json()) + b"\n")
        return entry

    def end(self, entry: Entry, status: int | None, *, complete: bool) -> None:
        """Record the end of an answer; `complete` is False if the client or the script broke it off."""
        entry.ended = time.time()
        entry.status = status
        self.counts.in_flight -= 1
        if complete:
            self.counts.answered += 1
        if status is not None:
            self.counts.statuses[status] += 1

    def disconnected(self, entry: Entry) -> None:
        """Record that the client disconnected before its answer was complete."""
        entry.closed_early_at = time.time()
        self.counts.closed_early += 1

    def entries(self, since: int = 0) -> list[dict[str, Any]]:
        """Return the kept entries with numbers above `since`, oldest first."""
        return [entry.to_json() for entry in self._entries if entry.number > since]

    def reset(self) -> None:
        """Forget the past; running requests and open connections stay counted."""
        running, open_ = self.counts.in_flight, self.counts.connections_open
        self.counts = Counts(
            in_flight=running, in_flight_peak=running, connections_accepted=open_, connections_open=open_
        )
        self._entries.clear()

    def hold(self) -> None:
        """Start no answer until `release`; requests are still read, counted and logged."""
        if self.held is None:
            self.held = trio.Event()

    def release(self) -> None:
        """Start the held answers."""
        if self.held is not None:
            self.held.set()
            self.held = None
