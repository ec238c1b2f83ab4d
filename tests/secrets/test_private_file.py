from __future__ import annotations

from pathlib import Path

import pytest

from llm_proxy.secrets import private_file
from llm_proxy.secrets.private_file import ExposedFile


def test_a_secret_that_a_container_engine_mounts_may_be_readable_by_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mounted, elsewhere = tmp_path / "secrets" / "token", tmp_path / "token"
    mounted.parent.mkdir()
    for file in (mounted, elsewhere):
        file.write_text("a secret")
        file.chmod(0o444)
    monkeypatch.setattr(private_file, "_MOUNTED_SECRETS", f"{mounted.parent}/")

    private_file.check(mounted)
    link = mounted.with_name("link")
    link.symlink_to(elsewhere)
    for exposed in (elsewhere, link, mounted.parent / ".." / "token"):
        with pytest.raises(ExposedFile, match=r"mode 0444\): run chmod o-rwx "):
            private_file.check(exposed)


def test_the_command_to_type_quotes_the_name_of_the_file(tmp_path: Path) -> None:
    file = tmp_path / "my token"
    file.write_text("a secret")
    file.chmod(0o644)

    with pytest.raises(ExposedFile, match=f"run chmod o-rwx '{file}'$"):
        private_file.check(file)
