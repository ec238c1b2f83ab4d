"""Checks of the database for `/ready`, for the metrics and at the start."""

from __future__ import annotations
