"""The seals of the projects' API keys, all together: which of them open, and bringing them under the newest key.

Reading and resealing need no pause of the servers. Each seal names its key, so a server whose `ENCRYPTION_KEY` has both
keys reads old seals and new ones; a seal is replaced only while it is still the one that was read, so that a key which
somebody sets at the same time is never overwritten.
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

#: Projects that are read at once.
_PIECE = 200
#: How often a key that somebody else keeps changing is tried.
_ATTEMPTS = 3


@frozen
class Unreadable:
    """A project whose API key does not open, and why."""

    project_id: str
    reason: str


@define
class Rotation:
    """What a rotation did, in numbers of projects.

    Attributes:
        resealed: now under the first key; with a dry run, would be.
        current: were already.
        unreadable: were left as they are.
    """

    resealed: int = 0
    current: int = 0
    unreadable: list[Unreadable] = Factory(list)


def rotate(database: Database, ring: KeyRing, *, dry_run: bool = False) -> Rotation:
    """Bring every API key under the first key of the ring. Blocks. Raises `db.errors.DatabaseError`.

    It can be cut off and run again at any time.
    """
    found = Rotation()
    for project_id, sealed in _seals(database):
        _bring_up(database, ring, project_id, sealed, found, dry_run=dry_run)
    return found


def _bring_up(
    database: Database, ring: KeyRing, project_id: str, sealed: str, found: Rotation, *, dry_run: bool
) -> None:
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
    found.unreadable.append(Unreadable(project_id, "somebody else keeps changing it; run the command again"))


@frozen
class Locked:
    """API keys that do not open with a ring.

    Attributes:
        projects: how many there are in all.
        missing: what it takes to open them, in words, with the number of projects that need it.
    """

    projects: int
    missing: Counter[str]

    @property
    def all_of_them(self) -> bool:
        """Whether not one project can be used: the wrong key, beyond doubt."""
        return 0 < self.projects == self.missing.total()

    def __str__(self) -> str:
        """A clause for people, such as `the API keys of 2 of 3 projects need the key with the id 1a2b3c4d`."""
        needs = " and ".join(f"{what} ({count})" for what, count in sorted(self.missing.items()))
        return f"the API keys of {self.missing.total()} of {self.projects} projects need {needs}"


def find_locked(database: Database, ring: KeyRing) -> Locked | None:
    """Find the API keys that the ring has no key for; None where it has all. Blocks, and decrypts nothing."""
    whole = 0
    missing: Counter[str] = Counter()
    for _, sealed in _seals(database):
        whole += 1
        if (need := ring.missing(sealed)) is not None:
            missing[need] += 1
    return Locked(whole, missing) if missing else None


def _seals(database: Database) -> Iterator[tuple[str, str]]:
    after = ""
    while page := database.read_now(projects.seals, after, _PIECE):
        yield from page
        after = page[-1][0]
