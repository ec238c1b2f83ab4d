"""What is wrong with the configuration, in words for the person who wrote it."""

from __future__ import annotations

from collections.abc import Sequence

from attrs import frozen


@frozen
class Problem:
    """One wrong setting.

    Attributes:
        subject: what it is about: a setting's name with its value (`WORKERS='0'`), or a place in a file; empty where
            the reason says it.
        reason: what is wrong, and what would be right; never holds a secret.
    """

    subject: str
    reason: str

    def __str__(self) -> str:
        """`subject: reason`, on one line."""
        return f"{self.subject}: {self.reason}" if self.subject else self.reason


class SettingsError(Exception):
    """The configuration is wrong; holds every problem that was found, so that one edit can mend them all."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        """Take the problems in the order in which they are to be shown."""
        self.problems = tuple(problems)
        super().__init__(self.problems)

    def __str__(self) -> str:
        """One line for one problem, a short list for several."""
        if len(self.problems) == 1:
            return str(self.problems[0])
        lines = [f"{len(self.problems)} settings are wrong:"]
        return "\n  ".join([*lines, *map(str, self.problems)])
