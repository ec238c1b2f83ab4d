"""The container image, built for real, and containers of it, without an engine.

`TEST_IMAGE` names an image that is there already; otherwise it is built here, with `TEST_PYTHON_IMAGE` in place of the
base image where that is set. Both take buildah. A container is the image's file system, mounted read-only in a mount
namespace of its own, with the image's user, environment, working directory and command, which are read from the image:
what an engine would do, less its network.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from attrs import Factory, define, frozen

from benchmarks.ports import free_port
from benchmarks.processes import Process
from tests.harness.server import ROOT, Server

_TOOLS = ("buildah", "chroot", "mkdir", "mount", "setpriv", "sh", "unshare")
_BUILD_SECONDS = 600

# The caller's environment is the container's, so every tool outside of the image goes by its whole path.
_ENTER = """
set -e
{mount} --make-rprivate /
{mount} --bind "$0" "$0"
{mount} -o remount,bind,ro "$0"
{mount} -t proc proc "$0/proc"
{mount} --rbind /dev "$0/dev"
{mount} -t tmpfs -o mode=1777 tmpfs "$0/tmp"
{mount} --bind "$1" "$0/data"
{mount} -t tmpfs -o mode=755 tmpfs "$0/run"
root=$0
user=$2
folder=$3
shift 3
while [ "$1" != -- ]; do
    {mkdir} -p "$root$2"
    {mount} --bind "$1" "$root$2"
    {mount} -o remount,bind,ro "$root$2"
    shift 2
done
shift
exec {setpriv} --no-new-privs --inh-caps=-all {chroot} --userspec="$user" --groups= "$root" env -C "$folder" "$@"
"""


class Missing(Exception):
    """This machine cannot build or run images; the message says what is missing."""


@frozen
class Image:
    """An image, unpacked.

    Attributes:
        name: where buildah has it.
        root: its file system.
        config: what it says about running it, as the OCI image specification has it.
    """

    name: str
    root: Path
    config: Mapping[str, Any]

    @property
    def environment(self) -> dict[str, str]:
        """The variables that the image sets."""
        return dict(entry.split("=", 1) for entry in self.config["Env"])

    @property
    def size(self) -> int:
        """Bytes of all its files."""
        files = (path.lstat() for path in self.root.rglob("*") if path.is_file() and not path.is_symlink())
        return sum(status.st_blocks * 512 for status in files)


def _buildah(*arguments: str, timeout: float = 120) -> str:
    command = ["buildah", "--storage-driver", "vfs", *arguments]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        check=False,
        timeout=timeout,
        env={**os.environ, "BUILDAH_ISOLATION": "chroot"},
    )
    if done.returncode:
        raise RuntimeError(f"{' '.join(arguments[:2])} failed:\n{done.stderr[-3000:]}")
    return done.stdout.strip()


def _build() -> str:
    name = "localhost/llm-proxy-under-test"
    base = os.environ.get("TEST_PYTHON_IMAGE")
    chosen = ("--build-arg", f"PYTHON_IMAGE={base}") if base else ()
    containerfile = str(ROOT / "containers" / "Containerfile")
    _buildah("bud", *chosen, "-t", name, "-f", containerfile, str(ROOT), timeout=_BUILD_SECONDS)
    return name


@contextmanager
def open_image() -> Iterator[Image]:
    """The image, built if need be.

    Raises:
        Missing: there is no Linux, no root, or no buildah here.
    """
    missing = [tool for tool in _TOOLS if shutil.which(tool) is None]
    if not sys.platform.startswith("linux") or os.geteuid() != 0 or missing:
        raise Missing(
            "container images are built and run by root on Linux"
            + (f", with {', '.join(missing)}: apt-get install buildah" if missing else "")
        )
    name = os.environ.get("TEST_IMAGE") or _build()
    config = json.loads(_buildah("inspect", "--type", "image", name))["OCIv1"]["config"]
    container = _buildah("from", "--pull-never", name)
    try:
        yield Image(name, Path(_buildah("mount", container)), config)
    finally:
        _buildah("rm", container)


@define
class Containers:
    """Runs containers of one image on one folder, which is mounted at /data.

    Attributes:
        image: what they are made of.
        data: the folder, owned by the image's user.
        mounts: further folders, by where they are mounted below /run; to be read only.
    """

    image: Image
    data: Path
    mounts: Mapping[str, Path] = Factory(dict)

    @contextmanager
    def running(self, settings: Mapping[str, str], *, ready: bool = True) -> Iterator[Server]:
        """The image's own command as a container, killed at the end if it still runs."""
        port = free_port()
        wanted = {"LISTEN_ADDR": f"127.0.0.1:{port}", **settings}
        config = self.image.config
        with tempfile.TemporaryDirectory(prefix="llm-proxy-container-") as name, Path(name, "output").open("wb") as out:
            command = [*config["Entrypoint"], *config["Cmd"]]
            popen = subprocess.Popen(stdout=out, **self._entering(command, wanted))
            server = Server(Process(popen), "127.0.0.1", port, Path(name), wanted)
            try:
                if ready:
                    server.wait_ready()
                yield server
            finally:
                server.kill()

    def run(self, *command: str, settings: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[str]:
        """Run another command in a container, to its end."""
        return subprocess.run(
            stdout=subprocess.PIPE,
            text=True,
            errors="replace",
            timeout=120,
            check=False,
            **self._entering(command, settings or {}),
        )

    def _entering(self, command: Sequence[str], settings: Mapping[str, str]) -> dict[str, Any]:
        """What to start so that a command runs in a container."""
        config = self.image.config
        tools = {tool: shutil.which(tool) for tool in _TOOLS}
        place = [str(self.image.root), str(self.data), config["User"], config["WorkingDir"]]
        mounts = [word for there, here in self.mounts.items() for word in (str(here), there)]
        enter = [str(tools["unshare"]), "--mount", str(tools["sh"]), "-c", _ENTER.format(**tools)]
        return {
            "args": [*enter, *place, *mounts, "--", *command],
            "env": {**self.image.environment, **settings},
            "stdin": subprocess.DEVNULL,
            "stderr": subprocess.STDOUT,
        }
