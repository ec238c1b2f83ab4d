"""Kinds of values, shared by the settings, the provider file, the management API and the command line.

A kind reads one value from text, and says what is allowed.
"""

from __future__ import annotations

import difflib
import ipaddress
import re
import unicodedata
from collections.abc import Callable, Collection
from decimal import Decimal
from pathlib import Path
from typing import Any, Final, Generic, TypeVar, get_args
from urllib.parse import urlsplit

from attrs import frozen

from llm_proxy.logging.redaction import redact
from llm_proxy.secrets import private_file
from llm_proxy.secrets.encryption import KeyRing, KeyRingError

T = TypeVar("T")

Network = ipaddress.IPv4Network | ipaddress.IPv6Network

#: Longest part of a wrong value that is shown.
_SHOWN: Final = 80
#: A text in the form of an API key without a prefix, as those of Azure, Cohere, Mistral and Together.
_KEY: Final = re.compile(r"(?=[^0-9]*[0-9])(?=[^A-Za-z]*[A-Za-z])[A-Za-z0-9_+=-]{28,}")


class InvalidValue(ValueError):
    """A value is not valid; the message says why or what is allowed, and never contains a secret."""


@frozen
class Kind(Generic[T]):
    """A kind of value.

    Attributes:
        name: in the reference of the settings.
        allowed: completes "allowed: …" and "must be …".
        parse: reads the value. Raises `InvalidValue` with a reason, or another `ValueError` or `LookupError` without.
        secret: a wrong value is not shown.
    """

    name: str
    allowed: str
    parse: Callable[[str], T]
    secret: bool = False

    def read(self, text: str) -> T:
        try:
            return self.parse(text)
        except InvalidValue:
            raise
        except (ValueError, LookupError):
            raise InvalidValue(f"allowed: {self.allowed}") from None


def may_hide_secret(text: str) -> bool:
    """Whether a wrong value may contain a password before an @, or a key in the query of a URL, or may be a key."""
    return "@" in text or ("?" in text and ("://" in text or "=" in text)) or _KEY.fullmatch(text) is not None


def quoted(text: str) -> str:
    """Show a wrong value in one short line without credentials; `(hidden)` if it may contain a password."""
    if may_hide_secret(text):
        return "(hidden)"
    text = redact(text)
    return repr(text if len(text) <= _SHOWN else text[:_SHOWN] + "…")


def assignment(name: str, text: str, *, secret: bool = False) -> str:
    return f"{name} (value hidden)" if secret or may_hide_secret(text) else f"{name}={quoted(text)}"


def did_you_mean(text: str, known: Collection[str]) -> str:
    lower = {word.lower(): word for word in known}
    similar = difflib.get_close_matches(text.lower(), lower, n=1)
    return f"; did you mean {lower[similar[0]]}?" if similar else ""


def integer(minimum: int, maximum: int) -> Kind[int]:
    def parse(text: str) -> int:
        if not re.fullmatch(r"[0-9]{1,18}", text) or not minimum <= int(text) <= maximum:
            raise ValueError
        return int(text)

    return Kind("integer", f"a whole number from {minimum} to {maximum}", parse)


def choice(literal: Any) -> Kind[Any]:
    """One of the words of a `Literal`, in upper or lower case."""
    options = get_args(literal)
    allowed = ("one of " if len(options) > 1 else "") + ", ".join(options)

    def parse(text: str) -> Any:
        found = [option for option in options if option.lower() == text.lower()]
        if not found:
            raise InvalidValue(f"allowed: {allowed}{did_you_mean(text, options)}")
        return found[0]

    return Kind(", ".join(f"`{option}`" for option in options), allowed, parse)


_TRUTH = {"true": True, "1": True, "yes": True, "on": True, "false": False, "0": False, "no": False, "off": False}


BOOLEAN = Kind("boolean", "true or false (also yes, no, on, off, 1, 0)", lambda text: _TRUTH[text.lower()])

#: Seconds in each unit of a duration: Go's units (with both characters for micro), and days.
_UNITS = dict.fromkeys(("us", "µs", "μs"), Decimal("1e-6")) | {"ns": Decimal("1e-9"), "ms": Decimal("1e-3")}
_UNITS |= {"s": Decimal(1), "m": Decimal(60), "h": Decimal(3600), "d": Decimal(86400)}
_NUMBER = r"[0-9]{1,15}(?:\.[0-9]{1,9})?"
_DURATION_PART = re.compile(rf"({_NUMBER})(ns|us|µs|μs|ms|s|m|h|d)")


def parse_duration(text: str) -> float:
    """Read a duration as Go writes it (`1h30m`, `500ms`; also `d` for days) or as a number of seconds.

    Returns seconds. Raises `ValueError` for anything else, also for a negative duration.
    """
    if re.fullmatch(_NUMBER, text):
        return float(text)
    if not re.fullmatch(rf"(?:{_DURATION_PART.pattern})+", text):
        raise ValueError("not a duration")
    return float(sum(Decimal(number) * _UNITS[unit] for number, unit in _DURATION_PART.findall(text)))


def duration(*, zero: bool = False) -> Kind[float]:
    """A duration in seconds; `zero` allows 0."""

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

TEXT = Kind[str]("text", "text", str)

#: Control characters, surrogates, line and paragraph separators.
_INVISIBLE: Final = frozenset({"Cc", "Cs", "Zl", "Zp"})


def line_of_text(shortest: int, longest: int) -> Kind[str]:
    """Text for people, in any script, on one line."""

    def parse(text: str) -> str:
        if not shortest <= len(text) <= longest or text != text.strip():
            raise ValueError
        if any(unicodedata.category(character) in _INVISIBLE for character in text):
            raise ValueError
        return text

    length = f"{shortest} to {longest}" if shortest else f"up to {longest}"
    allowed = f"text of {length} characters, without control characters and without space at its ends"
    return Kind("text", allowed, parse)


def matching(pattern: str) -> Callable[[str], str]:
    def parse(text: str) -> str:
        if not re.fullmatch(pattern, text):
            raise ValueError
        return text

    return parse


def header_text(longest: int) -> Kind[str]:
    allowed = f"1 to {longest} printable ASCII characters without spaces"
    return Kind("text", allowed, matching(rf"[!-~]{{1,{longest}}}"))


HEADER_NAME = Kind("header", "the name of a header such as x-team", matching(r"[A-Za-z][A-Za-z0-9-]*"))

PATH = Kind("path", "a path", Path)


def _existing_file(text: str) -> Path:
    path = Path(text)
    if not path.is_file():
        raise InvalidValue("it is a folder, and must be a file" if path.is_dir() else "there is no such file")
    return path


EXISTING_FILE = Kind("path", "the path of a file that exists", _existing_file)


def _key_file(text: str) -> Path:
    path = _existing_file(text)
    try:
        private_file.check(path)
    except private_file.ExposedFile as error:
        raise InvalidValue(f"the file {error}") from None
    return path


KEY_FILE = Kind("path", "the path of a file that exists", _key_file)


@frozen
class ListenAddress:
    """An address to listen on. An empty `host` means every interface, `port` 0 means any free port."""

    host: str
    port: int

    def __str__(self) -> str:
        """`:8080`, `host:8080` or `[::1]:8080`, as it is configured."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def _listen_address(text: str) -> ListenAddress:
    match = re.fullmatch(r"(?:\[([0-9A-Fa-f:.]+)\]|([A-Za-z0-9._-]*)):([0-9]{1,5})", text)
    if match is None or int(match[3]) > 65535:
        raise ValueError
    if match[1]:
        return ListenAddress(str(ipaddress.IPv6Address(match[1])), int(match[3]))
    return ListenAddress(match[2], int(match[3]))


LISTEN_ADDRESS = Kind("address", ":port, host:port or [IPv6 address]:port, such as 127.0.0.1:8080", _listen_address)


def _network(text: str) -> Network:
    try:
        return ipaddress.ip_network(text)
    except ValueError:
        network = ipaddress.ip_interface(text).network
        raise InvalidValue(f"is an address in the network {network}") from None


_ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://(?:\[[0-9a-f:.]+\]|[a-z0-9._-]+)(?::[0-9]{1,5})?")

#: Browsers leave these ports out.
_DEFAULT_PORTS = {"http": ":80", "https": ":443"}


def _origin(text: str) -> str:
    origin = text.lower()
    if origin != "*" and not _ORIGIN.fullmatch(origin):
        raise ValueError
    return origin.removesuffix(_DEFAULT_PORTS.get(origin.partition("://")[0], ""))


#: An origin as browsers send it.
ORIGIN = Kind("origin", "* or an origin such as https://app.example.com", _origin)


def comma_separated(name: str, example: str, parse: Callable[[str], T]) -> Kind[tuple[T, ...]]:
    """A list, possibly empty; `parse` reads one item."""
    allowed = f"a comma-separated list such as {example}"

    def parse_all(text: str) -> tuple[T, ...]:
        values = []
        for item in filter(None, (item.strip() for item in text.split(","))):
            try:
                values.append(parse(item))
            except ValueError as error:
                reason = str(error) if isinstance(error, InvalidValue) else "is not valid"
                raise InvalidValue(f"item {quoted(item)} {reason}; allowed: {allowed}") from None
        return tuple(values)

    return Kind(name, allowed, parse_all)


NETWORKS = comma_separated("list of networks", "10.0.0.0/8, 127.0.0.1", _network)
ORIGINS = comma_separated("list of origins", "https://app.example.com, https://www.example.com; or *", _origin)

#: Without dot segments.
ROUTE = Kind(
    "URL path",
    "a path such as /metrics, with / at its beginning and not at its end",
    matching(r"(?:/(?!\.+(?:/|\Z))[A-Za-z0-9._~-]+)+"),
)

_HOST = re.compile(r"[a-z0-9_](?:[a-z0-9._-]*[a-z0-9_])?|[0-9a-f:.]*:[0-9a-f:.]*")


def _base_url(text: str) -> str:
    if not re.fullmatch(r"[!-~]+", text) or "\\" in text:
        raise InvalidValue("a base URL has visible ASCII characters only; write an international host as xn--…")
    try:
        parts = urlsplit(text)
        port = parts.port
    except ValueError:
        raise InvalidValue(_BAD_HOST) from None
    if parts.scheme not in ("http", "https"):
        raise InvalidValue("a base URL begins with https:// or http://")
    if "@" in parts.netloc:
        raise InvalidValue("a base URL has no user and no password")
    if "?" in text or "#" in text:
        raise InvalidValue("a base URL has no query and no fragment")
    if not _HOST.fullmatch(parts.hostname or "") or port == 0:
        raise InvalidValue(_BAD_HOST)
    return text.rstrip("/")


_BAD_HOST = "its host or port is not valid; write it like https://api.example.com:8443"


def _public_url(text: str) -> str:
    url = _base_url(text)
    if urlsplit(url).path:
        raise InvalidValue("it has a path; write scheme and host only, like https://llm.example.com")
    return url


PUBLIC_URL = Kind("URL", "scheme and host, such as https://llm.example.com", _public_url)

BASE_URL = Kind("URL", "an http or https URL without user and query, such as https://api.openai.com", _base_url)


def _keys(text: str) -> str:
    try:
        KeyRing.from_setting(text)
    except KeyRingError as error:
        raise InvalidValue(f"{error}; allowed: {KEYS.allowed}") from None
    return text


KEYS = Kind("base64 list", "base64 of 32 bytes (openssl rand -base64 32), or several, separated by commas", _keys)


#: Maximum number of labels of a token, and of a request.
MAX_LABELS: Final = 16
#: Maximum number of keys that the hourly sums distinguish.
MAX_LABEL_KEYS: Final = 5
LABEL_KEY: Final = re.compile(r"[a-z][a-z0-9_.-]{0,31}")
_LONGEST_LABEL: Final = 128
_HEADER_NAME: Final = re.compile(r"[A-Za-z0-9-]{1,64}")


def _label_key(text: str) -> str:
    if not LABEL_KEY.fullmatch(text):
        raise ValueError
    return text


def _label_keys(text: str) -> tuple[str, ...]:
    keys = tuple(dict.fromkeys(_LABEL_KEY_LIST.parse(text)))
    if len(keys) > MAX_LABEL_KEYS:
        raise InvalidValue(f"has {len(keys)} keys; allowed: at most {MAX_LABEL_KEYS}")
    return keys


def _label_header(text: str) -> tuple[str, str]:
    name, _, key = text.partition("=")
    if not _HEADER_NAME.fullmatch(name):
        raise ValueError
    return name.lower(), _label_key(key)


def labels(value: object) -> dict[str, str]:
    """Check labels, by key. Raises `ValueError`."""
    if not isinstance(value, dict) or len(value) > MAX_LABELS:
        raise ValueError
    for key, label in value.items():
        _label_key(key)
        if not isinstance(label, str) or not 1 <= len(label) <= _LONGEST_LABEL or not label.isprintable():
            raise ValueError
    return value


_LABEL_KEY_LIST: Final = comma_separated("label keys", "user, team", _label_key)
LABEL_KEYS = Kind("label keys", f"{_LABEL_KEY_LIST.allowed}, with at most {MAX_LABEL_KEYS} keys", _label_keys)
LABEL_HEADERS = comma_separated("headers of labels", "X-User=user, X-Feature=feature", _label_header)
#: Labels, by key.
LABELS: Kind[dict[str, str]] = Kind(
    "labels",
    f"at most {MAX_LABELS} labels, each with a key of 1 to 32 lower-case letters, digits, '_', '-' and '.' (a letter "
    f"first) and a value of 1 to {_LONGEST_LABEL} printable characters",
    labels,
)
