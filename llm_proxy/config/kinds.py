"""The kinds of values that a setting can have: how each is read from text, and what to say where it cannot be.

A parser takes the text as the user wrote it and raises `ValueError` where it does not fit; the reason that the user
sees is the kind's `allowed`, so that it always says what is right rather than only what is wrong. A parser that knows
more about the fault raises `Unfit` with its own sentence.
"""

from __future__ import annotations

import difflib
import ipaddress
import re
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any, Generic, TypeVar, get_args
from urllib.parse import urlsplit

from attrs import frozen

from llm_proxy.secrets import private_file
from llm_proxy.secrets.encryption import KeyRing, KeyRingError

T = TypeVar("T")

Network = ipaddress.IPv4Network | ipaddress.IPv6Network


class Unfit(ValueError):
    """A value that does not fit, with the reason in words for the user; never raised with a secret in it."""


@frozen
class Kind(Generic[T]):
    """A kind of value: its `name` in the reference, what is `allowed` in words, and the parser."""

    name: str
    allowed: str
    parse: Callable[[str], T]


@frozen
class ListenAddress:
    """Where the server listens. An empty `host` means every interface, `port` 0 means any free port."""

    host: str
    port: int

    def __str__(self) -> str:
        """The form in which it is configured: `:8080`, `host:8080` or `[::1]:8080`."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def integer(minimum: int, maximum: int | None = None) -> Kind[int]:
    """A whole number of at least `minimum`, and at most `maximum` where given."""
    allowed = f"a whole number, {minimum} or more" if maximum is None else f"a whole number from {minimum} to {maximum}"

    def parse(text: str) -> int:
        if not re.fullmatch(r"[0-9]{1,18}", text):
            raise ValueError
        value = int(text)
        if value < minimum or (maximum is not None and value > maximum):
            raise ValueError
        return value

    return Kind("integer", allowed, parse)


def choice(options: Any) -> Kind[Any]:
    """One of the words of a `Literal`, in any case."""
    words = {word.lower(): word for word in get_args(options)}
    allowed = ("one of " if len(words) > 1 else "") + ", ".join(words.values())

    def parse(text: str) -> Any:
        try:
            return words[text.lower()]
        except KeyError:
            for close in difflib.get_close_matches(text.lower(), words, n=1):
                raise Unfit(f"allowed: {allowed}; did you mean {words[close]}?") from None
            raise ValueError from None

    return Kind(", ".join(f"`{word}`" for word in words.values()), allowed, parse)


_TRUTH = {"true": True, "1": True, "yes": True, "on": True, "false": False, "0": False, "no": False, "off": False}


def _boolean(text: str) -> bool:
    try:
        return _TRUTH[text.lower()]
    except KeyError:
        raise ValueError from None


BOOLEAN = Kind("boolean", "true or false (also yes, no, on, off, 1, 0)", _boolean)

#: Seconds in each unit of a duration: Go's units, and days.
_UNITS = {
    "ns": Decimal("1e-9"),
    "us": Decimal("1e-6"),
    "µs": Decimal("1e-6"),
    "μs": Decimal("1e-6"),
    "ms": Decimal("1e-3"),
    "s": Decimal(1),
    "m": Decimal(60),
    "h": Decimal(3600),
    "d": Decimal(86400),
}
_NUMBER = r"[0-9]{1,15}(?:\.[0-9]{1,9})?"
_DURATION_PART = re.compile(rf"({_NUMBER})(ns|us|µs|μs|ms|s|m|h|d)")


def parse_duration(text: str) -> float:
    """Read a duration in Go's notation (`1h30m`, `500ms`; `d` for days too) or plain seconds (`90`), in seconds.

    Raises `ValueError` for anything else, negative durations included.
    """
    if re.fullmatch(_NUMBER, text):
        return float(text)
    if not re.fullmatch(rf"(?:{_DURATION_PART.pattern})+", text):
        raise ValueError("not a duration")
    return float(sum(Decimal(number) * _UNITS[unit] for number, unit in _DURATION_PART.findall(text)))


def duration(*, zero: bool = False) -> Kind[float]:
    """A duration in seconds; 0 is refused unless `zero`."""

    def parse(text: str) -> float:
        value = parse_duration(text)
        if value == 0 and not zero:
            raise ValueError
        return value

    least = "" if zero else " above zero"
    return Kind("duration", f"a duration{least} such as 1h30m, 90s, 500ms, or a number of seconds", parse)


_SIZES = {"": 1, "B": 1}
_SIZES |= {f"{letter}B": 1000**power for power, letter in enumerate("KMGT", start=1)}
_SIZES |= {f"{letter}IB": 1024**power for power, letter in enumerate("KMGT", start=1)}


def _size(text: str) -> int:
    match = re.fullmatch(rf"({_NUMBER}) ?([A-Za-z]*)", text)
    if match is None or match[2].upper() not in _SIZES:
        raise ValueError
    value = int(Decimal(match[1]) * _SIZES[match[2].upper()])
    if value == 0:
        raise ValueError
    return value


SIZE = Kind("size", "a size above zero such as 10MB, 512KiB, or a number of bytes", _size)


def _text(text: str) -> str:
    return text


TEXT = Kind("text", "text", _text)

PATH = Kind("path", "a path", Path)


def _existing_file(text: str) -> Path:
    path = Path(text)
    if not path.is_file():
        raise Unfit("it is a folder, and must be a file" if path.is_dir() else "there is no such file")
    return path


EXISTING_FILE = Kind("path", "the path of a file that exists", _existing_file)


def _key_file(text: str) -> Path:
    path = _existing_file(text)
    try:
        private_file.check(path)
    except private_file.ExposedFile as error:
        raise Unfit(f"the file {error}") from None
    return path


KEY_FILE = Kind("path", "the path of a file that exists", _key_file)


def _listen_address(text: str) -> ListenAddress:
    match = re.fullmatch(r"(?:\[([0-9A-Fa-f:.]+)\]|([A-Za-z0-9._-]*)):([0-9]{1,5})", text)
    if match is None or int(match[3]) > 65535:
        raise ValueError
    if match[1]:
        return ListenAddress(str(ipaddress.IPv6Address(match[1])), int(match[3]))
    return ListenAddress(match[2], int(match[3]))


LISTEN_ADDRESS = Kind("address", ":port, host:port or [IPv6 address]:port, such as 127.0.0.1:8080", _listen_address)


def _items(text: str) -> list[str]:
    return [item for item in (part.strip() for part in text.split(",")) if item]


def _shown(item: str) -> str:
    """An item of a list, for people; one that may hold a password is not shown."""
    return "an item" if "@" in item else repr(item)


def _networks(text: str) -> tuple[Network, ...]:
    networks: list[Network] = []
    for item in _items(text):
        try:
            networks.append(ipaddress.ip_network(item))
        except ValueError:
            raise Unfit(f"{_no_network(item)}; allowed: a comma-separated list such as 10.0.0.0/8, 127.0.0.1") from None
    return tuple(networks)


def _no_network(item: str) -> str:
    try:
        network = ipaddress.ip_interface(item).network
    except ValueError:
        return f"{_shown(item)} is no address or network"
    return f"{item!r} is an address within the network {network}"


NETWORKS = Kind("list of networks", "a comma-separated list of networks such as 10.0.0.0/8, ::1", _networks)


_ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://(?:\[[0-9a-f:.]+\]|[a-z0-9._-]+)(?::[0-9]{1,5})?")


#: Ports that browsers leave out.
_USUAL_PORTS = {"http": ":80", "https": ":443"}


def _origins(text: str) -> tuple[str, ...]:
    origins: list[str] = []
    for item in _items(text):
        origin = item.lower()
        if origin != "*" and not _ORIGIN.fullmatch(origin):
            raise Unfit(
                f"{_shown(origin)} is no origin; allowed: * or a comma-separated list such as https://app.example.com"
            )
        origins.append(origin.removesuffix(_USUAL_PORTS.get(origin.partition("://")[0], "")))
    return tuple(origins)


ORIGINS = Kind("list of origins", "* or a comma-separated list of origins such as https://app.example.com", _origins)


def _route(text: str) -> str:
    if not re.fullmatch(r"(?:/[A-Za-z0-9._~-]+)+", text) or any(set(part) <= {"."} for part in text.split("/")[1:]):
        raise ValueError
    return text


ROUTE = Kind("URL path", "a path such as /metrics, beginning with / and not ending with it", _route)


def _base_url(text: str) -> str:
    parts = urlsplit(text)
    if parts.scheme not in ("http", "https") or not parts.hostname or re.search(r"[\s\\]|[^\x21-\x7e]", text):
        raise ValueError
    if parts.username is not None or parts.password is not None or parts.query or parts.fragment:
        raise ValueError
    _ = parts.port  # raises ValueError where it is no port number
    return text.rstrip("/")


BASE_URL = Kind("URL", "an http or https URL without user or query, such as https://api.openai.com", _base_url)


def _header_word(text: str) -> str:
    if not re.fullmatch(r"[\x21-\x7e]+", text):
        raise ValueError
    return text


HEADER_WORD = Kind("text", "visible ASCII characters without spaces, because it travels in a header", _header_word)


def _keys(text: str) -> str:
    try:
        KeyRing.from_setting(text)
    except KeyRingError as error:
        raise Unfit(f"{error}; allowed: {_KEYS_ALLOWED}") from None
    return text


_KEYS_ALLOWED = "base64 of 32 bytes (openssl rand -base64 32), or several, separated by commas"

KEYS = Kind("base64 list", _KEYS_ALLOWED, _keys)
