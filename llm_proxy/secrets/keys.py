"""The stored API keys: which encryption keys they need, key rotation, and changes by servers of the release before.

Servers can run during a rotation. Each sealed API key names its encryption key, so a server with both keys in
`ENCRYPTION_KEY` reads old and new ones. A value is replaced only if it has not changed since it was read.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime

from attrs import Factory, define, evolve, frozen

from db import Connection
from db.database import Database
from db.errors import Duplicate
from db.queries import credentials, projects
from db.queries.credentials import DefaultKey, Owners
from db.records import Credential, Project
from llm_proxy.identifiers import new_id
from llm_proxy.secrets.encryption import KeyRing, SealError

#: Rows per query.
_PIECE = 200
#: Attempts for a value that others change at the same time.
_ATTEMPTS = 3


def with_key(project: Project, credential: Credential, ring: KeyRing) -> Project:
    """Give a project a copy of the key of its credential at its default provider.

    The copy is sealed for the project: servers of the release before read it. Whatever changes that key, or the default
    provider, writes the copy in the same transaction. Raises `SealError` if the key cannot be decrypted.
    """
    key = ring.open(credential.api_key, credential.id)
    return evolve(project, api_key=ring.seal(key, project.id), api_key_last4=credential.api_key_last4)


@frozen
class Unreadable:
    """An API key that cannot be decrypted: `owner` is the id of its project or credential."""

    owner: str
    reason: str


@define
class Rotation:
    """API keys: encrypted again (with `dry_run`, would be), under the first key before, unreadable."""

    resealed: int = 0
    current: int = 0
    unreadable: list[Unreadable] = Factory(list)


def rotate(database: Database, ring: KeyRing, *, dry_run: bool = False) -> Rotation:
    """Encrypt every API key under the first key of the ring. Blocks. It can be interrupted and repeated."""
    found = Rotation()
    for owners, owner, sealed in _sealed_keys(database):
        _reseal(database, ring, owners, owner, sealed, found, dry_run=dry_run)
    return found


def _reseal(
    database: Database, ring: KeyRing, owners: Owners, owner: str, sealed: str | None, found: Rotation, *, dry_run: bool
) -> None:
    for _ in range(_ATTEMPTS):
        if sealed is None:
            return
        if ring.is_current(sealed):
            found.current += 1
            return
        try:
            plain = ring.open(sealed, owner)
        except SealError as error:
            found.unreadable.append(Unreadable(owner, str(error)))
            return
        if dry_run or database.write_now(credentials.reseal, owners, owner, sealed, ring.seal(plain, owner)):
            found.resealed += 1
            return
        sealed = database.read_now(credentials.sealed_key, owners, owner)
    found.unreadable.append(Unreadable(owner, "it is changed by others at the same time; run the command again"))


@frozen
class UndecryptableKeys:
    """The number of all API keys, and how many of them need something that is not configured, by its description."""

    total: int
    missing: Counter[str]

    @property
    def all_of_them(self) -> bool:
        return 0 < self.total == self.missing.total()

    def __str__(self) -> str:
        """A message such as `2 of 3 stored API keys need the key with the id 1a2b3c4d (2)`."""
        needs = " and ".join(f"{what} ({count})" for what, count in sorted(self.missing.items()))
        return f"{self.missing.total()} of {self.total} stored API keys need {needs}"


def find_locked(database: Database, ring: KeyRing) -> UndecryptableKeys | None:
    """Find API keys that need a key that the ring does not have; None if there are none. Blocks; decrypts nothing."""
    count = 0
    missing: Counter[str] = Counter()
    for _, _, sealed in _sealed_keys(database):
        count += 1
        if (need := ring.missing(sealed)) is not None:
            missing[need] += 1
    return UndecryptableKeys(count, missing) if missing else None


def _sealed_keys(database: Database) -> Iterator[tuple[Owners, str, str]]:
    for owners in credentials.OWNERS:
        after = ""
        while page := database.read_now(credentials.sealed_keys, owners, after, _PIECE):
            for owner, sealed in page:
                yield owners, owner, sealed
            after = page[-1][0]


def adopt(database: Database, ring: KeyRing) -> int:
    """Let the credentials of projects' default providers have the keys of the projects; return how many changed.

    A server of the release before changes the key of a project, and knows no credentials. Blocks.
    """
    adopted = 0
    after = ""
    while page := database.read_now(credentials.default_keys, after, _PIECE):
        for found in page:
            if not _is_adopted(found, ring):
                # Another worker that starts at the same time may be first.
                with suppress(Duplicate):
                    adopted += database.write_now(_adopt, ring, found)
        after = page[-1].project.id
    return adopted


def _is_adopted(found: DefaultKey, ring: KeyRing) -> bool:
    project, credential = found.project, found.credential
    if credential is None:
        return False
    if (credential.id, credential.api_key) == (project.id, project.api_key):
        return True
    try:
        return ring.open(credential.api_key, credential.id) == ring.open(project.api_key, project.id)
    except SealError:
        # Nothing is known of a key that cannot be read; the check of all keys reports it.
        return True


def _adopt(connection: Connection, ring: KeyRing, found: DefaultKey) -> bool:
    used = found.credential
    locked = {} if used is None else credentials.lock(connection, [used.id])
    project = projects.get_locked(connection, found.project.id)
    if project is None or project.api_key != found.project.api_key or project.provider != found.project.provider:
        return False
    try:
        plain = ring.open(project.api_key, project.id)
    except SealError:
        return False
    now = datetime.now(UTC)
    last4 = project.api_key_last4
    if used is not None and credentials.count_users(connection, [used.id])[used.id] == 1:
        credential = locked.get(used.id)
        if credential is None or credential.api_key != used.api_key:
            return False
        sealed = ring.seal(plain, credential.id)
        credentials.change(connection, credential, {"api_key": sealed, "api_key_last4": last4}, now)
        return True
    name, identity = project.name, new_id()
    if credentials.is_name_taken(connection, name):
        name = f"{name[:200]} ({identity})"
    sealed = ring.seal(plain, identity)
    new = Credential(identity, name, project.provider, sealed, last4, active=True, created_at=now, updated_at=now)
    credentials.create(connection, new)
    used_now = credentials.of_projects(connection, [project.id])[project.id]
    others = [one for one in used_now if one.provider != new.provider]
    credentials.assign(connection, project.id, [*others, new])
    return True
