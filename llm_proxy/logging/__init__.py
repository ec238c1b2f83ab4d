"""Structured logs and the request log, without secrets and without blocking the event loop."""

from __future__ import annotations
