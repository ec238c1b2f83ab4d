"""Structured logs and the request log, without secrets and without blocking the event loop.

- `log`: loggers, formats, and the line of a request
- `redaction`: keeps secrets out
- `sink`: the file or stderr
"""
