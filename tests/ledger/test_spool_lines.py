from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from db.records import Reservation, SettledRequest
from llm_proxy.identifiers import new_id, request_id
from llm_proxy.ledger.outage.spool_lines import Admitted, Contents, Damage, Line, Settled, decode, encode
from tests.db.queries.books import NOON, a_settled_request, a_token

TOKEN = a_token(new_id())
DIGEST = TOKEN.digest


def admitted(path: str = "/v1/chat/completions") -> Admitted:
    return Admitted(
        Reservation(request_id(), new_id(), TOKEN.id, TOKEN.project_id, "openai", "POST", path, NOON), DIGEST
    )


def ended(**fields: object) -> Settled:
    return Settled(a_settled_request(TOKEN, **fields), DIGEST)


#: What a spool may say: texts with everything in them, numbers of every size, and what is not known.
lines = st.one_of(
    st.builds(admitted, st.text(max_size=20)),
    st.builds(
        lambda model, status, moment: ended(model=model, status=status, settled_at=moment),
        st.text(max_size=20),
        st.none() | st.integers(100, 999),
        st.integers(0, 10**9).map(lambda micros: datetime(2027, 1, 1, tzinfo=UTC) + timedelta(microseconds=micros)),
    ),
)


def said(contents: Contents) -> list[Line]:
    found: list[Line] = [Admitted(*pair) for pair in contents.reservations.values()]
    return found + [Settled(*pair) for pair in contents.settled.values()]


def key(line: Line) -> tuple[bool, str]:
    return (True, line.reservation.id) if isinstance(line, Admitted) else (False, line.row.id)


def same(found: list[Line], expected: list[Line]) -> bool:
    return sorted(found, key=key) == sorted(expected, key=key)


@given(st.lists(lines, max_size=8))
def test_what_was_written_is_read(written: list[Line]) -> None:
    contents = decode(b"".join(map(encode, written)))
    assert same(said(contents), written)
    assert contents.damages == []


@given(st.lists(lines, min_size=1, max_size=6), st.data())
def test_a_spool_cut_off_anywhere_has_all_its_whole_lines(written: list[Line], data: st.DataObject) -> None:
    encoded = [encode(line) for line in written]
    whole = b"".join(encoded)
    cut = data.draw(st.integers(0, len(whole)))
    contents = decode(whole[:cut])
    position, expected = 0, []
    for line, piece in zip(written, encoded, strict=True):
        position += len(piece)
        # Without its break, a line is whole.
        if position - 1 <= cut:
            expected.append(line)
    assert same(said(contents), expected)
    assert all(damage.torn for damage in contents.damages)
    rest = cut - sum(map(len, encoded[: len(expected)]))
    assert [damage.length for damage in contents.damages] == ([rest] if rest > 0 else [])


@given(st.lists(lines, min_size=1, max_size=6), st.data())
def test_a_flipped_bit_costs_one_line_at_most_and_invents_none(written: list[Line], data: st.DataObject) -> None:
    whole = bytearray(b"".join(map(encode, written)))
    at = data.draw(st.integers(0, 8 * len(whole) - 1))
    whole[at // 8] ^= 1 << at % 8
    contents = decode(bytes(whole))
    found = said(contents)
    assert all(line in written for line in found)
    assert len(found) >= len(written) - 1
    assert len(found) == len(written) or contents.damages


@given(st.lists(lines, max_size=4), st.binary(max_size=200), st.lists(lines, max_size=4))
def test_rubbish_between_lines_hides_none_but_the_next(before: list[Line], rubbish: bytes, after: list[Line]) -> None:
    contents = decode(b"".join(map(encode, before)) + rubbish + b"\n" + b"".join(map(encode, after)))
    assert same(said(contents), before + after)


def test_a_whole_line_of_another_kind_is_damage() -> None:
    good, strange = encode(admitted()), encode(ended()).replace(b'"settled"', b'"another"', 1)
    contents = decode(strange + good)
    assert (len(contents), contents.damages) == (1, [Damage(0, len(strange), torn=False)])


def test_a_torn_end_is_told_from_damage_in_the_middle() -> None:
    whole = encode(admitted())
    assert decode(whole + whole[:30]).damages == [Damage(len(whole), 30, torn=True)]
    assert decode(whole[:30] + b"\n" + whole).damages == [Damage(0, 31, torn=False)]
    # What a power cut leaves where the file had grown already and its bytes had not come.
    assert decode(whole + bytes(500)).damages == [Damage(len(whole), 500, torn=True)]


@pytest.mark.parametrize("line", [admitted(), ended(model="m", status=200)])
def test_a_line_holds_the_digest_and_no_more_of_the_token(line: Line) -> None:
    text = encode(line)
    assert text.count(b"\n") == 1
    assert b"sealed" not in text
    assert TOKEN.last4.encode() not in text.replace(TOKEN.id.encode(), b"")


def test_each_of_the_two_lines_is_enough_to_count_the_request() -> None:
    line = ended()
    (row, digest) = decode(encode(line)).settled[line.row.id]
    assert isinstance(row, SettledRequest)
    assert (row, digest) == (line.row, DIGEST)
