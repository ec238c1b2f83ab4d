from __future__ import annotations

import pytest

from llm_proxy.gateway.http.codings import readable_offer


@pytest.mark.parametrize(
    "offer",
    [
        b"gzip, deflate, br, zstd",
        b"GZIP;q=0.8 ,\tx-gzip",
        b"br;q=1.0, gzip;q=0.8, *;q=0",
        b"identity",
        b"identity;q=0, zstd",
        b"",
    ],
)
def test_readable_codings_are_offered_unchanged(offer: bytes) -> None:
    assert readable_offer(offer) is None


@pytest.mark.parametrize(
    ("offer", "left"),
    [
        (b"gzip, compress", b"gzip"),
        (b"dcb, dcz, br;q=0.5", b"br;q=0.5"),
        (b"compress", b"identity"),
        (b"compress, identity;q=0", b"identity;q=0"),
        (b"*", b"gzip, br, zstd, deflate"),
        (b"gzip;q=0.5, *;q=0.1", b"gzip;q=0.5, br;q=0.1, zstd;q=0.1, deflate;q=0.1"),
        (b"gzip;q=0, compress, *", b"gzip;q=0, br, zstd, deflate"),
        (b"compress, *;q=0.000", b"*;q=0.000"),
    ],
)
def test_unreadable_codings_are_removed_from_the_offer(offer: bytes, left: bytes) -> None:
    assert readable_offer(offer) == left
