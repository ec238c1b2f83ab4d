"""Settings and commands of the chart are valid for the program."""

from __future__ import annotations

import http.client
import time
from pathlib import Path

import pytest

from benchmarks.ports import free_port
from llm_proxy.config import Settings
from tests.databases.kinds import on
from tests.helm import pod
from tests.helm.chart import EXAMPLES, Manifest, deployment, environment, merged, of_kind, render, server
from tests.helm.program import PATIENCE
from tests.helm.test_chart_values import DATABASES, FEATURES


@pytest.mark.parametrize("name", DATABASES)
def test_the_settings_of_a_pod_are_settings_of_the_program(name: str, tmp_path: Path) -> None:
    objects = render(merged(DATABASES[name], FEATURES["settings"], FEATURES["https"]))
    settings = load(objects, tmp_path)
    assert settings.max_request_size == 200_000_000
    assert settings.enable_tls


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_settings_of_an_example_are_settings_of_the_program(example: Path, tmp_path: Path) -> None:
    load(render(example), tmp_path)


def load(objects: list[Manifest], folder: Path) -> Settings:
    """What the program makes of the server's variables; a misspelt one is noticed too."""
    container = server(objects)
    driver = environment(container)["DB_DRIVER"]
    environ = pod.variables(container, pod.address(driver, objects), folder)
    settings = Settings.load(environ, serving=True)
    assert Settings.warnings(environ) == []
    assert settings.listen_addr.port == 8080
    assert settings.db_driver == driver
    return settings


@on("sqlite", "postgres", "mysql")
def test_commands_of_the_chart_migrate_serve_and_answer_probes(database_env: dict[str, str], tmp_path: Path) -> None:
    driver = database_env["DB_DRIVER"]
    job = {} if driver == "sqlite" else {"migrations": {"mode": "job"}}
    objects = render(merged(DATABASES[driver], job, {"database": {"tls": {"ca": {"configMap": ""}}}}))
    url = database_env.get("DATABASE_URL", "")
    for each in of_kind("Job", objects):
        (container,) = each["spec"]["template"]["spec"]["containers"]
        with pod.running(container, pod.variables(container, url, tmp_path), tmp_path) as migration:
            assert migration.wait(PATIENCE) == 0, (tmp_path / "output").read_text()
        assert b"applied" in (tmp_path / "output").read_bytes()

    container = server(objects)
    port = free_port()
    variables = {**pod.variables(container, url, tmp_path), "LISTEN_ADDR": f"127.0.0.1:{port}"}
    with pod.running(container, variables, tmp_path) as serving:
        for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
            path = container[probe]["httpGet"]["path"]
            deadline = time.monotonic() + PATIENCE
            while (status := look(port, path)) != 200:
                assert serving.poll() is None, (tmp_path / "output").read_text()
                assert time.monotonic() < deadline, f"{path} answered {status}"
                time.sleep(0.05)
        serving.terminate()
        patience = deployment(objects)["spec"]["template"]["spec"]["terminationGracePeriodSeconds"]
        assert serving.wait(patience) == 0


def look(port: int, path: str) -> int:
    """The status that a path answers; 0 where nobody answers yet."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request("GET", path)
        return connection.getresponse().status
    except OSError:
        return 0
    finally:
        connection.close()
