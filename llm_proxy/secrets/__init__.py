"""Encryption of API keys at rest, the rotation of their keys, and files that only their owner may read."""

from __future__ import annotations
