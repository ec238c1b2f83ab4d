r"""The `.env` file: one `NAME=value` per line, read strictly: a line that is skipped is a setting that is lost.

- `NAME=value`: an unquoted value ends at the line's end or at ` #`, and is trimmed.
- `NAME='value'`: literally what stands between the quotes.
- `NAME="value"`: the same, with `\n`, `\r`, `\t`, and a backslash before any other character for that character.
- `export NAME=value`: the word is allowed, so that a shell can read the file too.
- `# …`: a comment. Nothing is expanded, and a name may be set once only.
"""

from __future__ import annotations

import re
from pathlib import Path

from llm_proxy.config.problems import Problem

_LINE = re.compile(r"(?:export\s+)?([A-Za-z_][A-Za-z0-9_]*)\s*=\s*(.*)")
_SINGLE = re.compile(r"'([^']*)'\s*(?:#.*)?")
_DOUBLE = re.compile(r'"((?:[^"\\]|\\.)*)"\s*(?:#.*)?')
_ESCAPES = {"n": "\n", "t": "\t", "r": "\r"}


def parse(text: str, source: str) -> tuple[dict[str, str], list[Problem]]:
    """Read the text of a `.env` file; `source` is what the problems call it. Problems never show a line's content."""
    values: dict[str, str] = {}
    lines: dict[str, int] = {}
    problems: list[Problem] = []
    for number, raw in enumerate(text.removeprefix("\ufeff").splitlines(), start=1):
        line = raw.strip()
        if not line or line.startswith("#"):
            continue
        match = _LINE.fullmatch(line)
        if match is None:
            problems.append(Problem(f"{source}, line {number}", "this is not NAME=value, nor a comment"))
            continue
        name, rest = match[1], match[2]
        if name in values:
            reason = f"{name} is already set on line {lines[name]}; keep one"
            problems.append(Problem(f"{source}, line {number}", reason))
            continue
        value = _value(rest)
        if value is None:
            reason = f"the value of {name} begins with a quote and does not end with one"
            problems.append(Problem(f"{source}, line {number}", reason))
            continue
        values[name], lines[name] = value, number
    return values, problems


def _value(rest: str) -> str | None:
    """The value that the text after `=` stands for, None where its quotes do not match."""
    if rest.startswith("'"):
        match = _SINGLE.fullmatch(rest)
        return match[1] if match else None
    if rest.startswith('"'):
        match = _DOUBLE.fullmatch(rest)
        return re.sub(r"\\(.)", lambda found: _ESCAPES.get(found[1], found[1]), match[1]) if match else None
    return re.split(r"(?:^|\s)#", rest, maxsplit=1)[0].strip()


def read(path: Path) -> tuple[dict[str, str], list[Problem]]:
    """Read the file at `path`; a file that is not there or not readable is a problem, not an exception."""
    try:
        return parse(path.read_text(encoding="utf-8"), str(path))
    except UnicodeDecodeError:
        return {}, [Problem(str(path), "the file is not UTF-8 text")]
    except OSError as error:
        return {}, [Problem(str(path), f"the file cannot be read: {error.strerror}")]
