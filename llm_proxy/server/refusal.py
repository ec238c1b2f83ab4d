"""Requests that the server itself refuses, and the answers to them."""

from __future__ import annotations

import json
from http import HTTPStatus
from typing import Final

#: The code of each status.
CODES: Final = {
    400: "bad_request",
    408: "request_timeout",
    414: "uri_too_long",
    417: "expectation_failed",
    431: "headers_too_large",
    500: "internal_error",
    501: "not_implemented",
    505: "http_version_not_supported",
}

#: The statuses where the same request may succeed when it is sent again.
_TRANSIENT: Final = frozenset({408, 500})


class Refusal(Exception):
    """A request that never reaches the application, or that the application failed to answer.

    Attributes:
        status: HTTP status code.
        message: one sentence for the client.
    """

    def __init__(self, status: int, message: str) -> None:
        """Refuse with `status` and a sentence that says what is wrong."""
        self.status = status
        self.message = message
        super().__init__(f"{status} {HTTPStatus(status).phrase}: {message}")

    @property
    def body(self) -> bytes:
        """The answer as JSON, in the shape that clients of LLM APIs expect of an error."""
        error = {
            "message": self.message,
            "type": "server_error" if self.status == 500 else "invalid_request_error",
            "param": None,
            "code": CODES[self.status],
        }
        return json.dumps({"error": error}, separators=(",", ":")).encode()

    @property
    def headers(self) -> list[tuple[bytes, bytes]]:
        """The header fields that go with `body`; SDKs and Claude Code obey `X-Should-Retry`."""
        fields = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(self.body))]
        return fields if self.status in _TRANSIENT else [*fields, (b"x-should-retry", b"false")]


class PriorKnowledge(Exception):
    """The client began with HTTP/2's preface on a connection that speaks HTTP/1.1 (RFC 9113 section 3.3)."""
