"""The chart, as Helm renders it."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final

import yaml

from tests.databases.fixtures import lacking
from tests.helm.program import PATIENCE, find_helm

CHART: Final = Path(__file__).parents[2] / "helm" / "llm-proxy"
EXAMPLES: Final = tuple(sorted((CHART / "examples").glob("*.yaml")))
GOLDEN: Final = Path(__file__).with_name("golden")

#: The version of Kubernetes that is rendered for where nothing else is said, and the ends of what the chart takes.
KUBERNETES: Final = "1.32"
OLDEST: Final = "1.25"
NEWEST: Final = "1.37"

Values = Mapping[str, Any]
Manifest = dict[str, Any]


class Refused(Exception):
    """Helm's own words, about values that it did not render."""


def helm(*arguments: str) -> str:
    """Run Helm, and give what it prints. Raises `Refused` with its error."""
    program = find_helm()
    if program is None:
        lacking("there is no Helm here: name it in HELM, put it on the PATH, or run python -m tests.helm.install")
    # Nobody's plugins, and no cluster; so short a run needs no garbage collector either.
    environ = {"PATH": os.defpath, "HOME": "/nonexistent", "KUBECONFIG": "/dev/null", "GOGC": "off"}
    done = subprocess.run(
        [program, *arguments],
        cwd=CHART.parents[1],
        env=environ,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    if done.returncode != 0:
        raise Refused(done.stderr)
    return done.stdout


def merged(*values: Values) -> dict[str, Any]:
    """Lay values over each other, as Helm does with several files: maps are joined, all else is replaced."""
    result: dict[str, Any] = {}
    for layer in values:
        for name, value in layer.items():
            both_maps = isinstance(value, dict) and isinstance(result.get(name), dict)
            result[name] = merged(result[name], value) if both_maps else value
    return result


def rendered(
    values: Values | Path, *, kubernetes: str = KUBERNETES, chart: Path = CHART, release: str = "llm-proxy"
) -> str:
    """What Helm makes of the chart with these values, as text. Raises `Refused`."""
    with tempfile.TemporaryDirectory() as folder:
        file = values if isinstance(values, Path) else Path(folder, "values.yaml")
        if not isinstance(values, Path):
            file.write_text(yaml.safe_dump(dict(values)))
        options = ["--namespace", "gateway", "--kube-version", kubernetes, "--values", str(file)]
        return helm("template", release, str(chart), *options)


def manifests(text: str) -> list[Manifest]:
    """The objects in a text of Helm's."""
    # The loader that is written in C, which takes a tenth of the time.
    return [document for document in yaml.load_all(text, Loader=yaml.CSafeLoader) if document]


def render(values: Values | Path, **options: Any) -> list[Manifest]:
    """The objects that Helm makes of these values; options as in `rendered`."""
    return manifests(rendered(values, **options))


def of_kind(kind: str, objects: Iterable[Manifest]) -> list[Manifest]:
    """Those of one kind."""
    return [each for each in objects if each["kind"] == kind]


def deployment(objects: Iterable[Manifest]) -> Manifest:
    """The one Deployment."""
    (found,) = of_kind("Deployment", objects)
    return found


def server(objects: Iterable[Manifest]) -> Manifest:
    """The server's container."""
    containers: list[Manifest] = deployment(objects)["spec"]["template"]["spec"]["containers"]
    return containers[0]


def environment(container: Manifest) -> dict[str, str]:
    """A container's variables, those with a value."""
    return {each["name"]: each["value"] for each in container["env"] if "value" in each}


def notes(values: Values, folder: Path) -> str:
    """The text that Helm prints after an install.

    Helm shows it to those with a cluster only, so a copy of the chart carries it as a template of its own.
    """
    copy = folder / "llm-proxy"
    shutil.copytree(CHART, copy)
    text = (copy / "templates" / "NOTES.txt").read_text()
    wrapped = (
        f'{{{{- define "notes" }}}}{text}{{{{ end -}}}}\nkind: Notes\ntext: {{{{ include "notes" . | toJson }}}}\n'
    )
    (copy / "templates" / "notes.yaml").write_text(wrapped)
    (found,) = of_kind("Notes", render(values, chart=copy))
    return str(found["text"])
