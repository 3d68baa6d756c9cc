import json
import zlib
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from replay_service.corpus.segment_file import BLOCK_BYTES, SegmentFile, write_segment
from replay_service.corpus.segments import SampleRows
from tests.corpus.worlds import random_rows, same_rows


@pytest.mark.parametrize("topk", [0, 3])
@pytest.mark.parametrize(("num_rows", "seq_len"), [(1, 2), (2, 8), (100, 13), (3000, 64)])
def test_a_segment_is_a_file_that_arrow_reads(tmp_path: Path, num_rows: int, seq_len: int, topk: int) -> None:
    rows = random_rows(num_rows, seq_len, topk=topk)
    write_segment(tmp_path / "a.arrow", rows)
    with pa.ipc.open_file(pa.memory_map(str(tmp_path / "a.arrow"))) as reader:
        assert reader.num_record_batches == 1
        assert same_rows(SampleRows.from_arrow(reader.get_batch(0)), rows)


@pytest.mark.parametrize("topk", [0, 3])
@pytest.mark.parametrize("num_rows", [1, 500])
def test_every_row_lies_where_arithmetic_says(tmp_path: Path, num_rows: int, topk: int) -> None:
    rows = random_rows(num_rows, topk=topk)
    written = write_segment(tmp_path / "a.arrow", rows)
    content = (tmp_path / "a.arrow").read_bytes()
    assert list(written.offsets) == list(rows.columns())
    for name, column in rows.columns().items():
        row_type = np.dtype(written.row_types[name])
        for row in (0, num_rows - 1):
            (found,) = np.frombuffer(content, row_type, 1, written.offsets[name] + row * row_type.itemsize)
            assert np.array_equal(found, column[row])


def test_a_checksum_stands_for_each_block(tmp_path: Path) -> None:
    written = write_segment(tmp_path / "a.arrow", random_rows(5000))
    content, checksums = (tmp_path / "a.arrow").read_bytes(), (tmp_path / "a.crc32").read_bytes()
    assert len(content) == written.num_bytes > 2 * BLOCK_BYTES
    blocks = [content[first : first + BLOCK_BYTES] for first in range(0, len(content), BLOCK_BYTES)]
    assert np.frombuffer(checksums, "<u4").tolist() == [zlib.crc32(block) for block in blocks]
    assert written.checksum == zlib.crc32(checksums)


def test_what_is_written_is_put_into_json_and_back(tmp_path: Path) -> None:
    written = write_segment(tmp_path / "a.arrow", random_rows(10, topk=2))
    assert SegmentFile(**json.loads(json.dumps(asdict(written)))) == written


def test_a_segment_replaces_what_an_earlier_attempt_left(tmp_path: Path) -> None:
    (tmp_path / "a.arrow").write_bytes(b"half of a segment")
    rows = random_rows(10)
    assert write_segment(tmp_path / "a.arrow", rows) == write_segment(tmp_path / "b.arrow", rows)
    assert (tmp_path / "a.arrow").read_bytes() == (tmp_path / "b.arrow").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.arrow", "a.crc32", "b.arrow", "b.crc32"]
