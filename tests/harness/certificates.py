"""Throw-away certificates, in files as servers and clients take them."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import trustme
from attrs import field, frozen


@frozen
class Authority:
    """A certificate authority for tests.

    Attributes:
        folder: where its files are.
        file: its own certificate, for those who trust it.
    """

    folder: Path
    file: Path
    _ca: trustme.CA = field(repr=False)

    @classmethod
    def make(cls, folder: Path, name: str = "authority") -> Authority:
        """A new authority with its files in a folder."""
        ca = trustme.CA()
        file = folder / f"{name}.pem"
        ca.cert_pem.write_to_path(str(file))
        return cls(folder, file, ca)

    def issue(self, name: str, *hosts: str, expired: bool = False) -> Path:
        """A certificate for hosts (names or addresses), with its key in the same file, called `name`."""
        now = datetime.now(UTC)
        leaf = self._ca.issue_cert(
            *hosts,
            common_name=name,
            not_before=now - timedelta(days=2),
            not_after=now + timedelta(days=-1 if expired else 1),
        )
        file = self.folder / f"{name}.pem"
        leaf.private_key_and_cert_chain_pem.write_to_path(str(file))
        file.chmod(0o600)
        return file
