"""Each service of compose.yaml, started by hand: its command, environment, secrets, volumes, and its own health check.

The programs are those of this machine and our image. What the entry scripts of official images do at a first start is
done here in their place: making a user with the password of the secret, and a database.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest
import yaml

from benchmarks.ports import free_port
from benchmarks.processes import Process
from db.database import opened
from db.dsn import Target, parse
from db.migrate import is_at_head
from db.options import Options
from tests.containers.image import Containers, Image
from tests.containers.test_compose import COMPOSE, FOLDER, PROXIES, SERVICES, make_secrets
from tests.databases.admin import Address, admin_of
from tests.databases.fixtures import lacking, require_programs
from tests.databases.kinds import Kind, on
from tests.databases.programs import Instance
from tests.databases.scratch import Databases
from tests.databases.servers import own_instance
from tests.harness.prometheus import ADVICE, find_prometheus
from tests.harness.server import Server

PATIENCE = 60.0
#: How often a health check is asked before it is given up.
TRIES = 200
#: Where everything listens here; services of Compose go by their names.
HOST = "127.0.0.1"


@pytest.fixture
def secrets(tmp_path: Path) -> Path:
    """What secrets.sh makes. The engine mounts each file by itself, so here all can get to them."""
    folder = make_secrets(tmp_path)
    folder.chmod(0o755)
    return folder


def grace(name: str) -> float:
    """Seconds that a service gets between SIGTERM and SIGKILL; 10 is Compose's own."""
    return float(SERVICES[name].get("stop_grace_period", "10s").removesuffix("s"))


def check(name: str, *, paths: Mapping[str, str], env: Mapping[str, str]) -> list[str]:
    """A service's health check as a command of this machine, where files have other paths."""
    kind, *words = SERVICES[name]["healthcheck"]["test"]
    for there, here in paths.items():
        words = [word.replace(there, here) for word in words]
    command = ["sh", "-c", words[0].replace("$$", "$")] if kind == "CMD-SHELL" else words
    return ["env", *(f"{variable}={value}" for variable, value in env.items()), *command]


def healthy(command: list[str]) -> bool:
    return subprocess.run(command, capture_output=True, check=False, timeout=PATIENCE).returncode == 0


def until_healthy(command: list[str], wait: Callable[[float], object]) -> None:
    """Ask until it is, as an engine does."""
    assert any(healthy(command) or wait(0.1) for _ in range(TRIES)), command


def pause(process: Process) -> Callable[[float], None]:
    """Let some time pass, in which a process must not end."""

    def passing(seconds: float) -> None:
        try:
            process.popen.wait(seconds)
        except subprocess.TimeoutExpired:
            return
        pytest.fail("it has ended")

    return passing


def stop_in_time(name: str, process: Process) -> None:
    """SIGTERM ends it, well and within its time."""
    process.signal(signal.SIGTERM)
    assert process.popen.wait(grace(name)) == 0


def stop_a_database(name: str, instance: Instance) -> None:
    """The signal of its image (SIGINT for PostgreSQL, SIGTERM for MySQL) ends it within its time, and cleanly."""
    began = time.monotonic()
    instance.stop()
    assert time.monotonic() - began < grace(name)
    assert instance.status == 0, instance.log


def test_every_compose_service_has_a_test() -> None:
    assert {*PROXIES, "postgres", "mysql", "prometheus", "grafana"} == set(SERVICES)


@contextmanager
def proxy(name: str, image: Image, tmp_path: Path, secrets: Path) -> Iterator[tuple[Containers, Server]]:
    """A proxy as its service says, on a port of this test."""
    data = tmp_path / "data"
    data.mkdir(mode=0o700)
    user, group = map(int, SERVICES[name]["user"].split(":"))
    os.chown(data, user, group)
    containers = Containers(image, data, {"/run/secrets": secrets})
    with containers.running(SERVICES[name]["environment"], ready=False) as server:
        yield containers, server


def watch_a_proxy(name: str, image: Image, tmp_path: Path, secrets: Path) -> None:
    """It is unhealthy, then healthy, and ends within its time."""
    kind, *command = SERVICES[name]["healthcheck"]["test"]
    assert kind == "CMD"
    with proxy(name, image, tmp_path, secrets) as (containers, server):
        address = {"LISTEN_ADDR": f"{HOST}:{server.port}"}

        def answer() -> int:
            return int(containers.run(*command, settings=address).returncode)

        tries = 0
        while (said := answer()) != 0:
            tries += 1
            assert said == 1, "only unhealthy is nothing unusual"
            assert tries < TRIES
            pause(server.process)(0.1)
        assert server.is_ready()
        with opened(target(name, tmp_path, secrets), Options(), exclusive=False) as database:
            assert database.read_now(is_at_head), "healthy without its tables"
        assert server.stop(grace(name)) == 0, server.output
        assert answer() == 1


def target(name: str, tmp_path: Path, secrets: Path) -> Target:
    """The database of a proxy, as it is reached from outside of the container."""
    settings = SERVICES[name]["environment"]
    if file := settings.get("DATABASE_URL_FILE"):
        return parse(settings["DB_DRIVER"], (secrets / Path(file).name).read_text(), None)
    return parse(settings["DB_DRIVER"], "", str(tmp_path / settings["DATABASE_PATH"].removeprefix("/")))


def test_service_proxy_sqlite_serves(image: Image, tmp_path: Path, secrets: Path) -> None:
    watch_a_proxy("proxy-sqlite", image, tmp_path, secrets)
    assert (tmp_path / "data" / "llm-proxy.db").exists()


def set_up_postgres(instance: Instance, secrets: Path) -> None:
    """What the image does at its first start with POSTGRES_USER, POSTGRES_DB and POSTGRES_PASSWORD_FILE."""
    settings = SERVICES["postgres"]["environment"]
    password = (secrets / Path(settings["POSTGRES_PASSWORD_FILE"]).name).read_text()
    admin_of(Kind.POSTGRES, instance.url).execute(
        f"CREATE ROLE {settings['POSTGRES_USER']} LOGIN SUPERUSER PASSWORD '{password}'",
        f"CREATE DATABASE {settings['POSTGRES_DB']} OWNER {settings['POSTGRES_USER']}",
    )


def test_services_postgres_and_its_proxy_serve(image: Image, tmp_path: Path, secrets: Path) -> None:
    require_programs(Kind.POSTGRES)
    # As the image has it: over the network, only the password lets its user in.
    rules = b"host all postgres all trust\nhost all all all scram-sha-256\n"

    def prepare(instance: Instance) -> tuple[()]:
        instance.place("pg_hba.conf", rules)
        return ()

    with own_instance(Kind.POSTGRES, prepare) as instance:
        port = Address.parse(instance.url, default_port=5432).port
        companions = str(Path(instance.command[0]).parent)
        command = check("postgres", paths={}, env={"PGPORT": str(port), "PATH": f"{companions}:{os.environ['PATH']}"})
        set_up_postgres(instance, secrets)
        assert healthy(command)
        assert list(SERVICES["proxy-postgres"]["depends_on"]) == ["postgres"]
        redirect(secrets / "postgres-url", "@postgres:5432/", f"@{HOST}:{port}/")
        watch_a_proxy("proxy-postgres", image, tmp_path, secrets)
        stop_a_database("postgres", instance)
        assert not healthy(command)


def redirect(secret: Path, there: str, here: str) -> None:
    """Let a URL lead to where the service is on this machine."""
    text = secret.read_text()
    assert there in text
    secret.unlink()
    secret.write_text(text.replace(there, here))
    secret.chmod(0o444)


def test_service_mysql_has_a_valid_command_and_health_check(secrets: Path) -> None:
    """MariaDB has the same options and the same client, and stands for MySQL where a server has to be started."""
    require_programs(Kind.MARIADB)
    service = SERVICES["mysql"]
    with own_instance(Kind.MARIADB, prepare=lambda _: service["command"]) as instance:
        port = Address.parse(instance.url, default_port=3306).port
        command = check("mysql", paths={"/run/secrets": str(secrets)}, env={"MYSQL_TCP_PORT": str(port)})
        assert healthy(command)
        with opened(parse("mysql", instance.url, ""), Options()) as database:
            collation = database.read_now(
                lambda connection: connection.exec_driver_sql("SELECT @@collation_server").scalar()
            )
        assert collation == "utf8mb4_bin"
        stop_a_database("mysql", instance)
        assert not healthy(command)


@on("mysql")
def test_services_mysql_and_its_proxy_serve(
    image: Image, tmp_path: Path, secrets: Path, databases: Databases, database_kind: Kind
) -> None:
    """With a server that is there already, and an account of its own in it."""
    service = SERVICES["mysql"]["environment"]
    name, user = service["MYSQL_DATABASE"], service["MYSQL_USER"]
    password = (secrets / Path(service["MYSQL_PASSWORD_FILE"]).name).read_text()
    server = databases.server(database_kind)
    address = Address.parse(server.url, default_port=3306)
    with databases.empty(database_kind) as scratch:
        account = f"{user}_{scratch.name[-6:]}"
        server.admin.execute(
            f"CREATE USER '{account}'@'%' IDENTIFIED BY '{password}'",
            f"GRANT ALL PRIVILEGES ON `{scratch.name}`.* TO '{account}'@'%'",
        )
        try:
            paths = {"/run/secrets": str(secrets), f"--user={user} ": f"--user={account} "}
            command = check("mysql", paths=paths, env={"MYSQL_TCP_PORT": str(address.port)})
            # It says more, and still ends with 0, if its login is rejected.
            assert subprocess.check_output(command, text=True, timeout=PATIENCE) == "mysqld is alive\n"
            redirect(secrets / "mysql-url", "@tcp(mysql:3306)/", f"@tcp({address.host}:{address.port})/")
            redirect(secrets / "mysql-url", f"/{name}?", f"/{scratch.name}?")
            redirect(secrets / "mysql-url", f"{user}:", f"{account}:")
            watch_a_proxy("proxy-mysql", image, tmp_path, secrets)
        finally:
            server.admin.execute(f"DROP USER '{account}'@'%'")


def test_service_prometheus_scrapes_the_proxy(tmp_path: Path) -> None:
    program = find_prometheus()
    if program is None:
        lacking(ADVICE)
    if shutil.which("wget") is None:
        lacking("no wget: install the package wget")
    service = SERVICES["prometheus"]
    volumes = dict(volume.split(":")[:2] for volume in service["volumes"])
    paths = {"/etc/prometheus": str(tmp_path / "configuration"), "/prometheus": str(tmp_path / "data")}
    assert set(volumes.values()) == set(paths)
    shutil.copytree(FOLDER / "prometheus", paths["/etc/prometheus"])
    configuration = Path(paths["/etc/prometheus"], "prometheus.yaml")
    configuration.write_text(configuration.read_text().replace("/etc/prometheus", paths["/etc/prometheus"]))
    port = str(free_port())
    arguments = [option.replace("=/etc/prometheus", f"={paths['/etc/prometheus']}") for option in service["command"]]
    arguments = [option.replace("=/prometheus", f"={paths['/prometheus']}") for option in arguments]
    command = [word.replace("9090", port) for word in check("prometheus", paths={}, env={})]
    assert not healthy(command)
    listen = f"--web.listen-address={HOST}:{port}"
    with Process.start((program, *arguments, listen), stderr=tmp_path / "log") as process:
        until_healthy(command, pause(process))
        stop_in_time("prometheus", process)


def test_service_grafana_has_an_existing_source_and_dashboard() -> None:
    """It has no package in Debian, so what it is given is looked at instead."""
    volumes = dict(volume.split(":")[:2] for volume in SERVICES["grafana"]["volumes"] if volume.startswith("./"))
    mounted = {there: FOLDER / here for here, there in volumes.items()}
    provisioning = mounted["/etc/grafana/provisioning"]
    (source,) = yaml.safe_load((provisioning / "datasources" / "prometheus.yaml").read_text())["datasources"]
    assert source["url"] == "http://prometheus:9090"
    assert "prometheus" in SERVICES["grafana"]["depends_on"]
    (provider,) = yaml.safe_load((provisioning / "dashboards" / "llm-proxy.yaml").read_text())["providers"]
    dashboards = list(mounted[provider["options"]["path"]].glob("*.json"))
    home = SERVICES["grafana"]["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"]
    assert Path(home).name in {path.name for path in dashboards}
    for path in dashboards:
        targets = [t for panel in json.loads(path.read_text())["panels"] for t in panel.get("targets", ())]
        used = {target["datasource"]["uid"] for target in targets if "datasource" in target}
        assert used <= {source["uid"], "${datasource}"}
    password = SERVICES["grafana"]["environment"]["GF_SECURITY_ADMIN_PASSWORD__FILE"]
    assert Path(password).name in COMPOSE["secrets"]


@pytest.mark.parametrize("wget", [["wget"], ["busybox", "wget"]], ids=" ".join)
def test_health_checks_with_wget_work_with_gnu_and_busybox(wget: list[str]) -> None:
    """The images have busybox's, which knows fewer flags than the one that is run here."""
    if shutil.which(wget[0]) is None:
        lacking(f"no {wget[0]}: install the package {wget[0]}")
    checks = [service["healthcheck"]["test"] for service in SERVICES.values()]
    flags = {word for words in checks if words[1] == "wget" for word in words[2:-1]}
    assert flags
    url = f"http://{HOST}:{free_port()}/"  # where nobody listens
    assert "unrecognized option" in complaint([*wget, "--no-such-flag", url])
    assert "unrecognized option" not in complaint([*wget, *sorted(flags), url])


def complaint(command: list[str]) -> str:
    """What a program says that fails."""
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=PATIENCE)
    assert done.returncode != 0
    return done.stdout + done.stderr
