"""Pass bodies through a meter."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Callable
from typing import Any

import brotli
import zstandard

from llm_proxy.gateway.usage import Usage, UsageMeter, meter_for

JSON = (b"content-type", b"application/json")
EVENTS = (b"content-type", b"text/event-stream; charset=utf-8")

PACK: dict[bytes, Callable[[bytes], bytes]] = {
    b"gzip": gzip.compress,
    b"deflate": zlib.compress,
    b"br": brotli.compress,
    b"zstd": zstandard.compress,
}


def feed(meter: UsageMeter, piece: bytes) -> None:
    for _ in meter.feed(piece):
        pass


def metered(meter: UsageMeter, *pieces: bytes) -> Usage:
    for piece in pieces:
        feed(meter, piece)
    return meter.result()


def of_json(document: object) -> Usage:
    return metered(meter_for(200, [JSON]), document if isinstance(document, bytes) else json.dumps(document).encode())


def of_events(*events: object) -> Usage:
    text = b"".join(b"data: " + json.dumps(event).encode() + b"\n\n" for event in events)
    return metered(meter_for(200, [EVENTS]), text + b"data: [DONE]\n\n")


def of_usage(**counts: Any) -> Usage:
    return of_json({"usage": counts})
