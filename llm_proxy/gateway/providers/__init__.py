"""The providers: how each is reached, authenticated and read."""

from __future__ import annotations
