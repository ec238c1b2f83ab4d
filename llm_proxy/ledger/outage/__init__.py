"""Going on while the database is away: the token cache and the spool."""

from __future__ import annotations
