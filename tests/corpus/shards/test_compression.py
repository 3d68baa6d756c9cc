import io
import struct

import pytest
import zstandard

from replay_service.corpus.shards.compression import SUFFIXES, compression_of, decompressed
from tests.corpus.shard_files import COMPRESS

CONTENT = b"one line of many\n" * 5000


def read(content: bytes, compression: str) -> bytes:
    return decompressed(io.BytesIO(content), compression).read()


@pytest.mark.parametrize(
    ("name", "compression"),
    [("a.jsonl.gz", ".gz"), ("a.TXT.ZST", ".zst"), ("a.tgz", ".gz"), ("a.txz", ".xz"), ("a.tar", None), ("gz", None)],
)
def test_the_ending_tells_how_a_file_is_compressed(name: str, compression: str | None) -> None:
    assert compression_of(name) == compression


@pytest.mark.parametrize("compression", SUFFIXES)
class TestEveryCompression:
    def test_members_that_follow_one_another_are_one_content(self, compression: str) -> None:
        member = COMPRESS[compression](CONTENT)
        assert read(member, compression) == CONTENT
        assert read(COMPRESS[compression](b"") + member + member, compression) == 2 * CONTENT

    @pytest.mark.parametrize("num_zeros", [1, 512, 100_000])
    def test_zeros_after_a_member_are_padding(self, compression: str, num_zeros: int) -> None:
        member = COMPRESS[compression](CONTENT)
        assert read(member + b"\0" * num_zeros, compression) == CONTENT
        assert read(member + b"\0" * num_zeros + member, compression) == 2 * CONTENT

    @pytest.mark.parametrize("kept", [-1, -4, 20])
    def test_a_member_that_breaks_off_is_refused(self, compression: str, kept: int) -> None:
        member = COMPRESS[compression](CONTENT)
        for before in (b"", member):
            with pytest.raises(EOFError, match="breaks off"):
                read(before + member[:kept], compression)

    @pytest.mark.parametrize("content", [b"neither", b"\0" * 512, b"neither" * 5000])
    def test_what_is_no_member_is_refused(self, compression: str, content: bytes) -> None:
        with pytest.raises((OSError, EOFError), match=r"damaged|breaks off"):
            read(content, compression)
        if content.strip(b"\0"):
            with pytest.raises((OSError, EOFError), match=r"damaged after 1 sound members|breaks off"):
                read(COMPRESS[compression](CONTENT) + content, compression)

    def test_a_file_of_no_bytes_is_refused(self, compression: str) -> None:
        with pytest.raises(EOFError, match="breaks off"):
            read(b"", compression)

    def test_it_is_read_in_parts_of_any_size(self, compression: str) -> None:
        stream = decompressed(io.BytesIO(COMPRESS[compression](CONTENT)), compression)
        parts = list(iter(lambda: stream.read(777), b""))
        assert b"".join(parts) == CONTENT
        assert {len(part) for part in parts[:-1]} == {777}


def test_a_window_of_2_gib_is_read() -> None:
    parameters = zstandard.ZstdCompressionParameters(window_log=31, write_content_size=False)
    writer = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
    assert read(writer.compress(CONTENT) + writer.flush(), ".zst") == CONTENT


def test_frames_that_are_to_be_skipped_are_skipped() -> None:
    skipped, frame = struct.pack("<II", 0x184D2A50, 5) + b"aside", zstandard.compress(CONTENT)
    assert read(skipped + frame + skipped + frame + skipped, ".zst") == 2 * CONTENT
