from __future__ import annotations

import gzip
import zlib

import brotli
import pytest
import zstandard

from llm_proxy.gateway.usage import UNKNOWN, Usage, meter_for
from tests.gateway.usage.metering import EVENTS, JSON, PACK, feed, metered


class TestEncodings:
    BODY = b'{"model":"m","usage":{"prompt_tokens":5,"completion_tokens":6}}'
    # The same in every process that collects the tests: gzip would include the time.
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
            (b"br", brotli.compress(BODY)),
            (b"zstd", zstandard.compress(BODY)),
            (b"zstd", zstandard.compress(BODY[:10]) + zstandard.compress(BODY[10:])),
            (b"identity", BODY),
        ],
    )
    def test_supported_codings_are_read(self, encoding: bytes, body: bytes) -> None:
        headers = [JSON, (b"Content-Encoding", encoding)]
        assert metered(meter_for(200, headers), body) == self.FOUND
        assert metered(meter_for(200, headers), *[bytes([byte]) for byte in body]) == self.FOUND

    def test_the_end_of_a_compressed_stream_is_noticed_at_once(self) -> None:
        event = b"data: " + self.BODY + b"\n\ndata: [DONE]\n\n"
        gzipped, zstd, br = zlib.compressobj(wbits=31), zstandard.ZstdCompressor().compressobj(), brotli.Compressor()
        flushed = {
            b"gzip": gzipped.compress(event) + gzipped.flush(zlib.Z_SYNC_FLUSH),
            b"zstd": zstd.compress(event) + zstd.flush(zstandard.COMPRESSOBJ_FLUSH_BLOCK),
            b"br": br.process(event) + br.flush(),
        }
        for encoding, piece in flushed.items():
            meter = meter_for(200, [EVENTS, (b"content-encoding", encoding)])
            feed(meter, piece)
            assert meter.ended
            assert meter.result() == self.FOUND

    @pytest.mark.parametrize(
        "headers",
        [
            [(b"content-encoding", b"compress")],
            [(b"content-encoding", b"dcz")],
            [(b"content-encoding", b"gzip, gzip")],
            [(b"content-encoding", b"gzip"), (b"content-encoding", b"br")],
            [(b"content-encoding", b"br"), (b"content-encoding", b"gzip")],
        ],
    )
    def test_a_response_in_another_coding_is_unmetered(self, headers: list[tuple[bytes, bytes]]) -> None:
        for body in (self.BODY, gzip.compress(self.BODY)):
            meter = meter_for(200, [JSON, *headers])
            assert metered(meter, body) == UNKNOWN
            assert meter.unmetered

    @pytest.mark.parametrize(
        ("status", "method", "kind", "unmetered"),
        [
            (200, "POST", b"application/json", True),
            (200, "POST", b"text/event-stream", True),
            (200, "GET", b"application/json", False),
            (200, "GET", b"text/event-stream", False),
            (400, "POST", b"application/json", False),
            (500, "POST", b"application/json", False),
            (200, "POST", b"audio/mpeg", False),
        ],
    )
    def test_only_responses_that_report_usage_can_be_unmetered(
        self, status: int, method: str, kind: bytes, unmetered: bool
    ) -> None:
        meter = meter_for(status, [(b"content-type", kind), (b"content-encoding", b"compress")], method)
        assert metered(meter, b"x") == UNKNOWN
        assert meter.unmetered is unmetered

    @pytest.mark.parametrize("body", [b"", b"\x1f", b"\x1f\x8b", b"nonsense", GZIPPED[:20], GZIPPED[:-1] + b"\xff"])
    @pytest.mark.parametrize("encoding", [b"gzip", b"deflate", b"br", b"zstd"])
    def test_the_usage_of_an_invalid_compressed_body_is_unknown(self, body: bytes, encoding: bytes) -> None:
        headers = [JSON, (b"content-encoding", encoding)]
        assert metered(meter_for(200, headers), body) == UNKNOWN
        assert metered(meter_for(200, headers), *[bytes([byte]) for byte in body], body) == UNKNOWN

    @pytest.mark.parametrize("encoding", PACK)
    def test_a_truncated_compressed_body_is_unmetered(self, encoding: bytes) -> None:
        text = (
            b'{"model":"m","choices":[%b],' % b",".join(b'"%d"' % (number**5) for number in range(99)) + self.BODY[1:]
        )
        packed = PACK[encoding](text)
        for body, unmetered in (
            (packed, False),
            (packed[:-12], True),
            (packed[:40], True),
            (packed[:1], True),
            (b"", False),
        ):
            meter = meter_for(200, [JSON, (b"content-encoding", encoding)])
            found = metered(meter, body)
            assert (found.input_tokens, meter.unmetered) == (5 if body == packed else None, unmetered)

    @pytest.mark.parametrize("encoding", PACK)
    def test_a_compressed_stream_is_unmetered_if_neither_it_nor_its_coding_has_ended(self, encoding: bytes) -> None:
        event = b"data: " + self.BODY + b"\n\n"
        for text, cut, unmetered in (
            (event, None, False),
            (event, -2, True),
            (event + b"data: [DONE]\n\n: " + b"".join(b"%d" % number**5 for number in range(9999)), -2, False),
        ):
            if encoding == b"zstd" and cut and not unmetered:
                continue  # its last block is handed out as a whole
            meter = meter_for(200, [EVENTS, (b"content-encoding", encoding)])
            feed(meter, PACK[encoding](text)[:cut])
            meter.result()
            assert meter.unmetered is unmetered
            meter = meter_for(200, [EVENTS, (b"content-encoding", encoding)])
            feed(meter, PACK[encoding](text)[:cut])
            meter.result(whole=False)
            assert not meter.unmetered

    @pytest.mark.parametrize("beyond", range(-2, 8))
    def test_a_body_that_ends_near_the_end_of_a_piece_is_decoded_completely(self, beyond: int) -> None:
        frame = b'{"pad":"%s","usage":{"prompt_tokens":5}}'
        text = frame % (b"x" * (65536 + beyond - len(frame) + 2))
        packer = zlib.compressobj(wbits=-15)
        packed = packer.compress(text) + packer.flush()
        assert metered(meter_for(200, [JSON, (b"content-encoding", b"deflate")]), packed).input_tokens == 5

    @pytest.mark.parametrize("encoding", PACK)
    def test_decoding_of_a_bomb_stops_and_it_is_unmetered(self, encoding: bytes) -> None:
        text = b'{"usage":{"prompt_tokens":5},"pad":"' + b"x" * 50_000_000 + b'"}'
        meter = meter_for(200, [JSON, (b"content-encoding", encoding)])
        feed(meter, PACK[encoding](text))
        assert meter.result() == UNKNOWN
        assert meter.unmetered
        assert getattr(meter, "_decoded", 0) < 16_000_000

    @pytest.mark.parametrize("encoding", PACK)
    @pytest.mark.parametrize("most", [1 << 22, 1 << 23])
    def test_a_too_large_window_is_refused(self, encoding: bytes, most: int) -> None:
        """RFC 9659 allows zstd 8 MiB. Brotli has no limit below 16 MiB, and encoders use 4 MiB by default."""
        if encoding not in (b"br", b"zstd"):
            return
        text = b'{"usage":{"prompt_tokens":5,"completion_tokens":6},"model":"m","pad":"' + b"x" * 200_000 + b'"}'
        if encoding == b"br":
            packed = brotli.compress(text, lgwin=most.bit_length() - 1)
        else:
            parameters = zstandard.ZstdCompressionParameters(window_log=most.bit_length())
            packer = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
            packed = packer.compress(text) + packer.flush()
        meter = meter_for(200, [JSON, (b"content-encoding", encoding)])
        assert metered(meter, packed) == (self.FOUND if most == 1 << 22 else UNKNOWN)
        assert meter.unmetered is (most != 1 << 22)

    @pytest.mark.parametrize("encoding", PACK)
    def test_a_long_stream_of_similar_events_is_not_a_bomb(self, encoding: bytes) -> None:
        chunk = b'data: {"id":"c","model":"m","choices":[{"delta":{"content":"%b"}}],"usage":null}\n\n'
        text = b"".join(chunk % word for word in [b"and", b"so", b"on"] * 20_000)
        text += b'data: {"usage":{"prompt_tokens":5,"completion_tokens":6}}\n\ndata: [DONE]\n\n'
        meter = meter_for(200, [EVENTS, (b"content-encoding", encoding)])
        packed = PACK[encoding](text)
        assert len(packed) * 100 < len(text)
        assert metered(meter, packed) == Usage("m", 5, 6)

    def test_a_body_that_compresses_well_is_not_a_bomb(self) -> None:
        vectors = ",".join(f"[{number}.0123456789, -0.0456, {'0.0, ' * 10}1]" for number in range(100_000))
        text = b'{"usage":{"prompt_tokens":5},"data":[%s]}' % vectors.encode()
        assert metered(meter_for(200, [JSON, (b"content-encoding", b"gzip")]), gzip.compress(text, 1)).input_tokens == 5
