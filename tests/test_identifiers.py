from __future__ import annotations

import os
import time
import uuid
from concurrent.futures import ThreadPoolExecutor

from llm_proxy.identifiers import new_id, request_id


def test_a_request_id_is_a_version_7_uuid_of_the_current_time() -> None:
    before = time.time_ns() // 1_000_000
    text = request_id()
    parsed = uuid.UUID(text)
    assert str(parsed) == text
    assert (parsed.version, parsed.variant) == (7, uuid.RFC_4122)
    assert before <= parsed.int >> 80 <= time.time_ns() // 1_000_000


def test_each_request_id_is_greater_than_the_one_before() -> None:
    ids = [request_id() for _ in range(20_000)]
    assert ids == sorted(set(ids))


def test_request_ids_of_several_threads_are_ordered_within_each_thread_and_unique() -> None:
    with ThreadPoolExecutor(4) as threads:
        found = list(threads.map(lambda _: [request_id() for _ in range(5_000)], range(4)))
    assert all(ids == sorted(ids) for ids in found)
    assert len({one for ids in found for one in ids}) == 20_000


def test_forked_processes_make_different_request_ids() -> None:
    request_id()
    pipes = []
    for _ in range(4):
        read, write = os.pipe()
        child = os.fork()
        if child == 0:
            # The last 32 bits are random; without a new seed, all children would draw the same ones.
            os.write(write, " ".join(request_id()[-8:] for _ in range(20)).encode())
            os._exit(0)
        os.waitpid(child, 0)
        os.close(write)
        pipes.append(read)
    drawn = []
    for read in pipes:
        with os.fdopen(read) as file:
            drawn.append(file.read().split())
    drawn.append([request_id()[-8:] for _ in range(20)])
    assert len({bits for bits_of_one in drawn for bits in bits_of_one}) > 95


def test_new_ids_are_random_uuids() -> None:
    parsed = uuid.UUID(new_id())
    assert parsed.version == 4
    assert str(parsed) != new_id()
