"""Programs that are loaded already: a process that has imported the command line and both SDKs, and forks for each use.

A page starts dozens of programs, and nearly all of their time would go into imports. What runs is the same: `main` of
the command line, or a file of Python as `python -W error FILE`, in a process of its own with the caller's arguments,
folder, environment and standard streams.
"""

from __future__ import annotations

import importlib
import json
import os
import runpy
import signal
import socket
import sys
import traceback
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from attrs import frozen

from benchmarks.processes import Process

#: SDKs and the command line bring their parts in only when these are used.
_LOADED = (
    "anthropic.resources.messages",
    "anthropic.resources.models",
    "llm_proxy.cli.commands.ledger",
    "llm_proxy.cli.commands.manage.project",
    "llm_proxy.cli.commands.manage.token",
    "llm_proxy.cli.commands.server",
    "openai.resources.chat.completions",
    "openai.resources.models",
    "openai.resources.responses",
)
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
    status = connection.recv(16)
sys.exit(int(status or b"1"))
' "$@"
"""


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


@contextmanager
def warm_programs(folder: Path) -> Iterator[Warm]:
    """Start the process, with its socket in `folder`; it ends with the block."""
    path = folder / "warm"
    with Process.start_python("tests.docs.warm", str(path)) as process:
        process.read_line(timeout=60)
        yield Warm(path)


def _serve(path: str) -> None:
    for name in _LOADED:
        importlib.import_module(name)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen(64)
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)
        sys.stdout.write("loaded\n")
        sys.stdout.flush()
        while True:
            connection, _ = listener.accept()
            if os.fork() == 0:
                listener.close()
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                _handle(connection)
            connection.close()


def _handle(connection: socket.socket) -> None:
    """Run one program, tell its status, and end."""
    _, streams, _, _ = socket.recv_fds(connection, 1, 3)
    wanted = json.loads(b"".join(iter(lambda: connection.recv(65536), b"")))
    child = os.fork()
    if child == 0:
        connection.close()
        for number, stream in enumerate(streams):
            os.dup2(stream, number)
            os.close(stream)
        os._exit(_run(wanted["program"], wanted["argv"], wanted["cwd"], wanted["env"]))
    connection.sendall(str(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])).encode())
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
    _serve(sys.argv[1])
