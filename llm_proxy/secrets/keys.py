"""The API keys of all projects: which keys they need, and key rotation.

Servers can run during a rotation. Each sealed API key names its encryption key, so a server with both keys in
`ENCRYPTION_KEY` reads old and new ones. A value is replaced only if it has not changed since it was read.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import TYPE_CHECKING

from attrs import Factory, define, frozen

from db.queries import projects
from llm_proxy.secrets.encryption import KeyRing, SealError

if TYPE_CHECKING:
    from db.database import Database

#: Projects per query.
_PIECE = 200
#: Attempts for a value that others change at the same time.
_ATTEMPTS = 3


@frozen
class Unreadable:
    """A project whose API key cannot be decrypted."""

    project_id: str
    reason: str


@define
class Rotation:
    """Projects by their API key: encrypted again (with `dry_run`, would be), under the first key before, unreadable."""

    resealed: int = 0
    current: int = 0
    unreadable: list[Unreadable] = Factory(list)


def rotate(database: Database, ring: KeyRing, *, dry_run: bool = False) -> Rotation:
    """Encrypt every API key under the first key of the ring. Blocks. It can be interrupted and repeated."""
    found = Rotation()
    for project_id, sealed in _sealed_keys(database):
        _reseal(database, ring, project_id, sealed, found, dry_run=dry_run)
    return found


def _reseal(database: Database, ring: KeyRing, project_id: str, sealed: str, found: Rotation, *, dry_run: bool) -> None:
    for _ in range(_ATTEMPTS):
        if ring.is_current(sealed):
            found.current += 1
            return
        try:
            plain = ring.open(sealed, project_id)
        except SealError as error:
            found.unreadable.append(Unreadable(project_id, str(error)))
            return
        if dry_run or database.write_now(projects.reseal, project_id, sealed, ring.seal(plain, project_id)):
            found.resealed += 1
            return
        project = database.read_now(projects.get, project_id)
        if project is None:
            return
        sealed = project.api_key
    found.unreadable.append(Unreadable(project_id, "it is changed by others at the same time; run the command again"))


@frozen
class UndecryptableKeys:
    """The number of all projects, and how many of them need something that is not configured, by its description."""

    projects: int
    missing: Counter[str]

    @property
    def all_of_them(self) -> bool:
        return 0 < self.projects == self.missing.total()

    def __str__(self) -> str:
        """A message such as `the API keys of 2 of 3 projects need the key with the id 1a2b3c4d (2)`."""
        needs = " and ".join(f"{what} ({count})" for what, count in sorted(self.missing.items()))
        return f"the API keys of {self.missing.total()} of {self.projects} projects need {needs}"


def find_locked(database: Database, ring: KeyRing) -> UndecryptableKeys | None:
    """Find API keys that need a key that the ring does not have; None if there are none. Blocks; decrypts nothing."""
    count = 0
    missing: Counter[str] = Counter()
    for _, sealed in _sealed_keys(database):
        count += 1
        if (need := ring.missing(sealed)) is not None:
            missing[need] += 1
    return UndecryptableKeys(count, missing) if missing else None


def _sealed_keys(database: Database) -> Iterator[tuple[str, str]]:
    after = ""
    while page := database.read_now(projects.seals, after, _PIECE):
        yield from page
        after = page[-1][0]
