"""Takes pip, its companions and compilers out of a Python image: what runs in production installs nothing.

Runs with the image's own Python while the image is built, on the official images of Python and on Debian's packages.
"""

from __future__ import annotations

import contextlib
import shutil
import site
import sys
import sysconfig
from pathlib import Path

_PACKAGES = ("pip", "setuptools", "wheel", "pkg_resources", "_distutils_hack", "ensurepip")
_PROGRAMS = ("pip*", "wheel", "easy_install*", "gcc*", "g++*", "cc", "c++", "cpp", "make", "*-gcc", "*-g++")


def remove(path: Path) -> None:
    """Remove a file, a link or a folder."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()


def main() -> None:
    """Remove all that there is, from every place where Python and the system keep it."""
    folders = {Path(folder) for folder in [*sys.path, *site.getsitepackages(), sysconfig.get_path("stdlib")] if folder}
    for folder in folders:
        for name in _PACKAGES:
            for found in [folder / name, *folder.glob(f"{name}-*"), *folder.glob(f"{name}.*")]:
                if found.exists() or found.is_symlink():
                    remove(found)
    for folder in map(Path, ("/bin", "/usr/bin", "/usr/local/bin", str(Path(sys.executable).parent))):
        for pattern in _PROGRAMS:
            for found in list(folder.glob(pattern)):
                with contextlib.suppress(FileNotFoundError):  # /bin and /usr/bin may be one folder
                    remove(found)


if __name__ == "__main__":
    main()
