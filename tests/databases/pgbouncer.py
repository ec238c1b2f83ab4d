"""A PgBouncer in transaction mode, in front of the PostgreSQL server of the tests."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from attrs import evolve

from benchmarks.ports import free_port
from db.database import opened
from db.dsn.target import Target
from db.errors import Unavailable
from db.options import Options

#: Where packages put it when it is not on the PATH.
_FOLDERS = "/usr/sbin:/usr/local/sbin:/opt/homebrew/bin"
_READY_SECONDS = 30.0
_STOP_SECONDS = 30.0

ADVICE = "no pgbouncer: install the package pgbouncer (Homebrew: brew install pgbouncer)"


def find_pgbouncer() -> str | None:
    """The program, or None."""
    return shutil.which("pgbouncer") or shutil.which("pgbouncer", path=_FOLDERS)


@contextmanager
def pgbouncer(program: str, target: Target, *, sessions: int) -> Iterator[Target]:
    """Every database of a server through a PgBouncer that has a few sessions for all clients of a database.

    Args:
        program: its path.
        target: a database of the server, for the address and the login.
        sessions: connections to the server per database.
    """
    port = free_port()
    with TemporaryDirectory(prefix="llm-proxy-pgbouncer-") as name:
        folder = Path(name)
        users, configuration = folder / "users.txt", folder / "pgbouncer.ini"
        users.write_text(f'"{target.user}" "{target.password}"\n')
        configuration.write_text(
            "[databases]\n"
            f"* = host={target.host} port={target.port}\n"
            "[pgbouncer]\n"
            "listen_addr = 127.0.0.1\n"
            f"listen_port = {port}\n"
            "unix_socket_dir =\n"
            "auth_type = trust\n"
            f"auth_file = {users}\n"
            "pool_mode = transaction\n"
            f"default_pool_size = {sessions}\n"
            "max_client_conn = 100\n"
        )
        folder.chmod(0o755)
        process = subprocess.Popen(
            [program, "-q", str(configuration)],
            user="nobody" if os.geteuid() == 0 else None,  # it refuses to run as root
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )
        try:
            bounced = evolve(target, host="127.0.0.1", port=port)
            _wait_for(process, bounced)
            yield bounced
        finally:
            process.terminate()
            try:
                process.communicate(timeout=_STOP_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.communicate()


def _wait_for(process: subprocess.Popen[bytes], target: Target) -> None:
    deadline = time.monotonic() + _READY_SECONDS
    while True:
        if process.poll() is not None:
            raise RuntimeError(f"pgbouncer ended: {process.communicate()[1].decode()}")
        try:
            with opened(target, Options()) as database:
                database.read_now(lambda _: None)
        except Unavailable as error:
            if time.monotonic() > deadline:
                raise RuntimeError(f"pgbouncer did not answer in {_READY_SECONDS:.0f} s: {error}") from error
            time.sleep(0.05)
        else:
            return
