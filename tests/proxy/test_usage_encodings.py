from __future__ import annotations

import gzip
import zlib

import pytest

from llm_proxy.proxy.usage import UNKNOWN, Usage, meter_for
from tests.proxy.metering import EVENTS, JSON, metered


class TestEncodings:
    BODY = b'{"model":"m","usage":{"prompt_tokens":5,"completion_tokens":6}}'
    # The same in every process that collects the tests: gzip writes down the time.
    GZIPPED = gzip.compress(BODY, mtime=0)
    FOUND = Usage("m", 5, 6)

    @pytest.mark.parametrize(
        ("encoding", "body"),
        [
            (b"gzip", GZIPPED),
            (b"X-GZIP", GZIPPED),
            (
                b"gzip",
                gzip.compress(BODY[:10], mtime=0) + gzip.compress(b"", mtime=0) + gzip.compress(BODY[10:], mtime=0),
            ),
            (b"gzip", GZIPPED + b"\x00" * 20),
            (b"deflate", zlib.compress(BODY)),
            (b"deflate", zlib.compress(BODY)[2:-4]),
            (b"identity", BODY),
        ],
    )
    def test_gzip_and_deflate_are_read(self, encoding: bytes, body: bytes) -> None:
        headers = [JSON, (b"Content-Encoding", encoding)]
        assert metered(meter_for(200, headers), body) == self.FOUND
        assert metered(meter_for(200, headers), *[bytes([byte]) for byte in body]) == self.FOUND

    def test_an_event_stream_may_be_compressed(self) -> None:
        packer = zlib.compressobj(wbits=31)
        pieces = [packer.compress(b"data: " + self.BODY + b"\n\n") + packer.flush(zlib.Z_SYNC_FLUSH), packer.flush()]
        assert metered(meter_for(200, [EVENTS, (b"content-encoding", b"gzip")]), *pieces) == self.FOUND

    @pytest.mark.parametrize(
        "headers",
        [
            [(b"content-encoding", b"br")],
            [(b"content-encoding", b"zstd")],
            [(b"content-encoding", b"gzip, gzip")],
            [(b"content-encoding", b"gzip"), (b"content-encoding", b"br")],
            [(b"content-encoding", b"br"), (b"content-encoding", b"gzip")],
        ],
    )
    def test_others_are_not(self, headers: list[tuple[bytes, bytes]]) -> None:
        for body in (self.BODY, gzip.compress(self.BODY)):
            assert metered(meter_for(200, [JSON, *headers]), body) == UNKNOWN

    @pytest.mark.parametrize("body", [b"", b"\x1f", b"\x1f\x8b", b"nonsense", GZIPPED[:20], GZIPPED[:-1] + b"\xff"])
    @pytest.mark.parametrize("encoding", [b"gzip", b"deflate"])
    def test_broken_ones_are_unknown(self, body: bytes, encoding: bytes) -> None:
        headers = [JSON, (b"content-encoding", encoding)]
        assert metered(meter_for(200, headers), body) == UNKNOWN
        assert metered(meter_for(200, headers), *[bytes([byte]) for byte in body], body) == UNKNOWN

    @pytest.mark.parametrize("beyond", range(-2, 8))
    def test_nothing_is_left_inside_where_a_body_ends_beside_a_piece(self, beyond: int) -> None:
        frame = b'{"pad":"%s","usage":{"prompt_tokens":5}}'
        text = frame % (b"x" * (65536 + beyond - len(frame) + 2))
        packer = zlib.compressobj(wbits=-15)
        packed = packer.compress(text) + packer.flush()
        assert metered(meter_for(200, [JSON, (b"content-encoding", b"deflate")]), packed).input_tokens == 5

    @pytest.mark.parametrize("encoding", [b"gzip", b"deflate"])
    def test_a_bomb_is_given_up(self, encoding: bytes) -> None:
        text = b'{"usage":{"prompt_tokens":5},"pad":"' + b"x" * 50_000_000 + b'"}'
        bomb = gzip.compress(text) if encoding == b"gzip" else zlib.compress(text)
        meter = meter_for(200, [JSON, (b"content-encoding", encoding)])
        meter.feed(bomb)
        assert meter.result() == UNKNOWN
        assert getattr(meter, "_given", 0) < 10_000_000

    def test_what_compresses_well_is_no_bomb(self) -> None:
        vectors = ",".join(f"[{number}.0123456789, -0.0456, {'0.0, ' * 10}1]" for number in range(100_000))
        text = b'{"usage":{"prompt_tokens":5},"data":[%s]}' % vectors.encode()
        assert metered(meter_for(200, [JSON, (b"content-encoding", b"gzip")]), gzip.compress(text, 1)).input_tokens == 5
