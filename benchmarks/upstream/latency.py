"""Delays as the command line names them: `5ms`, `uniform:1ms-20ms`, `exponential:20ms`, `lognormal:20ms,0.5`."""

from __future__ import annotations

import math
import random
import re
from collections.abc import Callable

#: Draws one delay, in seconds.
Delay = Callable[[random.Random], float]

_DURATION = re.compile(r"(\d+(?:\.\d+)?)(us|ms|s)?")
_UNITS = {"us": 1e-6, "ms": 1e-3, "s": 1.0, None: 1.0}


def seconds(text: str) -> float:
    """Read `250us`, `5ms`, `1.5s` or plain seconds; raises ValueError."""
    found = _DURATION.fullmatch(text.strip())
    if found is None:
        raise ValueError(f"not a duration: {text!r} (say 250us, 5ms or 1.5s)")
    return float(found.group(1)) * _UNITS[found.group(2)]


def delay(text: str) -> Delay | None:
    """Read a distribution; None stands for no delay at all. Raises ValueError."""
    kind, colon, rest = text.partition(":")
    if not colon:
        fixed = seconds(text)
        return (lambda _: fixed) if fixed else None
    if kind == "uniform":
        low, high = (seconds(part) for part in rest.split("-", 1))
        return lambda source: source.uniform(low, high)
    if kind == "exponential":
        mean = seconds(rest)
        return lambda source: source.expovariate(1 / mean)
    if kind == "lognormal":
        median, sigma = rest.split(",", 1)
        centre, width = math.log(seconds(median)), float(sigma)
        return lambda source: source.lognormvariate(centre, width)
    raise ValueError(f"no such distribution: {kind!r} (uniform, exponential, lognormal)")
