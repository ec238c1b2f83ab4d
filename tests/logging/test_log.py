from __future__ import annotations

import json
import logging
import os
import socket
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator
from contextlib import closing
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
import structlog

from db.records import Result
from llm_proxy.logging import log
from llm_proxy.logging.log import LogError, RequestLine

CANARY = "sk-canary-0123456789abcdef"
MANAGEMENT_TOKEN = "hunter2-hunter2"


@pytest.fixture(autouse=True)
def untouched_logging() -> Iterator[None]:
    """Put the process's logging back as it was."""
    handlers = logging.root.handlers
    levels = {name: logging.getLogger(name).level for name in (None, *log._QUIET)}
    try:
        yield
    finally:
        logging.captureWarnings(capture=False)
        logging.root.handlers = handlers
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)
        structlog.reset_defaults()
        structlog.contextvars.clear_contextvars()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "proxy.log"


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def line(**fields: Any) -> tuple[RequestLine, Result]:
    usual: dict[str, Any] = {"request_id": "r1", "method": "POST", "path": "/v1/x", "outcome": "ok", "status": 200}
    known = usual | fields
    ends = {name: known.pop(name) for name in Result.__struct_fields__ if name in known}
    return RequestLine(**known), Result(**ends)


def fail(words: str) -> None:
    raise ValueError(words)


def test_an_event_is_one_json_line(path: Path) -> None:
    with log.configure(path=path):
        log.logger("manage").info("project created", id="p1", count=2)
    (event,) = lines(path)
    assert list(event) == ["timestamp", "level", "event", "source", "id", "count"]
    assert abs(datetime.fromisoformat(event.pop("timestamp")).timestamp() - time.time()) < 60
    assert event == {"level": "info", "event": "project created", "source": "manage", "id": "p1", "count": 2}


def test_a_request_is_one_json_line(path: Path) -> None:
    with log.configure(path=path) as process_log:
        process_log.request(
            *line(duration_us=1500, provider="openai", model="gpt-5", token_id="t1", project_id="p1", input_tokens=0)
        )
    (event,) = lines(path)
    assert event.pop("timestamp")
    assert event == {
        "level": "info",
        "event": "request",
        "request_id": "r1",
        "method": "POST",
        "path": "/v1/x",
        "outcome": "ok",
        "status": 200,
        "duration_us": 1500,
        "provider": "openai",
        "model": "gpt-5",
        "token_id": "t1",
        "project_id": "p1",
        "input_tokens": 0,
    }


@pytest.mark.parametrize(
    ("level", "shown"),
    [
        ("debug", ["ok", "client_closed", "upstream_error", "ok"]),
        ("info", ["ok", "client_closed", "upstream_error", "ok"]),
        ("warning", ["upstream_error", "ok"]),
        ("error", []),
    ],
)
def test_failed_requests_are_warnings(path: Path, level: log.Level, shown: list[str]) -> None:
    with log.configure(path=path, level=level) as process_log:
        process_log.request(*line())
        process_log.request(*line(outcome="client_closed", status=None))
        process_log.request(*line(outcome="upstream_error", status=None))
        process_log.request(*line(status=503))
    assert [event["outcome"] for event in lines(path)] == shown


def test_the_level_holds_for_events_and_libraries(path: Path) -> None:
    with log.configure(path=path, level="warning"):
        log.logger("x").info("hidden")
        log.logger("x").warning("shown")
        logging.getLogger("hypercorn.error").info("hidden")
        logging.getLogger("alembic").error("shown %d", 2)
    assert [(event["level"], event["event"]) for event in lines(path)] == [("warning", "shown"), ("error", "shown 2")]


def test_libraries_that_print_bound_values_stay_quiet_at_debug(path: Path) -> None:
    logging.getLogger("sqlalchemy").setLevel(logging.DEBUG)
    with log.configure(path=path, level="debug"):
        logging.getLogger("sqlalchemy.engine.Engine").info("[generated in 0.1s] ('a-digest',)")
        logging.getLogger("quart.app").debug("shown")
    assert [event["source"] for event in lines(path)] == ["quart.app"]


def test_what_is_bound_to_the_context_is_in_every_event(path: Path) -> None:
    with log.configure(path=path):
        with structlog.contextvars.bound_contextvars(request_id="r7"):
            log.logger("x").info("one")
        log.logger("x").info("two")
    assert [event.get("request_id") for event in lines(path)] == ["r7", None]


def test_no_secret_reaches_the_log(path: Path) -> None:
    forms: tuple[log.Form, ...] = ("json", "text")
    lost = 0
    for form in forms:
        with log.configure(path=path, form=form, level="debug", secrets=[MANAGEMENT_TOKEN]) as process_log:
            events = log.logger("x")
            events.info(
                f"key {CANARY}", authorization=f"Digest {CANARY[3:]}", nested={"deep": [(b"x-api-key", CANARY)]}
            )
            events.info("settings", text=f"MANAGEMENT_TOKEN={MANAGEMENT_TOKEN}", raw=CANARY.encode())
            try:
                fail(f"wrong: {CANARY} {MANAGEMENT_TOKEN}")
            except ValueError:
                events.exception("failed")
                logging.getLogger("quart.app").exception("%s", CANARY)
            logging.getLogger("hypercorn.error").warning("headers: %r", {"authorization": f"Bearer {MANAGEMENT_TOKEN}"})
            with warnings.catch_warnings():
                warnings.simplefilter("always")
                warnings.warn(f"careful with {CANARY}", stacklevel=1)
            process_log.request(*line(path=f"/v1/files/{CANARY}?key={CANARY}", model=f"{CANARY}{MANAGEMENT_TOKEN}"))
            lost += process_log.lines_lost
    text = path.read_text()
    assert text.count("ValueError: wrong: [redacted] [redacted]") == 4, "an exception is shown, without the secrets"
    assert '"path":"/v1/files/[redacted]"' in text
    for part in (CANARY, CANARY[3:], MANAGEMENT_TOKEN):
        assert part not in text
    assert lost == 0


def test_text_is_for_people(path: Path) -> None:
    with log.configure(path=path, form="text") as process_log:
        log.logger("x").warning("slow disk", seconds=1.5, where="/var/lib", note='say "hi"', ok=True)
        process_log.request(*line(model="a b"))
    event, request = (text.partition(" ")[2] for text in path.read_text().splitlines())
    assert event == 'warning slow disk source=x seconds=1.5 where=/var/lib note="say \\"hi\\"" ok=true'
    assert request == (
        'info    request request_id=r1 method=POST path=/v1/x outcome=ok status=200 model="a b"'
        " request_bytes=0 response_bytes=0"
    )


@pytest.mark.parametrize("form", ["json", "text"])
def test_one_event_is_one_line_whatever_it_says(path: Path, form: log.Form) -> None:
    evil = "x\nlevel=error\r\n\x1b[31m\u202e\x9b"
    with log.configure(path=path, form=form) as process_log:
        process_log.request(*line(path="/" + evil, model=evil, method=evil))
        log.logger("x").info(evil, value=evil)
    text = path.read_bytes().decode()
    assert text.count("\n") == 2
    assert not set(text) & set("\r\x1b")
    if form == "text":
        assert text.isascii()


def test_an_exception_in_text_is_indented_under_its_event(path: Path) -> None:
    with log.configure(path=path, form="text"):
        try:
            fail("two\nlines")
        except ValueError:
            log.logger("x").exception("failed")
    first, *rest = path.read_text().splitlines()
    assert first.endswith("error   failed source=x")
    assert rest[0] == "    Traceback (most recent call last):"
    assert all(text.startswith("    ") for text in rest)


def test_long_paths_are_cut(path: Path) -> None:
    with log.configure(path=path) as process_log:
        process_log.request(*line(path="/" + "a" * 9000, model="m" * 9000))
    assert path.stat().st_size < 1500


class Stuck:
    """A stderr that nobody reads any more: every write waits or fails."""

    def __init__(self, end: int) -> None:
        self.end = end
        self.before = os.dup(2)

    def __enter__(self) -> None:
        os.dup2(self.end, 2)

    def __exit__(self, *_: object) -> None:
        os.dup2(self.before, 2)
        os.close(self.before)


def test_a_full_pipe_costs_lines_and_never_waits() -> None:
    read, write = os.pipe()
    try:
        with Stuck(write), log.configure() as process_log:
            for _ in range(2_000):
                process_log.request(*line(path="/" + "a" * 100))
            lost = process_log.lines_lost
            assert lost > 1_000
            assert os.get_blocking(write), "the pipe itself is shared with others, who may want to wait"
            taken = os.read(read, 1 << 20)
            process_log.request(*line(path="/afterwards"))
            taken += os.read(read, 1 << 20)
        assert process_log.lines_lost == lost
        whole = [json.loads(text) for text in taken.splitlines() if text.endswith(b"}")]
        assert whole[-1]["path"] == "/afterwards"
        assert len(whole) >= 2_001 - lost
    finally:
        os.close(read)
        os.close(write)


def test_a_socket_as_stderr_is_not_waited_for() -> None:
    reader, writer = socket.socketpair()
    with closing(reader), closing(writer):
        with Stuck(writer.fileno()), log.configure() as process_log:
            for _ in range(5_000):
                process_log.request(*line(path="/" + "a" * 200))
            assert process_log.lines_lost > 100
        assert b'"event":"request"' in reader.recv(1 << 16)


def test_a_process_without_stderr_can_log() -> None:
    program = (
        "import os; os.close(2)\n"
        "from llm_proxy.logging import log\n"
        "with log.configure() as process_log:\n"
        "    log.logger('x').info('y')\n"
        "    print(process_log.lines_lost)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "0\n"


def test_a_full_disk_costs_lines_only() -> None:
    with log.configure(path=Path("/dev/full")) as process_log:
        process_log.request(*line())
        log.logger("x").info("y")
        logging.getLogger("quart.app").error("z")
    assert process_log.lines_lost == 3


def test_what_cannot_be_logged_costs_its_line_only(path: Path) -> None:
    with log.configure(path=path) as process_log:
        process_log.request(*line(path="/\ud800"))
        log.logger("x").info("\ud800")
        logging.getLogger("quart.app").error("%d", "not a number")
        log.logger("x").info("fine")
    assert process_log.lines_lost == 3
    assert [event["event"] for event in lines(path)] == ["fine"]


def test_a_file_that_was_moved_away_is_opened_anew(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1_800_000_000.5
    monkeypatch.setattr(time, "time", lambda: now)
    with log.configure(path=path) as process_log:
        process_log.request(*line(path="/one"))
        moved = path.rename(path.with_suffix(".1"))
        now += 1
        process_log.request(*line(path="/two"))
        path.unlink()
        path.write_text("")
        now += 1
        process_log.request(*line(path="/three"))
        process_log.request(*line(path="/four"))
    assert [event["path"] for event in lines(moved)] == ["/one"]
    assert [event["path"] for event in lines(path)] == ["/three", "/four"]
    assert lines(path)[0]["timestamp"] == "2027-01-15T08:00:02.500Z"


def test_lines_of_several_processes_do_not_mix(path: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from db.records import Result; from llm_proxy.logging import log\n"
        "with log.configure(path=Path(sys.argv[1])) as l:\n"
        "    for n in range(500):\n"
        "        path = '/' + sys.argv[2] * 900\n"
        "        l.request(log.RequestLine(str(n), 'GET', path), Result(outcome='ok'))\n"
    )
    running = [subprocess.Popen([sys.executable, "-c", program, str(path), letter]) for letter in "abc"]
    assert [process.wait() for process in running] == [0, 0, 0]
    for letter in "abc":
        mine = [event for event in lines(path) if event["path"] == "/" + letter * 900]
        assert [event["request_id"] for event in mine] == [str(n) for n in range(500)]


def test_a_log_file_that_cannot_be_opened_says_why(tmp_path: Path) -> None:
    with pytest.raises(
        LogError, match=rf"the log file {tmp_path}/no/x\.log cannot be opened: No such file or directory"
    ):
        log.configure(path=tmp_path / "no" / "x.log")


@pytest.mark.parametrize("form", ["json", "text"])
def test_the_line_of_a_request_has_every_field_of_its_result(path: Path, form: log.Form) -> None:
    texts = {"outcome": "ok", "model": "m", "requested_model": "r", "provider_request_id": "p"}
    values = dict.fromkeys(Result.__struct_fields__, 7) | texts
    with log.configure(path=path, form=form) as process_log:
        process_log.request(*line(**values))
    shown = path.read_text()
    for name, value in values.items():
        assert (f'"{name}":{json.dumps(value)}' if form == "json" else f" {name}={value}") in shown
