from __future__ import annotations

from llm_proxy.cli.output import printable, record, table


def test_a_table_is_aligned() -> None:
    text = table(("NAME", "COUNT", "NOTE"), [("a", 1, None), ("a longer one", 12345, "x")], numbers=("COUNT",))

    assert text.splitlines() == [
        "\x1b[1mNAME          COUNT  NOTE\x1b[0m",
        "a                 1  -",
        "a longer one  12345  x",
    ]


def test_a_table_without_rows_is_its_titles() -> None:
    assert table(("NAME", "COUNT"), []) == "\x1b[1mNAME  COUNT\x1b[0m"


def test_wide_and_combining_characters_are_aligned() -> None:
    rows = [("日本", 1), ("cafe\u0301", 2), ("plain", 3)]
    lines = table(("NAME", "COUNT"), rows, numbers=("COUNT",)).splitlines()

    assert lines[1:] == ["日本       1", "cafe\u0301       2", "plain      3"]


def test_a_record_is_aligned() -> None:
    assert record({"id": 1, "name": None}) == "\x1b[1mid  \x1b[0m  1\n\x1b[1mname\x1b[0m  -"


def test_control_characters_do_not_reach_the_terminal() -> None:
    assert printable("a\x1b[31m\n\u202eb") == "a\\x1b[31m\\n\\u202eb"
