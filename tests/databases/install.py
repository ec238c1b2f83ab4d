"""Install the programs that the tests need: database servers, PgBouncer, reverse proxies, Prometheus.

Run `python -m tests.databases.install`. It works on Debian and systems like it, as root or with sudo without a
password. It installs a database server only if the environment names none and Docker does not work. The end of a test
run lists what is missing; if `CI` is set, the tests fail.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

from tests.databases.kinds import SERVERS, Kind
from tests.databases.pgbouncer import find_pgbouncer
from tests.databases.programs import find_program
from tests.databases.servers import docker_works
from tests.harness.balancers import BALANCERS, find_balancer
from tests.harness.nginx import find_nginx
from tests.harness.prometheus import find_prometheus

#: A package without a service comes first, if the release has one.
_PACKAGES = {
    Kind.POSTGRES: "postgresql",
    Kind.MARIADB: "mariadb-server",
    Kind.MYSQL: "mysql-server-core|mysql-server-core-8.0|mysql-server",
}
_APT = Path(__file__).parents[2] / ".ci" / "apt"


def missing() -> list[Kind]:
    """The servers that are neither named nor installed."""
    return [kind for kind in SERVERS if not os.environ.get(kind.variable) and find_program(kind) is None]


def as_root() -> list[str] | None:
    """The prefix of a command that root must run; None if sudo needs a password."""
    if os.geteuid() == 0:
        return []
    sudo = ["sudo", "-n"]
    if shutil.which("sudo") and subprocess.run([*sudo, "true"], capture_output=True, check=False).returncode == 0:
        return sudo
    return None


def main() -> None:
    """Install what is missing."""
    if shutil.which("apt-get") is None or (prefix := as_root()) is None:
        return
    packages = {str(kind): _PACKAGES[kind] for kind in missing()}
    if packages and os.geteuid() != 0 and docker_works():
        packages = {}
    if find_pgbouncer() is None:
        packages["pgbouncer"] = "pgbouncer"
    if find_nginx() is None:
        packages["nginx"] = "nginx-light|nginx"
    for balancer in BALANCERS:
        if find_balancer(balancer) is None:
            packages[balancer] = balancer
    if shutil.which("systemd-analyze") is None:
        packages["systemd"] = "systemd"
    if find_prometheus() is None:
        packages["prometheus"] = "prometheus"
    for program in ("curl", "wget", "busybox"):
        if shutil.which(program) is None:
            packages[program] = program
    if packages:
        sys.stdout.write(f"Installing for the tests: {', '.join(packages)}\n")
        sys.stdout.flush()
        subprocess.run([*prefix, str(_APT), *packages.values()], check=False)


if __name__ == "__main__":
    main()
