"""What every answer to a wrong input must be: one that says what is wrong, and nothing of what is secret."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping
from pathlib import Path

from attrs import Factory, frozen
from click.testing import CliRunner

from llm_proxy.cli import program
from llm_proxy.config import Settings
from llm_proxy.config.sources import declared
from tests.harness.server import ENCRYPTION_KEY, MANAGEMENT_TOKEN

#: The secret in every wrong input.
CANARY = "canary-4f1c9e"
_FILES = {
    "empty": b"",
    "latin": b"\xff\xfe",
    "not.pem": b"not a certificate",
    "text.db": b"a text that is long enough to be taken for a database, had it the right first bytes " * 50,
    "wrong.env": f"WORKERS\nLOG_LEVEL=info\nLOG_LEVEL=debug\nMANAGEMENT_TOKEN='{CANARY}\n".encode(),
}
_SECRETS = (CANARY, ENCRYPTION_KEY, MANAGEMENT_TOKEN)


@frozen
class Command:
    """A command that cannot do what it is told.

    Attributes:
        says: what is wrong with it.
        arguments: of `llm-proxy`.
        line: what it says on stderr behind `error: `, exactly.
        code: its exit code.
        env: its environment.
    """

    says: str
    arguments: tuple[str, ...]
    line: str
    code: int = 2
    env: Mapping[str, str] = Factory(dict)

    def __str__(self) -> str:
        """Name the test of this row."""
        return self.says

    def check(self, folder: Path, **values: str) -> set[str]:
        """Run it in this process, in a folder with the files that are there to be named.

        Args:
            folder: an empty one.
            values: what the braces in its arguments and its line stand for.

        Returns:
            The names of the files that it has made.
        """
        for name, content in _FILES.items():
            (folder / name).write_bytes(content)
            (folder / name).chmod(0o600)
        (folder / "folder").mkdir()
        before = set(folder.iterdir())
        unset = dict.fromkeys(name for name in os.environ if name.removesuffix("_FILE") in declared(Settings))
        with contextlib.chdir(folder):
            done = CliRunner().invoke(
                program,
                [argument.format(**values) for argument in self.arguments],
                prog_name="llm-proxy",
                env={**unset, **self.env},
            )
        said, expected = (done.stderr, done.exit_code), (f"error: {self.line.format(**values)}\n", self.code)
        assert said == expected, f"{said} instead of {expected}"
        assert not done.stdout, done.stdout
        assert_fit_for_users(done.output)
        return {path.name for path in set(folder.iterdir()) - before}


def assert_fit_for_users(words: str, *secrets: str) -> None:
    """Nothing for programmers, nothing secret."""
    for wrong in ("Traceback", "internal error", *_SECRETS, *secrets):
        assert wrong not in words, f"{wrong} is in {words}"
