"""What is left of requests once they are over: their rows, and whatever the server still holds."""

from __future__ import annotations

import re
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from attrs import frozen

if TYPE_CHECKING:
    from benchmarks.processes import Upstream
    from tests.harness.server import Server

T = TypeVar("T")

#: Open files that may come and go by themselves, such as the connection that asks for the metrics.
SLACK = 2
_LOOK_EVERY = 0.05


@frozen
class Holdings:
    """What a server holds at one moment.

    Attributes:
        files: open files, without the connections to the upstream that are kept for the next requests, and without the
            SQLite files, whose pool of connections grows when requests arrive at the same time.
        connections: those to the upstream that carry a request.
        clients: requests that are with the upstream, as the proxy sees it.
        upstream: the same, as the upstream sees it.
        waiting: requests that wait for their admission.
        unsettled: settlements that are not written yet.
        database: connections to the database that are in use.
    """

    files: int
    connections: int
    clients: int
    upstream: int
    waiting: int
    unsettled: int
    database: int

    @property
    def busy(self) -> bool:
        """Whether any request is not over."""
        return bool(
            self.connections or self.clients or self.upstream or self.waiting or self.unsettled or self.database
        )


def metric(server: Server, name: str, label: str = "") -> int:
    """One of the server's metrics; the sum over its labels, or over those with this one."""
    text = str(server.call("GET", "/metrics").content)
    found = re.findall(rf"^{name}(?:{{[^}}]*{label}[^}}]*}})? ([0-9.e+]+)$", text, re.MULTILINE)
    assert found, f"there is no metric {name}"
    return round(sum(map(float, found)))


def holdings(server: Server, upstream: Upstream) -> Holdings:
    """What the server holds now."""
    counts = upstream.counts()
    return Holdings(
        files=server.process.open_files() - counts["connections_open"] - sqlite_files(server),
        connections=metric(server, "llm_proxy_upstream_connections", 'state="in_use"'),
        clients=metric(server, "llm_proxy_upstream_in_flight_requests"),
        upstream=counts["in_flight"],
        waiting=metric(server, "llm_proxy_database_waiting_requests"),
        unsettled=metric(server, "llm_proxy_database_unsettled_requests"),
        database=metric(server, "llm_proxy_database_connections", 'state="in_use"'),
    )


def sqlite_files(server: Server) -> int:
    """How many of the server's open files are its SQLite database; 0 on the other databases."""
    path, found = server.settings.get("DATABASE_PATH"), 0
    for link in Path(f"/proc/{server.pid}/fd").iterdir() if path else ():
        # It may have been closed since.
        with suppress(FileNotFoundError):
            found += str(link.readlink()).startswith(str(path))
    return found


def at_rest(server: Server, upstream: Upstream, within: float = 5.0) -> Holdings:
    """What the server holds once it has nothing to do: when two looks in a row see the same."""
    last: Holdings | None = None

    def look() -> Holdings | None:
        nonlocal last
        before, last = last, holdings(server, upstream)
        return last if last == before and not last.busy else None

    return wait_for(look, within, lambda: f"the server does not come to rest: {last}")


def assert_nothing_left(server: Server, upstream: Upstream, before: Holdings, within: float) -> None:
    """Within so many seconds no request may be on its way, and the same files must be open as before."""

    def look() -> Holdings | None:
        now = holdings(server, upstream)
        return None if now.busy or abs(now.files - before.files) > SLACK else now

    wait_for(look, within, lambda: f"{holdings(server, upstream)} is left; before: {before}")


def settled(server: Server, token_id: str, number: int, within: float = 5.0) -> list[dict[str, Any]]:
    """The rows of a token's requests, the oldest first, once there are so many of them (at most 500)."""

    def look() -> list[dict[str, Any]] | None:
        found: list[dict[str, Any]] = server.manage("GET", f"/requests?token_id={token_id}&limit=500")["data"]
        return found[::-1] if len(found) >= number else None

    return wait_for(look, within, lambda: f"there are not {number} rows of token {token_id} in the ledger")


def every_row(server: Server) -> Iterator[dict[str, Any]]:
    """All rows of the ledger, the newest first."""
    cursor: str | None = ""
    while cursor is not None:
        page = server.manage("GET", f"/requests?limit=500{cursor and f'&cursor={cursor}'}")
        yield from page["data"]
        cursor = page["next_cursor"]


def outcomes(rows: Iterable[dict[str, Any]]) -> Counter[tuple[str, int | None]]:
    """How often each outcome came with each status."""
    return Counter((row["outcome"], row["status"]) for row in rows)


def counter(server: Server, token_id: str) -> int:
    """The requests that a token has opened, by its own counter."""
    return int(server.manage("GET", f"/tokens/{token_id}")["request_count"])


def wait_for(look: Callable[[], T | None], within: float, complaint: Callable[[], str]) -> T:
    """Look until there is something to see."""
    deadline = time.monotonic() + within
    while (found := look()) is None:
        assert time.monotonic() < deadline, complaint()
        time.sleep(_LOOK_EVERY)
    return found
