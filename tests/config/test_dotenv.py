from __future__ import annotations

from pathlib import Path

import pytest

from llm_proxy.config.dotenv import parse, read


@pytest.mark.parametrize(
    ("line", "value"),
    [
        ("NAME=value", "value"),
        ("  NAME = value  ", "value"),
        ("export NAME=value", "value"),
        ("NAME=", ""),
        ("NAME=   # nothing", ""),
        ("NAME=a b", "a b"),
        ("NAME=a#b", "a#b"),
        ("NAME=a #b", "a"),
        ("NAME=p$w${x}`y`", "p$w${x}`y`"),
        ("NAME=a=b==", "a=b=="),
        ("NAME='a #b'", "a #b"),
        (r"NAME='a\n$b'", r"a\n$b"),
        ("NAME='a' # note", "a"),
        ('NAME="a #b"', "a #b"),
        (r'NAME="a\nb\t\"c\"\\ \$d"', 'a\nb\t"c"\\ $d'),
        ('NAME=" a "', " a "),
        ("NAME=it's", "it's"),
        ("\ufeffNAME=value", "value"),
    ],
)
def test_a_line_sets_a_value(line: str, value: str) -> None:
    assert parse(line, ".env") == ({"NAME": value}, [])


@pytest.mark.parametrize(
    ("text", "mistake"),
    [
        ("NAME", ".env, line 1: this is not NAME=value, and not a comment"),
        ("\n# fine\nmy-name=x", ".env, line 3: this is not NAME=value, and not a comment"),
        ("=x", ".env, line 1: this is not NAME=value, and not a comment"),
        ("9LIVES=x", ".env, line 1: this is not NAME=value, and not a comment"),
        ("A=1\nB=2\nA=3", ".env, line 3: A is already set on line 1; keep one"),
        ("A='x", ".env, line 1: the value of A begins with a quote and does not end with one"),
        ('A="x" y', ".env, line 1: the value of A begins with a quote and does not end with one"),
        ('A="x\\"', ".env, line 1: the value of A begins with a quote and does not end with one"),
    ],
)
def test_a_wrong_line_is_reported_without_its_content(text: str, mistake: str) -> None:
    _, mistakes = parse(text, ".env")

    assert mistakes == [mistake]


def test_comments_and_blank_lines_are_ignored() -> None:
    assert parse("# A=1\n\n   \n  # B=2\n", ".env") == ({}, [])


def test_windows_line_ends_are_accepted() -> None:
    assert parse("A=1\r\nB='2'\r\n", ".env") == ({"A": "1", "B": "2"}, [])


def test_a_file_that_cannot_be_read_is_reported(tmp_path: Path) -> None:
    binary = tmp_path / "binary"
    binary.write_bytes(b"A=\xff")

    assert read(tmp_path / "none")[1] == [f"{tmp_path / 'none'}: the file cannot be read: No such file or directory"]
    assert read(binary)[1] == [f"{binary}: the file is not UTF-8 text"]
