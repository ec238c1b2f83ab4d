"""What our pages type behind `kubectl` and `helm`, done without a cluster: with the flags that they use, and no others.

Helm really renders what it would install, and the secrets that pods then ask for have to be there, with the keys that
they ask for.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
from attrs import Factory, define
from click.testing import CliRunner

from llm_proxy.cli import program
from tests.docs.prompt import Call
from tests.helm.chart import KUBERNETES, Manifest, helm, manifests, of_kind

#: The words by which a pod refers to an object, and the kind of that object.
_REFERENCES = {"secret": "secret", "secretKeyRef": "secret", "configMap": "configmap", "configMapKeyRef": "configmap"}


@define(eq=False)
class Cluster:
    """One namespace.

    Attributes:
        made: secrets and config maps by kind and name, each with what it holds.
        releases: what each release has installed, the newest revision last.
    """

    made: dict[tuple[str, str], dict[str, str]] = Factory(dict)
    releases: dict[str, list[list[Manifest]]] = Factory(dict)

    def do(self, call: Call) -> None:
        """Carry out a call, or fail with what is wrong about it."""
        command = {"kubectl": kubectl, "helm": helm_}[call.name]
        command.main(call.arguments, call.name, obj=(self, call.folder), standalone_mode=False)

    def install(self, name: str, chart: str, values: tuple[Path, ...]) -> None:
        """Render a chart, and look whether all that its pods refer to is there."""
        files = [word for path in values for word in ("-f", str(path))]
        objects = manifests(helm("template", name, chart, *files, "--kube-version", KUBERNETES))
        there = {**self.made}
        for each in objects:
            if each["kind"] in ("Secret", "ConfigMap"):
                there[each["kind"].lower(), each["metadata"]["name"]] = {
                    **each.get("data", {}),
                    **each.get("stringData", {}),
                }
        for reference in references(objects):
            kind, wanted, keys = reference
            assert (kind, wanted) in there, f"there is no {kind} {wanted}"
            assert keys <= set(there[kind, wanted]), f"the {kind} {wanted} has no {keys - set(there[kind, wanted])}"
        self.releases.setdefault(name, []).append(objects)


def references(node: Any) -> Iterator[tuple[str, str, set[str]]]:
    """The secrets and config maps that objects refer to: kind, name and keys."""
    if isinstance(node, list):
        for each in node:
            yield from references(each)
    elif isinstance(node, dict):
        for word, value in node.items():
            if word in _REFERENCES and isinstance(value, dict) and not value.get("optional"):
                keys = {item["key"] for item in value.get("items", ())} | ({value["key"]} if "key" in value else set())
                yield _REFERENCES[word], value.get("secretName") or value["name"], keys
            else:
                yield from references(value)


Obj = tuple[Cluster, Path]
_VALUES = click.option("-f", "values", multiple=True)


@click.group()
def kubectl() -> None:
    """`kubectl`."""


@kubectl.group()
def create() -> None:
    """`kubectl create`."""


@create.command()
@click.argument("kind", type=click.Choice(["generic"]))
@click.argument("name")
@click.option("--from-literal", "literals", multiple=True, required=True)
@click.pass_obj
def secret(obj: Obj, kind: str, name: str, literals: tuple[str, ...]) -> None:
    """Make a secret."""
    obj[0].made["secret", name] = dict(literal.split("=", 1) for literal in literals)


@create.command()
@click.argument("name")
@click.option("--from-file", "files", multiple=True, required=True)
@click.pass_obj
def configmap(obj: Obj, name: str, files: tuple[str, ...]) -> None:
    """Make a config map of files."""
    pairs = [file.split("=", 1) for file in files]
    obj[0].made["configmap", name] = {key: (obj[1] / path).read_text() for key, path in pairs}


@kubectl.command()
@click.argument("target")
@click.pass_obj
def logs(obj: Obj, target: str) -> None:
    """Look whether there is such a deployment."""
    kind, name = target.split("/")
    assert kind == "deployment"
    installed = [each for revisions in obj[0].releases.values() for each in revisions[-1]]
    assert name in [each["metadata"]["name"] for each in of_kind("Deployment", installed)]


@kubectl.command("exec", context_settings={"allow_interspersed_args": False})
@click.argument("pod")
@click.argument("command", nargs=-1, required=True)
def execute(pod: str, command: tuple[str, ...]) -> None:
    """Look whether the program has such a command."""
    assert pod
    assert command[:2] == ("--", "llm-proxy")
    shown = CliRunner().invoke(program, [*command[2:], "--help"])
    assert shown.exit_code == 0, shown.output


@click.group("helm")
def helm_() -> None:
    """`helm`."""


@helm_.command()
@click.argument("name")
@click.argument("chart")
@_VALUES
@click.pass_obj
def install(obj: Obj, name: str, chart: str, values: tuple[str, ...]) -> None:
    """Install a release that is not there yet."""
    assert name not in obj[0].releases
    obj[0].install(name, str(obj[1] / chart), tuple(obj[1] / value for value in values))


@helm_.command()
@click.argument("name")
@click.argument("chart")
@_VALUES
@click.pass_obj
def upgrade(obj: Obj, name: str, chart: str, values: tuple[str, ...]) -> None:
    """Install a further revision."""
    assert name in obj[0].releases
    obj[0].install(name, str(obj[1] / chart), tuple(obj[1] / value for value in values))


@helm_.command()
@click.argument("name")
@click.pass_obj
def rollback(obj: Obj, name: str) -> None:
    """Go back to the revision before."""
    revisions = obj[0].releases[name]
    revisions.append(revisions[-2])


@helm_.command()
@click.argument("name")
@click.pass_obj
def test(obj: Obj, name: str) -> None:
    """Look whether the release has a test."""
    hooks = [each["metadata"].get("annotations", {}).get("helm.sh/hook") for each in obj[0].releases[name][-1]]
    assert "test" in hooks
