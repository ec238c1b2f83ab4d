"""Structured logs and the request log, without secrets and without blocking the event loop."""
