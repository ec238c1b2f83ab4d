"""Structured logs: one line per event, JSON or text, to stderr or to a file.

All logs of the process go through this module: our own events (structlog), those of libraries (the standard library's
`logging`) and one line per request. Every line is redacted, and no line is divided between two `write` calls, so that
lines of several processes do not mix. A line that cannot be written at once is dropped: a full disk or a stopped reader
costs lines, which are counted, and never a request.
"""

from __future__ import annotations

import json
import logging
import re
import time
from collections.abc import Callable, Iterable, Iterator, MutableMapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, Literal, Self, cast

import msgspec
import structlog
import trio
from structlog.typing import FilteringBoundLogger, Processor

from db.records import Result
from llm_proxy.logging.redaction import Redactor
from llm_proxy.logging.sink import LogError, Sink

__all__ = ["Form", "Level", "Log", "LogError", "RequestLine", "configure", "logger"]

Level = Literal["debug", "info", "warning", "error"]
Form = Literal["json", "text"]

_LEVELS: Final = {"debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}

# Libraries whose logs do not help an operator, or show too much: SQLAlchemy prints bound values.
_QUIET: Final = (
    *("alembic", "botocore", "google", "hypercorn.access", "httpx", "httpcore", "sqlalchemy", "hpack", "urllib3"),
)

_FAILURES: Final = frozenset({"upstream_error", "upstream_timeout", "proxy_error", "unknown"})
# Fields of a request's line whose value is not ours, or a sentence.
_FOREIGN: Final = frozenset(
    {"method", "path", "reason", "model", "requested_model", "service_tier", "labels", "provider_request_id"}
)
LONGEST_PATH: Final = 1024
_LONGEST_MODEL: Final = 128


class RequestLine(msgspec.Struct, omit_defaults=True, gc=False):
    """The first part of a request's log line; a `Result` or `Refusal` follows. Fields with their default are left out.

    `path` is shown without its query. `client` is the client's address: behind `TRUSTED_PROXIES`, the one that they
    name. `code` is the error code if the proxy itself refused the request, `reason` what the provider did wrong.
    `limit_id` is the limit that refused it.
    """

    request_id: str
    method: str
    path: str
    provider: str = ""
    token_id: str = ""
    project_id: str = ""
    client: str = ""
    code: str = ""
    reason: str = ""
    limit_id: str = ""


class Refusal(msgspec.Struct, kw_only=True, omit_defaults=True, gc=False):
    """How a request ended that was not admitted. `model` is what it asked for, if its token is known."""

    outcome: Literal["refused"]
    status: int
    model: str = ""
    duration_us: int = 0
    request_bytes: int = 0


class Log:
    """The process's log. Made by `configure`; a context manager that closes its file."""

    __slots__ = ("_clock", "_encode", "_redactor", "_show_failures", "_show_requests", "_sink", "_write")

    def __init__(self, sink: Sink, redactor: Redactor, level: Level, form: Form) -> None:
        """Write request lines to `sink` if `level` includes them: info, and warning for failed requests."""
        self._sink = sink
        self._write = sink.write
        self._redactor = redactor
        self._clock = Clock()
        self._encode = _json_line if form == "json" else _text_line
        self._show_requests = _LEVELS[level] <= logging.INFO
        self._show_failures = _LEVELS[level] <= logging.WARNING

    def request(self, line: RequestLine, result: Result | Refusal) -> None:
        """Log one request that has ended. Never raises, and changes `line`."""
        status = result.status
        failed = result.outcome in _FAILURES or (status is not None and status >= 500)
        if not (self._show_failures if failed else self._show_requests):
            return
        try:
            line.path = self.path(line.path.partition("?")[0][:LONGEST_PATH])
            for name in ("model", "requested_model"):
                if model := getattr(result, name, ""):
                    shown = self._redactor.path(model[:_LONGEST_MODEL])
                    if shown != model:
                        result = msgspec.structs.replace(result, **{name: shown})
            if line.reason:
                line.reason = self._redactor.text(line.reason)
            second, stamp = self._clock.now()
            self._write(self._encode(stamp, "warning" if failed else "info", line, result), second)
        except Exception:  # noqa: BLE001 (a request must not fail for its log line)
            self._sink.lost += 1

    def path(self, path: str) -> str:
        """The path of a request without credentials, as the log and the ledger record it."""
        return self._redactor.path(path)

    @contextmanager
    def writing_together(self) -> Iterator[None]:
        """Meanwhile, requests that end in one pass of trio's scheduler have their lines written together, behind it."""
        writer = _Writer(self._sink)
        trio.lowlevel.add_instrument(writer)
        self._write = self._sink.hold
        try:
            yield
        finally:
            self._write = self._sink.write
            trio.lowlevel.remove_instrument(writer)
            self._sink.flush()

    @property
    def lines_lost(self) -> int:
        return self._sink.lost

    def close(self) -> None:
        self._sink.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class _Writer(trio.abc.Instrument):
    """Writes the lines that a sink holds before trio waits for something."""

    def __init__(self, sink: Sink) -> None:
        self._sink = sink

    def before_io_wait(self, timeout: float) -> None:
        self._sink.flush()


class Clock:
    """Formats the time for log lines: RFC 3339 in UTC with milliseconds; the slow part is cached for a second."""

    __slots__ = ("_cached",)

    def __init__(self) -> None:
        self._cached = (0, "")

    def now(self) -> tuple[int, str]:
        """Return the second since the epoch, and the timestamp."""
        now = time.time()
        second = int(now)
        cached = self._cached
        if cached[0] != second:
            # Replaced in one step, so that a thread never combines one second with the text of another.
            cached = self._cached = (second, time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(second)))
        return second, f"{cached[1]}.{int((now - second) * 1000):03d}Z"


def configure(
    *, level: Level = "info", form: Form = "json", path: Path | None = None, secrets: Iterable[str | None] = ()
) -> Log:
    """Set up all logging of this process; call it once at the start. Raises `LogError`.

    `level` is the lowest that is shown, `path` is None for stderr, and `secrets` are removed from every line.
    """
    sink = Sink(path)
    redactor = Redactor(secrets)
    clock = Clock()
    render: Callable[[dict[str, Any]], bytes] = msgspec.json.encode if form == "json" else _render_text

    def finish(_logger: object, _method: str, event: MutableMapping[str, Any]) -> bytes:
        try:
            second, stamp = clock.now()
            fields = dict(redactor(None, "", event))
            head = {"timestamp": stamp, "level": fields.pop("level", "info"), "event": fields.pop("event", "")}
            sink.write(render(head | fields) + b"\n", second)
        except Exception:  # noqa: BLE001 (logging must not raise)
            sink.lost += 1
        raise structlog.DropEvent  # written: nothing is left to do for the logger underneath

    chain: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.format_exc_info,
        finish,
    ]
    structlog.configure(
        processors=chain,
        wrapper_class=structlog.make_filtering_bound_logger(_LEVELS[level]),
        logger_factory=structlog.ReturnLoggerFactory(),
        cache_logger_on_first_use=False,
    )
    logging.root.handlers = [_Routed(chain[2:], sink)]
    logging.root.setLevel(_LEVELS[level])
    for name in _QUIET:
        logging.getLogger(name).setLevel(max(_LEVELS[level], logging.WARNING))
    logging.captureWarnings(capture=True)
    return Log(sink, redactor, level, form)


def logger(name: str) -> FilteringBoundLogger:
    """Return the logger of one part of the program; `name` becomes the field `source`.

    An event is a fixed text; everything that varies is in fields: `log.info("project created", id=…)`.
    """
    return cast("FilteringBoundLogger", structlog.get_logger(source=name))


class _Routed(logging.Handler):
    """Passes the log records of libraries to our processors."""

    def __init__(self, chain: list[Processor], sink: Sink) -> None:
        super().__init__()
        self._chain = chain
        self._sink = sink

    def emit(self, record: logging.LogRecord) -> None:
        try:
            event: Any = {"event": record.getMessage(), "level": record.levelname.lower(), "source": record.name}
            if record.exc_info:
                event["exc_info"] = record.exc_info
            for process in self._chain:
                event = process(None, event["level"], event)
        except structlog.DropEvent:
            return
        except Exception:  # noqa: BLE001 (a library's odd record must not fail the library)
            self._sink.lost += 1


def _render_text(fields: dict[str, Any]) -> bytes:
    stamp, level, event = fields.pop("timestamp"), fields.pop("level"), fields.pop("event")
    trace = fields.pop("exception", "")
    words = [str(stamp), f"{level:<7}", _quoted(event) if "\n" in str(event) else str(event)]
    words += [f"{name}={_quoted(value)}" for name, value in fields.items()]
    text = " ".join(words)
    if trace:
        text += "\n" + "\n".join("    " + line for line in str(trace).splitlines())
    return text.encode("utf-8", "backslashreplace")


_PLAIN_WORD: Final = re.compile(r"[!#-<>-~]+")  # printable ASCII without space, quote and equals sign


def _quoted(value: object) -> str:
    """Quote a value so that it is one value on one line, without control characters."""
    if isinstance(value, str):
        return value if _PLAIN_WORD.fullmatch(value) else json.dumps(value)
    return msgspec.json.encode(value).decode()


_encode_json: Final = msgspec.json.Encoder().encode


def _json_line(stamp: str, level: str, line: RequestLine, result: Result | Refusal) -> bytes:
    head = f'{{"timestamp":"{stamp}","level":"{level}","event":"request",'
    return b"%s%s,%s\n" % (head.encode(), _encode_json(line)[1:-1], _encode_json(result)[1:])


def _text_line(stamp: str, level: str, line: RequestLine, result: Result | Refusal) -> bytes:
    words = [f"{stamp} {level:<7} request"]
    for name, value in (msgspec.structs.asdict(line) | msgspec.structs.asdict(result)).items():
        if value is not None and value is not False and value not in ("", "request"):
            words.append(f"{name}={_quoted(value) if name in _FOREIGN else value}")
    return (" ".join(words) + "\n").encode("utf-8", "backslashreplace")
