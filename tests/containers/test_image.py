from __future__ import annotations

import http.client
import os
import re
import signal
from pathlib import Path

from benchmarks.processes import Upstream
from tests.containers.image import Containers, Image
from tests.harness.deployment import Deployment, provider_settings
from tests.harness.server import ENCRYPTION_KEY, MANAGEMENT_TOKEN

SECRETS = {"MANAGEMENT_TOKEN": MANAGEMENT_TOKEN, "ENCRYPTION_KEY": ENCRYPTION_KEY}
FOLDERS = ("bin", "sbin", "usr/bin", "usr/sbin", "usr/local/bin", "opt/llm-proxy/bin")
#: What would install or build something.
TOOL = re.compile(r"pip[\d.]*|easy_install.*|wheel|cc|c\+\+|gcc.*|g\+\+.*|clang.*|ld(\.(bfd|gold|lld))?|make|apk")


def test_image_has_no_installer_and_no_compiler(image: Image) -> None:
    programs = [path for folder in FOLDERS for path in sorted((image.root / folder).glob("*"))]
    found = [path for path in programs if TOOL.fullmatch(path.name)]
    assert [path for path in found if not path.is_dir()] == []
    assert [path for path in image.root.rglob("pip") if (path / "__main__.py").exists()] == []


def test_image_declares_user_port_volume_and_command(image: Image) -> None:
    assert image.config["User"] == "10001:10001"
    assert image.config["Entrypoint"] == ["llm-proxy"]
    assert image.config["Cmd"] == ["server"]
    assert image.config["StopSignal"] == "SIGTERM"
    assert list(image.config["ExposedPorts"]) == ["8080/tcp"]
    assert list(image.config["Volumes"]) == ["/data"]


def test_image_contains_only_the_program(image: Image) -> None:
    (packages,) = (image.root / "opt/llm-proxy/lib").glob("python*/site-packages")
    for name in ("tests", "containers", "benchmarks", "docs", "helm"):
        assert not (packages / name).exists(), name
    for name in (".git", ".env", "llm-proxy.db", "management-token"):
        assert list((image.root / "opt").rglob(name)) == [], name
    assert list((image.root / "data").iterdir()) == []
    assert not (image.root / "src").exists()


def check_confinement(pid: int) -> None:
    """The kernel's own word for who a process is, what it may become, and what it may write to."""
    status = Path(f"/proc/{pid}/status").read_text()
    assert "Uid:\t10001\t10001\t10001\t10001" in status
    assert "NoNewPrivs:\t1" in status
    mounts = [line.split() for line in Path(f"/proc/{pid}/mountinfo").read_text().splitlines()]
    (options,) = [fields[5] for fields in mounts if fields[4] == "/"]
    assert options.split(",")[0] == "ro"


async def test_image_serves_as_any_user_on_a_read_only_file_system(containers: Containers, upstream: Upstream) -> None:
    with containers.running({**SECRETS, **provider_settings(upstream)}) as server:
        check_confinement(server.pid)
        deployment = Deployment(server, upstream)
        secret = deployment.new_secret()
        assert (await deployment.chat(secret)).status == http.client.OK
        streamed = await deployment.chat(secret, stream=True)
        assert streamed.status == http.client.OK
        assert b"data: [DONE]" in streamed.body
        assert server.stop() == 0
    assert {path.name for path in containers.data.iterdir()} >= {"llm-proxy.db"}
    assert oct((containers.data / "llm-proxy.db").stat().st_mode)[-3:] == "600"


async def test_a_killed_container_continues_with_its_data(containers: Containers, upstream: Upstream) -> None:
    settings = {**SECRETS, **provider_settings(upstream)}
    with containers.running(settings) as server:
        secret = Deployment(server, upstream).new_secret(max_requests=2)
        assert (await Deployment(server, upstream).chat(secret)).status == http.client.OK
        os.kill(server.pid, signal.SIGKILL)
        server.wait()
    with containers.running(settings) as server:
        assert (await Deployment(server, upstream).chat(secret)).status == http.client.OK
        assert (await Deployment(server, upstream).chat(secret)).status == http.client.TOO_MANY_REQUESTS
        assert server.stop() == 0
    verified = containers.run("llm-proxy", "ledger", "verify", settings=SECRETS)
    assert verified.returncode == 0, verified.stdout


def test_health_check_fails_without_a_ready_server(containers: Containers, upstream: Upstream) -> None:
    check = ("python", "/opt/llm-proxy/health.py")
    with containers.running({**SECRETS, **provider_settings(upstream)}) as server:
        address = {"LISTEN_ADDR": server.settings["LISTEN_ADDR"]}
        healthy = containers.run(*check, settings=address)
        assert (healthy.returncode, healthy.stdout[:4]) == (0, "200 ")
        assert server.stop() == 0
    sick = containers.run(*check, settings=address)
    assert sick.returncode == 1
    assert sick.stdout == "not reachable: Connection refused\n"


def test_wrong_settings_in_a_container_are_explained(containers: Containers) -> None:
    told = containers.run("llm-proxy", "server", settings={"DB_DRIVER": "postgres"})
    assert told.returncode == 2, told.stdout
    assert "DATABASE_URL" in told.stdout
    assert "Traceback" not in told.stdout
