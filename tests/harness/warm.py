"""Programs that are loaded already: a process that has imported what they need, and forks for each use.

Tests start hundreds of programs, and nearly all of their time would go into imports. What runs is the same: `main` of
the command line, or a file of Python as `python -W error FILE`, in a process of its own with the caller's arguments,
folder, environment and standard streams.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
import traceback
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import IO

from attrs import frozen

from benchmarks.processes import Process

#: The replacement of a program on PATH: it forwards the call and exits with its status. It imports almost nothing.
_CLIENT = """\
#!/bin/sh
exec {python} -I -S -c '
import json, os, socket, sys
with socket.socket(socket.AF_UNIX) as connection:
    connection.connect("{path}")
    wanted = dict(program="{program}", argv=sys.argv[1:], cwd=os.getcwd(), env=dict(os.environ))
    socket.send_fds(connection, [b"."], [0, 1, 2])
    connection.sendall(json.dumps(wanted).encode())
    connection.shutdown(socket.SHUT_WR)
    said = b"".join(iter(lambda: connection.recv(64), b""))
sys.exit(int(said.partition(b" ")[2] or b"1"))
' "$@"
"""


class Forked(subprocess.Popen[bytes]):
    """A program that was started by fork. Its parent is another process, which sends its status."""

    def __init__(self, args: Sequence[str], connection: socket.socket) -> None:
        self.args = args
        self.stdin = self.stdout = self.stderr = None
        self._child_created = False
        self._connection = connection
        self._ended = select.poll()
        self._ended.register(connection, select.POLLIN)
        self.pid = int(b"".join(iter(lambda: connection.recv(1).strip(), b"")))
        self.returncode: int | None = None

    def poll(self) -> int | None:
        with suppress(subprocess.TimeoutExpired):
            return self.wait(0)
        return None

    def wait(self, timeout: float | None = None) -> int:
        if self.returncode is None:
            if not self._ended.poll(None if timeout is None else timeout * 1000):
                raise subprocess.TimeoutExpired(self.args, timeout or 0)
            self.returncode = int(self._connection.recv(16))
            self._connection.close()
        return self.returncode


@frozen
class Warm:
    """Where the process listens."""

    path: Path

    def put(self, folder: Path, program: str) -> None:
        """Put a program, which is `llm-proxy` or `python`, into a folder of the path."""
        folder.mkdir(exist_ok=True)
        file = folder / program
        file.write_text(_CLIENT.format(python=sys.executable, path=self.path, program=program))
        file.chmod(0o755)

    def start(self, argv: Sequence[str], cwd: Path, env: Mapping[str, str], output: IO[bytes]) -> Forked:
        """Start `llm-proxy` with these arguments, its stdout and stderr in one file."""
        wanted = {"program": "llm-proxy", "argv": argv, "cwd": str(cwd), "env": env}
        connection = socket.socket(socket.AF_UNIX)
        connection.connect(str(self.path))
        with Path(os.devnull).open("rb") as nothing:
            socket.send_fds(connection, [b"."], [nothing.fileno(), output.fileno(), output.fileno()])
        connection.sendall(json.dumps(wanted).encode())
        connection.shutdown(socket.SHUT_WR)
        return Forked(["llm-proxy", *argv], connection)


@contextmanager
def warm_programs(*modules: str) -> Iterator[Warm]:
    """Start a process that has imported these modules; it ends with the block."""
    # A short path: the name of a socket has a hundred characters at most.
    with TemporaryDirectory(prefix="warm-") as folder:
        path = Path(folder) / "warm"
        with Process.start_python("tests.harness.warm", str(path), *modules) as process:
            process.read_line(timeout=60)
            yield Warm(path)


def _serve(path: str, *modules: str) -> None:
    for name in modules:
        importlib.import_module(name)
    # What is there now is never garbage, and stays shared with the forks.
    gc.collect()
    gc.freeze()
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen(64)
        signal.signal(signal.SIGCHLD, _reap)
        sys.stdout.write("loaded\n")
        sys.stdout.flush()
        while True:
            connection, _ = listener.accept()
            if os.fork() == 0:
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                listener.close()
                _handle(connection)
            connection.close()


def _reap(*_: object) -> None:
    """Take the status of the children that have ended, and with it their CPU time."""
    with suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass


def _handle(connection: socket.socket) -> None:
    """Run one program, tell its process id and its status, and end."""
    _, streams, _, _ = socket.recv_fds(connection, 1, 3)
    wanted = json.loads(b"".join(iter(lambda: connection.recv(65536), b"")))
    child = os.fork()
    if child == 0:
        connection.close()
        for number, stream in enumerate(streams):
            os.dup2(stream, number)
            os.close(stream)
        os._exit(_run(wanted["program"], wanted["argv"], wanted["cwd"], wanted["env"]))
    for stream in streams:
        os.close(stream)
    connection.sendall(f"{child} ".encode())
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    with suppress(BrokenPipeError):
        connection.sendall(str(status).encode())
    os._exit(0)


def _run(program: str, argv: list[str], cwd: str, env: dict[str, str]) -> int:
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(env)
    status: object = 0
    try:
        if program == "python":
            warnings.simplefilter("error")
            sys.argv = argv
            runpy.run_path(argv[0], run_name="__main__")
        else:
            sys.argv = [program, *argv]
            importlib.import_module("llm_proxy.cli").main()
    except SystemExit as end:
        status = end.code
    except BaseException:  # noqa: BLE001 - whatever it is, it ends this process alone
        traceback.print_exc()
        status = 1
    sys.stdout.flush()
    sys.stderr.flush()
    if isinstance(status, str):
        sys.stderr.write(f"{status}\n")
    return status if isinstance(status, int) else int(status is not None)


if __name__ == "__main__":
    _serve(*sys.argv[1:])
