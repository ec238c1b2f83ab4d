from __future__ import annotations

import pytest

from tests.server.applications import Echo
from tests.server.conftest import Connect
from tests.server.http1.bodies_table import ROWS as BODIES
from tests.server.http1.framing_table import ROWS as HEADS
from tests.server.http1.framing_table import Row

ROWS = (*HEADS, *BODIES)
LIMIT = 1000
"""Size limit of a head in these tests."""


@pytest.mark.parametrize("bytewise", [False, True], ids=["whole", "bytewise"])
@pytest.mark.parametrize("row", ROWS, ids=[f"{row.section}: {row.says}" for row in ROWS])
async def test_the_server_follows_each_row_of_the_table(row: Row, bytewise: bool, connect: Connect) -> None:
    app = Echo()
    peer = connect(app, max_header_size=LIMIT)
    await peer.send(row.wire, bytewise=bytewise)
    if row.half_close:
        peer.socket.shutdown(1)
        await peer.settle()
    assert tuple(answer.status for answer in peer.answers(*row.methods)) == row.answers
    assert tuple(app.bodies) == row.bodies
    # An error that arrives together with its head is found before the application is called.
    assert app.truncated == (row.truncated if bytewise or row.half_close else 0)
    assert peer.closed == row.closes
    assert not peer.reset
    assert peer.reports == []
