r"""The `.env` file: one `NAME=value` per line. Every other line is a mistake, because it may be a setting that is lost.

- `NAME=value`: an unquoted value ends at the end of the line or at ` #`, and is trimmed.
- `NAME='value'`: the text between the quotes, without escapes.
- `NAME="value"`: with `\n`, `\r`, `\t`, and a backslash before any other character for that character.
- `export NAME=value`: so that a shell can read the file too.
- `# …`: a comment. Nothing is expanded, and a name may be set only once.
"""

from __future__ import annotations

import re
from pathlib import Path

_LINE = re.compile(r"(?:export\s+)?([A-Za-z_][A-Za-z0-9_]*)\s*=\s*(.*)")
_SINGLE = re.compile(r"'([^']*)'\s*(?:#.*)?")
_DOUBLE = re.compile(r'"((?:[^"\\]|\\.)*)"\s*(?:#.*)?')
_ESCAPES = {"n": "\n", "t": "\t", "r": "\r"}


def read(path: Path) -> tuple[dict[str, str], list[str]]:
    """Read the file; if it cannot be read, that is a mistake too."""
    try:
        return parse(path.read_text(encoding="utf-8"), str(path))
    except UnicodeDecodeError:
        return {}, [f"{path}: the file is not UTF-8 text"]
    except OSError as error:
        return {}, [f"{path}: the file cannot be read: {error.strerror}"]


def parse(text: str, source: str) -> tuple[dict[str, str], list[str]]:
    """Parse the text of a file that mistakes call `source`. A mistake never shows the content of a line."""
    values: dict[str, str] = {}
    lines: dict[str, int] = {}
    mistakes: list[str] = []
    for number, line in enumerate(map(str.strip, text.removeprefix("\ufeff").splitlines()), start=1):
        if not line or line.startswith("#"):
            continue
        match = _LINE.fullmatch(line)
        if match is None:
            reason = "this is not NAME=value, and not a comment"
        elif (name := match[1]) in values:
            reason = f"{name} is already set on line {lines[name]}; keep one"
        elif (value := _unquote(match[2])) is None:
            reason = f"the value of {name} begins with a quote and does not end with one"
        else:
            values[name], lines[name] = value, number
            continue
        mistakes.append(f"{source}, line {number}: {reason}")
    return values, mistakes


def _unquote(text: str) -> str | None:
    if text.startswith("'"):
        match = _SINGLE.fullmatch(text)
        return match[1] if match else None
    if text.startswith('"'):
        match = _DOUBLE.fullmatch(text)
        return re.sub(r"\\(.)", lambda found: _ESCAPES.get(found[1], found[1]), match[1]) if match else None
    return re.split(r"(?:^|\s)#", text, maxsplit=1)[0].strip()
