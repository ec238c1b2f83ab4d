"""Values as literals: our short way writes what PyMySQL writes."""

from __future__ import annotations

from datetime import datetime

from hypothesis import example, given
from hypothesis import strategies as st
from pymysql.connections import Connection

from db.dialects.mysql.connection import MySqlConnection

OURS = MySqlConnection(defer_connect=True)
THEIRS = Connection(defer_connect=True)
for connection in (OURS, THEIRS):
    setattr(connection, "server_status", 0)  # noqa: B010 - what a server says at the login, unknown to the stub
TIMES = st.datetimes(min_value=datetime(1000, 1, 1))  # noqa: DTZ001 - the column knows no time zone
VALUES = (
    st.text()
    | st.text("'\\\"%;\0\n\x1aé`-# /*")
    | st.from_regex(r"\A[A-Za-z0-9 _.:/@+=,'-]*\n?\Z")
    | st.integers()
    | st.booleans()
    | st.none()
    | TIMES
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.binary()
)


@given(VALUES)
@example("0192f3a4-7c1e-7abc-8def-0123456789ab")
@example("it's")
@example("plain\n")
@example(datetime(2026, 7, 1, 12, 0, 0))  # noqa: DTZ001 - as above
def test_a_literal_is_that_of_the_driver(value: object) -> None:
    assert OURS.escape(value) == THEIRS.escape(value)
