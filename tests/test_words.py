"""Words that the project does not use, because a reader from the field would search for another one.

`python -m tests.test_words PATH` lists the findings below a path.
"""

from __future__ import annotations

import io
import re
import sys
import tokenize
from collections.abc import Iterable
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

CHECKED = (
    "llm_proxy",
    "db",
    "migrations",
    "benchmarks",
    "docs",
    "tests",
    "helm",
    "containers",
    ".ci",
    "README.md",
    "CONTRIBUTING.md",
    "CHANGELOG.md",
    "Makefile",
    "pyproject.toml",
)
EXEMPT = {
    "tests/test_words.py": "names the words",
    "docs/site/style.css": "selects the colour scheme that the theme calls slate",
    "docs/images": "drawings: paths and labels of plots",
    "tests/requirements.txt": "written by make lock",
    "containers/requirements.txt": "written by make lock",
    "containers/build.txt": "written by make lock",
}

#: Parts of names in Python files and of file names: `Ticket`, `open_ticket`, `ticket.py`. Two words match in sequence.
NAMES = (
    "acquaintance",
    "acquaintances",
    "amiss",
    "books",
    "circle",
    "figures",
    "hang up",
    "hangup",
    "hung up",
    "in words",
    "likewise",
    "looks",
    "mend",
    "mended",
    "moment",
    "moments",
    "portion",
    "portions",
    "slate",
    "slates",
    "survey",
    "ticket",
    "tickets",
    "upkeep",
    "vouch",
    "vouched",
    "whoever",
    "wither",
    "withers",
    "witness",
)
#: Whole names: the words have a good use elsewhere.
WHOLE_NAMES = {"Application": "AdmissionRequest"}

#: Phrases in all text: prose, comments, docstrings, messages, templates. A space matches a line break too.
PHRASES = (
    r"acquaintances?",
    r"all the while",
    r"amiss",
    r"as ever",
    r"as (?:it|they) began",
    r"at the moment",
    r"begin none after",
    r"books",
    r"br(?:eaks?|oke) off",
    r"carr(?:y|ies) on",
    r"comes? together",
    r"crosses",
    r"figures",
    r"for ever",
    r"from which on",
    r"goes on",
    r"gone by then",
    r"half gone",
    r"hang-up|hangs? up|hung up",
    r"hardly any(?:body|one)",
    r"hence",
    r"in words",
    r"(?:is|are|was|were|not|been|be) let in",
    r"(?:is|are) at home",
    r"known here",
    r"learns",
    r"lest",
    r"likewise",
    r"mend(?:s|ed|ing)?",
    r"most requests that it",
    r"(?:nobody|none) can (?:bound|say|tell)",
    r"none where (?:there|it) is none",
    r"pass(?:es|ed) over",
    r"portions?",
    r"slates?",
    r"spoken here",
    r"stands(?! for)",
    r"stand in",
    r"tells",
    r"the story",
    r"there is nothing here",
    r"turned away",
    r"upkeep",
    r"vouch(?:es|ed)?",
    r"waits? for nobody",
    r"what it takes",
    r"where there (?:is|are) none",
    r"who (?:asks|comes|leaves|left|waits|wants)",
    r"whoever",
    r"withers?",
    r"witness(?:es|ed)?",
)
#: Between two words of a phrase: spaces, or a line break with the sign of a comment or of a quotation.
_GAP = r"(?:[ \t]+|[ \t]*\n[ \t]*(?:(?:#:?|//|>)[ \t]*)?)"
_PHRASE = re.compile(rf"(?<![\w-])(?:{'|'.join(PHRASES)})(?![\w-])".replace(" ", _GAP), re.IGNORECASE)
_NAME = re.compile(rf"(?<![a-z])(?:{'|'.join(NAMES)})(?![a-z])".replace(" ", "_"))
_CAPITAL = re.compile(r"(?<=[a-z0-9])(?=[A-Z])")


@cache
def files_below(place: str) -> tuple[str, ...]:
    """The files of a folder, or the file itself."""
    paths = [ROOT / place, *(ROOT / place).rglob("*")]
    names = (path.relative_to(ROOT).as_posix() for path in sorted(paths) if path.is_file())
    return tuple(name for name in names if "__pycache__" not in name and not name.startswith(tuple(EXEMPT)))


def findings(name: str) -> list[str]:
    """Line and words of each finding in a file."""
    try:
        text = (ROOT / name).read_text()
    except UnicodeDecodeError:
        return []
    if name == "CHANGELOG.md":
        # Entries of releases stay as they were published.
        text = text.split("\n## [0", 1)[0]
    found = [(0, f"file name {match[0]!r}") for match in _NAME.finditer(name.lower().replace("-", "_"))]
    if name.endswith(".py"):
        tokens = list(tokenize.generate_tokens(io.StringIO(text).readline))
        found += [
            (token.start[0], f"name {token.string}")
            for token in tokens
            if token.type == tokenize.NAME
            and (token.string in WHOLE_NAMES or _NAME.search(_CAPITAL.sub("_", token.string).lower()))
        ]
        text = _prose(text, tokens)
    found += [(text.count("\n", 0, match.start()) + 1, " ".join(match[0].split())) for match in _PHRASE.finditer(text)]
    return [f"{name}:{line}: {words}" for line, words in sorted(set(found))]


def _prose(text: str, tokens: Iterable[tokenize.TokenInfo]) -> str:
    """The comments and strings of a Python file, at their places; code is blank."""
    lines = text.splitlines(keepends=True)
    kept = [[*(" " * (len(line) - 1)), "\n"] for line in lines]
    for token in tokens:
        if token.type in (tokenize.COMMENT, tokenize.STRING):
            (first, start), (last, end) = token.start, token.end
            for number in range(first, last + 1):
                part = slice(start if number == first else 0, end if number == last else len(lines[number - 1]))
                kept[number - 1][part] = lines[number - 1][part]
    return "".join("".join(line) for line in kept)


def findings_below(place: str) -> list[str]:
    return [line for name in files_below(place) for line in findings(name)]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("page.md", "Expired tokens are, as\n> ever, refused."),
        ("page.md", "A request that was Turned\naway."),
        ("module.py", "# None where there\n# is none.\n"),
        ("module.py", "x = 1  # it goes\ny = 2  # on\n"),
        ("module.py", "message = 'The database is away at the moment.'\n"),
        ("module.py", "def open_ticket() -> None: ...\n"),
        ("module.py", "class PendingTicket: ...\n"),
        ("hang_up.py", ""),
    ],
)
def test_a_rejected_word_is_found(name: str, text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.test_words.ROOT", tmp_path)
    (tmp_path / name).write_text(text)
    assert len(findings(name)) == 1


def test_every_checked_place_exists() -> None:
    assert [place for place in CHECKED if not files_below(place)] == []


@pytest.mark.parametrize("place", CHECKED)
def test_a_checked_place_has_no_rejected_word(place: str) -> None:
    assert findings_below(place) == []


if __name__ == "__main__":
    for place in sys.argv[1:] or CHECKED:
        sys.stdout.writelines(f"{line}\n" for line in findings_below(place.rstrip("/")))
