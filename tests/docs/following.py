"""Runs all blocks of a page in one shell, from top to bottom, as a reader would.

`PROJECT_ID`, `TOKEN_ID` and `TOKEN` are replaced by the values that a command printed before. Adjacent blocks of Python
are one program, so that a later one may use names of an earlier one. A `text` block after a block is its output, except
ids, timestamps, tokens, and durations in reports; `…` matches anything within a line, and alone on a line any lines. A
command after `$ ` in a `console` block is run too, and may fail.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from pathlib import Path

from attrs import frozen

from tests.docs.blocks import Block, blocks
from tests.docs.prompt import typed
from tests.harness.warm import Warm

#: Languages that a shell can run; the tests of a page check the others.
SHELL = ("bash", "console", "python")

#: Values that differ in each run.
_OWN = re.compile(
    r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}|\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d(?:\.\d+)?Z|sk-[\w-]{43}"
    r"|(?:…|(?<=ends in    ))[\w-]{4}(?![\w-])"
)
#: What follows the cost in a report: durations and a bar.
_AFTER_COST = re.compile(r"(?m)(\$[\d,.]+|  -)(?: +\d+){2}(?: +[█-▏]+)?$")
#: A command whose output is copied into later ones.
_COMMAND = re.compile(r"^llm-proxy .*[^\\\n]\n", re.MULTILINE)

_BEGINNING = """\
export PATH="$PWD/.warm:$PATH"
_found() {
    awk -v wanted="$1" '
        /^id /{id=$2} /^provider /{project=id} /^ends in /{token=id} /^token /{secret=$2}
        END {print (wanted == "PROJECT_ID" ? project : wanted == "TOKEN_ID" ? token : secret)}' .out/*
}
_filled() {
    sed -E -e "s/PROJECT_ID/$(_found PROJECT_ID)/g" -e "s/TOKEN_ID/$(_found TOKEN_ID)/g" \\
        -e "s/(^|[^A-Z_])TOKEN([^A-Z_]|$)/\\1$(_found TOKEN)\\2/g" ".steps/$1"
}
llm-proxy() {
    if [ "$1" = manage ]; then command llm-proxy "$@" --manage-api-base-url "$_SERVER"; else command llm-proxy "$@"; fi
}
"""


@frozen
class Step:
    """A block that is run, and its output on the page."""

    number: str
    block: Block
    shown: str | None


@frozen
class Outcome:
    """What became of a page: the status of the shell, its last words, and the output of each block by its name."""

    status: int
    words: str
    printed: Mapping[str, str]


def steps(page: Path) -> list[Step]:
    """The blocks of a page that a shell runs."""
    found = blocks(page)
    made = []
    for number, block in enumerate(found, start=1):
        if block.run is None or block.language not in SHELL:
            continue
        after = found[number] if number < len(found) else None
        shown = after.text if after and after.language == "text" and not (after.run or after.reason) else None
        if block.language == "console":
            shown = "".join(line for line in block.text.splitlines(keepends=True) if not line.startswith("$ "))
        made.append(Step(f"{number:02}", block, shown))
    return made


def follow(
    page: Path, folder: Path, warm: Warm, *, server: str, known: str, answers: str, replaced: Mapping[str, str]
) -> Outcome:
    """Type all that a page has, in a folder.

    Args:
        page: the page.
        folder: where; what a block prints is kept in its folder `.out`.
        warm: runs `llm-proxy` and Python.
        server: origin of the running server, which the page finds at its usual place.
        known: what was printed before the page begins: records of a project and a token.
        answers: what is typed where a command asks.
        replaced: texts that stand for others in the blocks.
    """
    out, scripts, found = folder / ".out", folder / ".steps", steps(page)
    out.mkdir()
    scripts.mkdir()
    (out / "00").write_text(known)
    for program in ("llm-proxy", "python"):
        warm.put(folder / ".warm", program)
    (scripts / "answers").write_text(answers)
    lines = [_BEGINNING]
    for language, group in groupby(found, key=lambda step: step.block.language):
        members = list(group)
        for number, text in _programs(language, members):
            name = f"{len(lines):02}"
            for old, new in {"http://localhost:8080": server, **replaced}.items():
                text = text.replace(old, new)  # noqa: PLW2901 - one after the other
            (scripts / name).write_text(text)
            if language == "python":
                lines.append(f"_filled {name} >.steps/{name}.py; python .steps/{name}.py")
            else:
                lines.append(f'exec <.steps/answers; eval "$(_filled {name})" >>.out/{number} 2>&1')
    ended = typed("\n".join(lines), folder, {"_SERVER": server})
    printed = {str(step.block.run): (out / step.number).read_text() for step in found if (out / step.number).exists()}
    return Outcome(ended.returncode, "\n".join([ended.stderr, *printed.values()][-2:]), printed)


def matches(shown: str, printed: str) -> bool:
    """Whether a block's output is what the page shows."""
    anything = r"[^\n]*"
    said, meant = (
        [line.strip() for line in _AFTER_COST.sub(r"\1", _OWN.sub("(own)", text.strip("\n"))).split("\n")]
        for text in (printed, shown)
    )
    lines = [re.escape(line).replace("…", anything) for line in meant]
    pattern = "\n".join(".*" if line == anything else line for line in lines)
    return re.fullmatch(pattern, "\n".join(said), re.DOTALL) is not None


def _programs(language: str, members: Sequence[Step]) -> Iterator[tuple[str, str]]:
    """What is run at once, each with the number of its first block."""
    if language == "python":
        yield members[0].number, "\n".join(["import os as _os", "import sys as _sys", *map(_part, members)])
        return
    for step in members:
        text = step.block.text
        if language == "console":
            yield step.number, "\n".join(f"{line[2:]} || true" for line in text.splitlines() if line.startswith("$ "))
            continue
        begin = 0
        for command in _COMMAND.finditer(text):
            yield step.number, text[begin : command.end()]
            begin = command.end()
        yield step.number, text[begin:]


def _part(step: Step) -> str:
    """A block of a program; what it prints, and what goes wrong in it, goes to a file of its own."""
    opened = f"_os.open('.out/{step.number}', _os.O_CREAT | _os.O_WRONLY | _os.O_APPEND)"
    return f"_sys.stdout.flush()\nfor _stream in (1, 2):\n    _os.dup2({opened}, _stream)\n{step.block.text}"
