"""What our pages type behind `docker`, done without an engine: with the flags that the pages use, and no others.

Containers are really run, as `image.py` does it; a build is looked through, because the image has been built from the
same file; and a stack is compared with `compose.yaml`, whose services other tests start.
"""

from __future__ import annotations

import os
import re
import shlex
from contextlib import ExitStack
from pathlib import Path

import click
import yaml
from attrs import Factory, define

from tests.containers.image import Containers, Image
from tests.docs.prompt import Call
from tests.harness.server import Server

#: What a container may not do, as `image.py` runs all of them.
CONFINED = {
    "read_only": True,
    "tmpfs": ("/tmp",),  # noqa: S108 (a mount of the container)
    "cap_drop": ("ALL",),
    "security_opt": ("no-new-privileges",),
}
#: Seconds: SHUTDOWN_GRACE and the last settlements.
GRACE = 40


@define(eq=False)
class Engine:
    """Images, volumes and containers of one test.

    Attributes:
        folder: what takes the place of the machine's root folder where a folder of it is mounted.
        stack: ends the containers.
        image: what `build` comes to; None where nothing is run.
        settings: further settings of all containers, for what cannot be reached from here.
        tags: names that were given to the image.
        running: servers, by the names of their containers.
        started: services that were started with Compose.
        said: what the last command printed.
    """

    folder: Path
    stack: ExitStack
    image: Image | None = None
    settings: dict[str, str] = Factory(dict)
    tags: set[str] = Factory(set)
    running: dict[str, tuple[Server, Containers]] = Factory(dict)
    started: list[str] = Factory(list)
    said: str = ""

    def do(self, call: Call) -> None:
        """Carry out a call of `docker`, or fail with what is wrong about it."""
        docker.main(call.arguments, "docker", obj=(self, call.folder), standalone_mode=False)

    def containers(self, volumes: tuple[str, ...]) -> Containers:
        """Containers with these volumes, those of a name made when they are new."""
        assert self.image is not None
        user, _, group = self.image.config["User"].partition(":")
        data, mounts = self.folder / "volumes" / "unnamed", {}
        for volume in volumes:
            source, target, *flags = volume.split(":")
            if target == "/data":
                assert "/" not in source, f"a folder of the machine has another owner than {user}"
                data = self.folder / "volumes" / source
            else:
                assert flags == ["ro"], volume
                mounts[target] = self.folder / source.removeprefix("/")
                assert mounts[target].is_dir(), volume
        data.mkdir(parents=True, exist_ok=True, mode=0o700)
        os.chown(data, int(user), int(group))
        return Containers(self.image, data, mounts)


@click.group()
def docker() -> None:
    """`docker`."""


@docker.command()
@click.option("-f", "file", required=True)
@click.option("-t", "tag", required=True)
@click.argument("context")
@click.pass_obj
def build(obj: tuple[Engine, Path], file: str, tag: str, context: str) -> None:
    """Look whether all that the file copies is in the context."""
    engine, folder = obj
    root = folder / context
    for line in re.sub(r"\\\n", " ", (folder / file).read_text()).splitlines():
        words = [word for word in shlex.split(line, comments=True) if not word.startswith("--chown")]
        if words[:1] == ["COPY"] and not words[1].startswith("--from"):
            for source in words[1:-1]:
                assert (root / source).exists(), f"{source} is not in {context}"
    engine.tags.add(tag)


@docker.command(context_settings={"allow_interspersed_args": False})
@click.option("-d", "detached", is_flag=True)
@click.option("--rm", "removed", is_flag=True)
@click.option("--name")
@click.option("-p", "ports", multiple=True)
@click.option("-v", "volumes", multiple=True)
@click.option("-e", "variables", multiple=True)
@click.option("--read-only", is_flag=True)
@click.option("--tmpfs", multiple=True)
@click.option("--cap-drop", multiple=True)
@click.option("--security-opt", multiple=True)
@click.option("--stop-timeout", type=int)
@click.argument("tag")
@click.argument("command", nargs=-1)
@click.pass_obj
def run(
    obj: tuple[Engine, Path],
    /,
    *,
    detached: bool,
    removed: bool,
    name: str | None,
    ports: tuple[str, ...],
    volumes: tuple[str, ...],
    variables: tuple[str, ...],
    stop_timeout: int | None,
    tag: str,
    command: tuple[str, ...],
    **confined: object,
) -> None:
    """Run a container: to its end, or as a server that must become ready."""
    engine, _ = obj
    assert tag in engine.tags, f"there is no image {tag}"
    containers = engine.containers(volumes)
    config = containers.image.config
    settings = {**dict(entry.split("=", 1) for entry in variables), **engine.settings}
    if not detached:
        assert removed, "a container would be left behind"
        done = containers.run(*config["Entrypoint"], *command, settings=settings)
        assert done.returncode == 0, done.stdout
        engine.said = done.stdout
        return
    assert confined == CONFINED
    assert not command
    assert name is not None
    assert name not in engine.running
    assert stop_timeout is not None
    assert stop_timeout > GRACE
    assert {f"{port.rpartition(':')[2]}/tcp" for port in ports} == set(config["ExposedPorts"])
    engine.running[name] = engine.stack.enter_context(containers.running(settings)), containers


@docker.command("exec", context_settings={"allow_interspersed_args": False})
@click.argument("name")
@click.argument("command", nargs=-1, required=True)
@click.pass_obj
def execute(obj: tuple[Engine, Path], name: str, command: tuple[str, ...]) -> None:
    """Run a command beside a server, with all that it has."""
    engine, _ = obj
    server, containers = engine.running[name]
    done = containers.run(*command, settings=server.settings)
    assert done.returncode == 0, done.stdout
    engine.said = done.stdout


@docker.command(context_settings={"allow_interspersed_args": False})
@click.option("-f", "file", default="compose.yaml")
@click.option("--profile", "profiles", multiple=True)
@click.argument("up", type=click.Choice(["up"]))
@click.argument("detached", type=click.Choice(["-d"]))
@click.argument("services", nargs=-1)
@click.pass_obj
def compose(
    obj: tuple[Engine, Path], file: str, profiles: tuple[str, ...], up: str, detached: str, services: tuple[str, ...]
) -> None:
    """Find the services of a profile, and all that they need on the machine."""
    engine, folder = obj
    path = folder / file
    stack = yaml.safe_load(path.read_text())
    all_of_them = {name: service for name, service in stack["services"].items() if {*service["profiles"]} & {*profiles}}
    assert {*profiles} == {profile for service in all_of_them.values() for profile in service["profiles"]}
    assert {*services} <= {*all_of_them}
    for name in services or all_of_them:
        for secret in all_of_them[name].get("secrets", ()):
            assert (path.parent / stack["secrets"][secret]["file"]).read_text(), f"{name} needs the secret {secret}"
        for volume in all_of_them[name].get("volumes", ()):
            source = volume.partition(":")[0]
            assert source in stack["volumes"] or (path.parent / source).is_dir(), volume
        engine.started.append(name)
