from __future__ import annotations

import os
import time
import uuid
from typing import Any

import pytest

from llm_proxy.identifiers import RequestIds, new_id, request_id


def milliseconds(text: str) -> int:
    return uuid.UUID(text).int >> 80


def test_a_request_id_is_a_version_7_uuid_in_canonical_form() -> None:
    before = time.time_ns() // 1_000_000
    text = request_id()
    parsed = uuid.UUID(text)
    assert str(parsed) == text
    assert parsed.version == 7
    assert parsed.variant == uuid.RFC_4122
    assert before <= milliseconds(text) <= time.time_ns() // 1_000_000


def test_request_ids_grow() -> None:
    ids = [request_id() for _ in range(20_000)]
    assert ids == sorted(ids)
    assert len(set(ids)) == len(ids)


def test_request_ids_grow_though_the_clock_stands_still_or_goes_back(monkeypatch: pytest.MonkeyPatch) -> None:
    source = RequestIds()
    now = 1_700_000_000_000
    monkeypatch.setattr(time, "time_ns", lambda: now * 1_000_000)
    ids = [source() for _ in range(5_000)]
    assert milliseconds(ids[0]) == now
    assert milliseconds(ids[4095]) == now
    assert milliseconds(ids[4096]) == now + 1, "a full sequence borrows from the next millisecond"
    now -= 60_000
    ids.append(source())
    now += 120_000
    ids.append(source())
    assert ids == sorted(set(ids))
    assert milliseconds(ids[-1]) == now


def test_a_forked_child_makes_ids_of_its_own() -> None:
    def state_now() -> object:
        getrandbits: Any = request_id._getrandbits
        return getrandbits.__self__.getstate()

    state = state_now()
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(write, b"same" if state_now() == state else b"anew")
        os._exit(0)
    os.waitpid(child, 0)
    assert os.read(read, 4) == b"anew"
    os.close(read)
    os.close(write)


def test_new_ids_are_random_uuids() -> None:
    parsed = uuid.UUID(new_id())
    assert parsed.version == 4
    assert str(parsed) != new_id()
