"""Database servers from installed programs, each in its own folder and on a free port of the loopback interface."""

from __future__ import annotations

import os
import pwd
import re
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

from attrs import define, frozen

from benchmarks.ports import free_port
from benchmarks.processes import family
from tests.databases.kinds import Kind

#: Where packages put the programs when they are not on the PATH: Debian, Homebrew on Apple silicon and on Intel.
_FOLDERS = {
    Kind.POSTGRES: (
        "/usr/lib/postgresql/*/bin",
        "/opt/homebrew/opt/postgresql*/bin",
        "/usr/local/opt/postgresql*/bin",
    ),
    Kind.MYSQL: ("/usr/sbin", "/opt/homebrew/opt/mysql*/bin", "/usr/local/opt/mysql*/bin"),
    Kind.MARIADB: ("/usr/sbin", "/opt/homebrew/opt/mariadb*/bin", "/usr/local/opt/mariadb*/bin"),
}
_SERVER = {Kind.POSTGRES: "postgres", Kind.MYSQL: "mysqld", Kind.MARIADB: "mariadbd"}

#: Options with which a commit does not wait for the disk.
_NO_FLUSH_MYSQL = ("--innodb-flush-log-at-trx-commit=2", "--innodb-doublewrite=0", "--sync-binlog=0", "--skip-log-bin")
_NO_FLUSH = {
    Kind.POSTGRES: ("-c", "fsync=off", "-c", "full_page_writes=off"),
    Kind.MYSQL: _NO_FLUSH_MYSQL,
    # Without these, each statement that defines something still waits for the disk several times.
    Kind.MARIADB: (*_NO_FLUSH_MYSQL, "--innodb-flush-method=nosync", "--debug-no-sync", "--skip-sync-frm"),
}

#: Seconds after which a server that does not stop is killed.
_STOP_SECONDS = 30


def find_program(kind: Kind) -> Path | None:
    """The newest installed server program of this kind, or None."""
    name = _SERVER[kind]
    candidates = [Path(found)] if (found := shutil.which(name)) else []
    for pattern in _FOLDERS[kind]:
        folders = Path("/").glob(pattern.removeprefix("/"))
        candidates += sorted((folder / name for folder in folders), key=_version, reverse=True)
    for candidate in candidates:
        if os.access(candidate, os.X_OK) and (kind is not Kind.MYSQL or _is_mysql(candidate)):
            # The other programs are in the folder of the real file, not of a link to it.
            return candidate.resolve()
    return None


def _version(program: Path) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\d+", str(program.parent)))


def _is_mysql(program: Path) -> bool:
    """Whether `mysqld` is MySQL: Debian's MariaDB has this name too."""
    said = subprocess.run([program, "--version"], capture_output=True, text=True, check=False, timeout=30)
    return said.returncode == 0 and "mariadb" not in said.stdout.lower()


@frozen
class _Account:
    """The account that a server runs as. The servers refuse to run as root."""

    name: str
    uid: int | None = None
    gid: int | None = None

    @classmethod
    def choose(cls, preferred: str) -> _Account:
        if os.geteuid() != 0:
            return cls(pwd.getpwuid(os.geteuid()).pw_name)
        known = {entry.pw_name: entry for entry in pwd.getpwall()}
        entry = known.get(preferred) or known["nobody"]
        return cls(entry.pw_name, entry.pw_uid, entry.pw_gid)


@define
class Instance:
    """A server process that the tests started, with its data folder. `close` stops it."""

    kind: Kind
    url: str
    _folder: Path
    command: tuple[str, ...]
    _account: _Account
    _process: subprocess.Popen[bytes] | None = None

    @property
    def log(self) -> str:
        """The last lines of its log."""
        path = self._folder / "log"
        return "\n".join(path.read_text(errors="replace").splitlines()[-20:]) if path.exists() else ""

    @property
    def running(self) -> bool:
        """Whether the process exists."""
        return self._process is not None and self._process.poll() is None

    @property
    def status(self) -> int | None:
        """The exit status of the process; None while it runs, or before it was started."""
        return None if self._process is None else self._process.poll()

    def place(self, name: str, content: bytes) -> Path:
        """Put a file that only the server may read into its data folder, or replace it; return its path."""
        path = self._folder / "data" / name
        path.write_bytes(content)
        path.chmod(0o600)
        if self._account.uid is not None and self._account.gid is not None:
            os.chown(path, self._account.uid, self._account.gid)
        return path

    def start(self) -> None:
        """Start the process. It may not answer yet."""
        with (self._folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                self.command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self._folder,
                # Ctrl-C reaches only the tests, which then stop the server.
                start_new_session=True,
                user=self._account.uid,
                group=self._account.gid,
            )

    def stop(self) -> None:
        """Stop it normally; PostgreSQL by a fast shutdown."""
        self._end(signal.SIGINT if self.kind is Kind.POSTGRES else signal.SIGTERM)

    def kill(self) -> None:
        """Kill it and its children."""
        self._end(signal.SIGKILL)

    def pause(self) -> None:
        """Pause it: connections stay open and nothing answers."""
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Continue a paused server."""
        self._signal(signal.SIGCONT)

    def close(self) -> None:
        """Stop the server and remove its data."""
        if self.running:
            self.resume()
            self.stop()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _signal(self, number: signal.Signals) -> None:
        if self._process is None or not self.running:
            return
        # Each child of PostgreSQL has its own process group.
        for pid in family(self._process.pid):
            with suppress(ProcessLookupError):
                os.kill(pid, number)

    def _end(self, number: signal.Signals) -> None:
        if self._process is None:
            return
        if number is signal.SIGKILL:
            self._signal(number)
        else:
            # Only the parent: it stops its children.
            self._process.send_signal(number)
        try:
            self._process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._signal(signal.SIGKILL)
            self._process.wait()


def launch(
    kind: Kind,
    program: Path,
    *,
    durable: bool = False,
    prepare: Callable[[Instance], Sequence[str]] | None = None,
    within: Path | None = None,
) -> Instance:
    """Make a data folder and start a server on it. It may not answer yet.

    Args:
        kind: of database.
        program: its server.
        durable: flush commits to the disk, as benchmarks must. Tests need not: a killed process loses nothing without
            it, only a power cut does.
        prepare: called before the first start; returns further arguments of the server.
        within: the parent of the data folder, such as a small disk; `/tmp` if None.

    Raises:
        RuntimeError: the data folder could not be made; the message has the program's error.
    """
    account = _Account.choose("postgres" if kind is Kind.POSTGRES else "mysql")
    # A short path: a socket's may have no more than about 100 characters.
    folder = Path(tempfile.mkdtemp(prefix=f"llm-proxy-{kind}-", dir=within))
    if account.uid is not None and account.gid is not None:
        os.chown(folder, account.uid, account.gid)
    port = free_port()
    make = {Kind.POSTGRES: _postgres, Kind.MYSQL: _mysql, Kind.MARIADB: _mariadb}[kind]
    install, serve, url = make(program, folder, port, account)
    if not durable:
        serve = [*serve, *_NO_FLUSH[kind]]
    try:
        _run(install, folder, account)
        instance = Instance(kind, url, folder, tuple(serve), account)
        if prepare is not None:
            instance.command += tuple(prepare(instance))
        instance.start()
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    return instance


def _run(command: Sequence[str], folder: Path, account: _Account) -> None:
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        check=False,
        timeout=180,
        cwd=folder,
        user=account.uid,
        group=account.gid,
    )
    if done.returncode != 0:
        raise RuntimeError(f"{command[0]} failed: {(done.stderr or done.stdout).strip()[-2000:]}")


_Plan = tuple[Sequence[str], Sequence[str], str]


def _postgres(program: Path, folder: Path, port: int, account: _Account) -> _Plan:
    del account
    data = str(folder / "data")
    prepare = [str(program.with_name("initdb")), "-D", data, "-U", "postgres", "-A", "trust", "-E", "UTF8"]
    prepare += ["--locale=C", "--no-sync"]
    settings = {
        "listen_addresses": "127.0.0.1",
        "unix_socket_directories": "",
        "max_connections": "300",
        "shared_buffers": "64MB",
    }
    serve = [str(program), "-D", data, "-p", str(port)]
    for name, value in settings.items():
        serve += ["-c", f"{name}={value}"]
    return prepare, serve, f"postgres://postgres@127.0.0.1:{port}/postgres?sslmode=disable"


def _mysql_options(folder: Path, port: int) -> list[str]:
    return [
        f"--datadir={folder / 'data'}",
        # MariaDB deletes what it finds there when it starts.
        f"--tmpdir={folder}",
        f"--port={port}",
        "--bind-address=127.0.0.1",
        f"--socket={folder / 'sock'}",
        f"--pid-file={folder / 'pid'}",
        "--max-connections=300",
    ]


def _mysql(program: Path, folder: Path, port: int, account: _Account) -> _Plan:
    user = f"--user={account.name}"
    prepare = [str(program), "--no-defaults", "--initialize-insecure", user, f"--datadir={folder / 'data'}"]
    serve = [str(program), "--no-defaults", user, "--mysqlx=OFF", "--secure-file-priv=NULL"]
    return prepare, serve + _mysql_options(folder, port), f"root@tcp(127.0.0.1:{port})/mysql?parseTime=true"


def _mariadb(program: Path, folder: Path, port: int, account: _Account) -> _Plan:
    beside = program.with_name("mariadb-install-db")
    installer = str(beside) if beside.exists() else shutil.which("mariadb-install-db") or "mariadb-install-db"
    prepare = [installer, "--no-defaults", f"--datadir={folder / 'data'}", f"--user={account.name}"]
    prepare += ["--auth-root-authentication-method=normal", "--skip-test-db"]
    serve = [str(program), "--no-defaults", f"--user={account.name}"]
    return prepare, serve + _mysql_options(folder, port), f"root@tcp(127.0.0.1:{port})/mysql?parseTime=true"
