"""Stage directions: request headers that tell a scriptable provider how to behave, or to misbehave.

    x-scripted-status: 429     answer with this status; an error in the provider's shape from 400 on
    x-scripted-delay: 0.5      seconds before the head of the response
    x-scripted-gap: 0.02       seconds between the pieces of a streamed body
    x-scripted-chunks: 20      text pieces in the answer, or pieces of an echoed body
    x-scripted-abort: 3        disconnect after that many pieces of the body; 0: before the head
    x-scripted-echo: 1         answer with the very bytes of the request's body, and with its head in
                               `x-scripted-received` (base64 of a JSON object: method, target, headers)

A direction that does not exist, or whose value makes no sense, is answered with 400.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

from attrs import frozen

PREFIX = b"x-scripted-"
MAX_CHUNKS = 100_000


class BadDirection(ValueError):
    """A direction whose value makes no sense."""


@frozen
class Directions:
    """The directions of one request; times are seconds."""

    status: int | None = None
    delay: float = 0.0
    gap: float | None = None
    chunks: int | None = None
    abort: int | None = None
    echo: bool = False


NONE = Directions()


def _seconds(name: str, text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value <= 3600:
        raise BadDirection(f"x-scripted-{name}: expected seconds between 0 and 3600, got {text!r}")
    return value


def _number(name: str, text: str, least: int, most: int) -> int:
    value = int(text) if text.isascii() and text.isdigit() else -1
    if not least <= value <= most:
        raise BadDirection(f"x-scripted-{name}: expected a number between {least} and {most}, got {text!r}")
    return value


def read_directions(headers: Iterable[tuple[bytes, bytes]]) -> Directions:
    """Read the directions from a request's headers (lower-case names); raises BadDirection."""
    given = {
        name[len(PREFIX) :].decode("latin-1"): value.decode("latin-1").strip()
        for name, value in headers
        if name.startswith(PREFIX)
    }
    if not given:
        return NONE
    status = delay = gap = chunks = abort = None
    echo = False
    for name, text in given.items():
        match name:
            case "status":
                status = _number(name, text, 100, 999)
            case "delay":
                delay = _seconds(name, text)
            case "gap":
                gap = _seconds(name, text)
            case "chunks":
                chunks = _number(name, text, 1, MAX_CHUNKS)
            case "abort":
                abort = _number(name, text, 0, MAX_CHUNKS)
            case "echo":
                echo = text not in {"", "0"}
            case _:
                raise BadDirection(f"x-scripted-{name}: there is no such direction")
    return Directions(status=status, delay=delay or 0.0, gap=gap, chunks=chunks, abort=abort, echo=echo)
