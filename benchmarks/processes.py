"""Handles of the processes that benchmarks and tests start. All methods block; trio tests call them in a thread."""

from __future__ import annotations

import http.client
import os
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

import msgspec
from attrs import define, field, frozen

ROOT = Path(__file__).resolve().parent.parent
_TICK = os.sysconf("SC_CLK_TCK")
_PAGE = os.sysconf("SC_PAGESIZE")
#: The state of a listening socket in /proc/net/tcp.
_LISTENS = "0A"


class ProcessFailed(Exception):
    """A process ended, or printed nothing, before the expected output."""


@frozen
class _Stat:
    """The part of /proc/PID/stat that matters here (proc_pid_stat(5)); CPU times are in ticks."""

    parent: int
    own: int
    reaped: int
    resident_pages: int


def _stat(pid: int) -> _Stat | None:
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    # The name in parentheses may hold anything, spaces and parentheses too.
    fields = text.rpartition(")")[2].split()
    return _Stat(int(fields[1]), int(fields[11]) + int(fields[12]), int(fields[13]) + int(fields[14]), int(fields[21]))


def family(pid: int) -> list[int]:
    """Return a process's id and those of its living descendants; only with /proc."""
    parents = {}
    if not Path("/proc/self").exists():
        return [pid]
    for entry in os.listdir("/proc"):  # noqa: PTH208 - a name is all that is needed
        if entry.isdigit() and (stat := _stat(int(entry))) is not None:
            parents[int(entry)] = stat.parent
    found = [pid]
    for member in found:
        found += [child for child, parent in parents.items() if parent == member]
    return found


def cpu_seconds(pid: int) -> float:
    """Return the CPU time of a process with its threads and descendants, in seconds (steps of a tick, 10 ms)."""
    stats = [stat for member in family(pid) if (stat := _stat(member)) is not None]
    return sum(stat.own + stat.reaped for stat in stats) / _TICK


def listener(port: int) -> int:
    """Return the id of the process that listens on a TCP port of this machine (proc(5), /proc/net/tcp).

    Raises:
        ProcessFailed: there is none, or we may not inspect it.
    """
    sockets = set()
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            local, _, state, *fields = line.split()[1:]
            if state == _LISTENS and int(local.rpartition(":")[2], 16) == port:
                sockets.add(f"socket:[{fields[5]}]")
    for entry in os.listdir("/proc"):  # noqa: PTH208 - a name is all that is needed
        if entry.isdigit() and not sockets.isdisjoint(_open_targets(int(entry))):
            return int(entry)
    raise ProcessFailed(f"no process of ours listens on port {port}")


def _open_targets(pid: int) -> Iterator[str]:
    """The targets of the file descriptors of a process."""
    try:
        for name in os.listdir(f"/proc/{pid}/fd"):  # noqa: PTH208 - a name is all that is needed
            with suppress(FileNotFoundError):
                yield str(Path(f"/proc/{pid}/fd/{name}").readlink())
    except (FileNotFoundError, PermissionError, ProcessLookupError):
        return


def resident_bytes(pid: int) -> int:
    """Return the resident memory of a process and its descendants, in bytes; pages they share count more than once."""
    stats = [stat for member in family(pid) if (stat := _stat(member)) is not None]
    return sum(stat.resident_pages for stat in stats) * _PAGE


class Stoppable:
    """Something that is stopped when its `with` block ends."""

    def stop(self) -> object:
        """Stop it."""
        raise NotImplementedError

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.stop()


@define
class Process(Stoppable):
    """A process that was started here; leaving the `with` block stops it. Its stdout is read line by line."""

    popen: subprocess.Popen[bytes]
    _unread: bytearray = field(factory=bytearray, repr=False)

    @classmethod
    def start(
        cls,
        arguments: Sequence[str | os.PathLike[str]],
        *,
        env: Mapping[str, str] | None = None,
        cwd: Path = ROOT,
        stderr: Path | None = None,
    ) -> Self:
        """Start a program; `env` is added to this process's environment, `stderr` names a file to append to."""
        environment = {**os.environ, "PYTHONUNBUFFERED": "1", **(env or {})}
        with (stderr or Path(os.devnull)).open("ab") as errors:
            popen = subprocess.Popen(  # noqa: S603 - the caller names the program
                arguments,
                cwd=cwd,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=errors,
            )
        return cls(popen)

    @classmethod
    def start_python(cls, module: str, *arguments: str, env: Mapping[str, str] | None = None, **more: Any) -> Self:
        """Start `python -m module` with this interpreter."""
        return cls.start([sys.executable, "-m", module, *arguments], env=env, **more)

    @property
    def pid(self) -> int:
        """The id of the process."""
        return self.popen.pid

    def read_line(self, timeout: float = 20.0) -> bytes:
        """Return the next line of stdout; raises ProcessFailed when none comes within `timeout` seconds."""
        stream = self.popen.stdout
        assert stream is not None  # noqa: S101 - always piped
        deadline = time.monotonic() + timeout
        with selectors.DefaultSelector() as selector:
            selector.register(stream, selectors.EVENT_READ)
            while b"\n" not in self._unread:
                if not selector.select(max(0.0, deadline - time.monotonic())):
                    raise ProcessFailed(f"{self._name} said nothing for {timeout:g} s")
                data = os.read(stream.fileno(), 65536)
                if not data:
                    raise ProcessFailed(f"{self._name} ended with status {self.popen.wait()}")
                self._unread += data
        line, _, rest = bytes(self._unread).partition(b"\n")
        self._unread = bytearray(rest)
        return line

    def read_json(self, timeout: float = 20.0) -> Any:
        """Return the next line of stdout, as JSON."""
        return msgspec.json.decode(self.read_line(timeout))

    @property
    def running(self) -> bool:
        """Whether the process has not ended."""
        return self.popen.poll() is None

    def cpu_seconds(self) -> float:
        """Return its CPU time so far, descendants included, in seconds."""
        return cpu_seconds(self.pid)

    def resident_bytes(self) -> int:
        """Return its resident memory, descendants included, in bytes."""
        return resident_bytes(self.pid)

    def open_files(self) -> int:
        """Return how many file descriptors the process has open (its own, not its descendants')."""
        return len(os.listdir(f"/proc/{self.pid}/fd"))  # noqa: PTH208 - a count is all that is needed

    def signal(self, number: signal.Signals) -> None:
        """Send it a signal."""
        self.popen.send_signal(number)

    def kill(self) -> None:
        """End it and its descendants with SIGKILL, and wait for its end."""
        if self.running:
            for member in reversed(family(self.pid)):
                try:
                    os.kill(member, signal.SIGKILL)
                except ProcessLookupError:
                    continue
        self._reap()

    def stop(self, timeout: float = 10.0) -> int:
        """Ask it to end (SIGTERM) and return its exit status; killed after `timeout` seconds (then -9)."""
        if self.running:
            self.popen.terminate()
            try:
                self.popen.wait(timeout)
            except subprocess.TimeoutExpired:
                self.kill()
        return self._reap()

    def wait(self, timeout: float = 60.0) -> int:
        """Wait for its end and return its exit status; raises ProcessFailed after `timeout` seconds."""
        try:
            self.popen.wait(timeout)
        except subprocess.TimeoutExpired:
            raise ProcessFailed(f"{self._name} is still running after {timeout:g} s") from None
        return self._reap()

    def _reap(self) -> int:
        status = self.popen.wait()
        if self.popen.stdout is not None:
            self.popen.stdout.close()
        return status

    @property
    def _name(self) -> str:
        arguments = self.popen.args
        return " ".join(map(str, arguments)) if isinstance(arguments, (list, tuple)) else str(arguments)


@define
class Upstream(Stoppable):
    """The scripted upstream as a separate process, with its control endpoints as methods."""

    process: Process
    host: str
    port: int

    @classmethod
    def start(cls, *options: str, env: Mapping[str, str] | None = None, stderr: Path | None = None) -> Self:
        """Start it with options of `python -m benchmarks.upstream`, and wait until it listens."""
        process = Process.start_python("benchmarks.upstream", *options, env=env, stderr=stderr)
        try:
            address = process.read_json()
        except ProcessFailed:
            process.kill()
            raise
        return cls(process, address["host"], address["port"])

    @property
    def url(self) -> str:
        """Its origin, without a trailing slash."""
        return f"http://{self.host}:{self.port}"

    def counts(self) -> dict[str, Any]:
        """Return the counts (see `benchmarks.upstream.journal.Counts`)."""
        counts: dict[str, Any] = self._call("GET", "/__counts")
        return counts

    def requests(self, since: int = 0) -> list[dict[str, Any]]:
        """Return the requests that it remembers, oldest first."""
        found: list[dict[str, Any]] = self._call("GET", f"/__requests?since={since}")
        return found

    def reset(self) -> None:
        """Reset counts and requests."""
        self._call("POST", "/__reset")

    def hold(self) -> None:
        """Start no answer until `release`."""
        self._call("POST", "/__hold")

    def release(self) -> None:
        """Start the held answers."""
        self._call("POST", "/__release")

    def wait(self, timeout: float = 10.0, **counts: int) -> dict[str, Any]:
        """Wait until each named count is reached (zero: fallen to); raises TimeoutError with the counts."""
        query = "&".join(f"{name}={number}" for name, number in counts.items())
        reached: dict[str, Any] = self._call("GET", f"/__wait?timeout={timeout}&{query}", timeout + 5)
        return reached

    def _call(self, method: str, target: str, timeout: float = 10.0) -> Any:
        connection = http.client.HTTPConnection(self.host, self.port, timeout=timeout)
        try:
            connection.request(method, target)
            response = connection.getresponse()
            body = response.read()
        finally:
            connection.close()
        if response.status == http.HTTPStatus.REQUEST_TIMEOUT:
            raise TimeoutError(f"not reached: {target}; the counts are {body.decode()}")
        if response.status != http.HTTPStatus.OK:
            raise ValueError(f"{target}: {body.decode()}")
        return msgspec.json.decode(body)

    def stop(self) -> None:
        """End the process."""
        self.process.stop()
