import json
import zlib
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from replay_service.corpus.format import segment_file
from replay_service.corpus.format.records import SampleRows
from replay_service.corpus.format.segment_file import BLOCK_BYTES, SegmentFile, write_segment
from tests.corpus.worlds import concatenated, random_rows, same_rows


@pytest.mark.parametrize("topk", [0, 3])
@pytest.mark.parametrize(("num_rows", "seq_len"), [(1, 2), (2, 8), (100, 13), (3000, 64)])
def test_anyone_reads_a_segment_with_arrow_and_numpy(tmp_path: Path, num_rows: int, seq_len: int, topk: int) -> None:
    expected = random_rows(num_rows, seq_len, topk=topk)
    write_segment(tmp_path / "a.arrow", expected)
    found: dict[str, Any] = {"pyarrow": pa, "numpy": np, "json": json}
    exec(three_lines().replace("00000000.arrow", str(tmp_path / "a.arrow")), found)
    assert found["rows"]["input_ids"].shape == (num_rows, seq_len)
    assert same_rows(SampleRows.of_records(found["rows"]), expected)


def three_lines() -> str:
    """The lines in the documentation that say how to read a segment."""
    lines = [line.strip() for line in (segment_file.__doc__ or "").splitlines() if line.startswith("    ")]
    assert len(lines) == 3
    return "\n".join(lines)


def test_a_segment_is_one_batch_of_one_column(tmp_path: Path) -> None:
    write_segment(tmp_path / "a.arrow", random_rows(7, topk=1))
    with pa.ipc.open_file(str(tmp_path / "a.arrow")) as reader:
        batch = reader.get_batch(0)
        assert (reader.num_record_batches, batch.schema.names, len(batch)) == (1, ["row"], 7)
        assert batch.schema.field("row").type == pa.binary(random_rows(1, topk=1).records.itemsize)
    batch.validate(full=True)


@pytest.mark.parametrize("topk", [0, 3])
@pytest.mark.parametrize("num_rows", [1, 500])
def test_every_row_lies_where_arithmetic_says(tmp_path: Path, num_rows: int, topk: int) -> None:
    rows = random_rows(num_rows, topk=topk)
    written = write_segment(tmp_path / "a.arrow", rows)
    content = (tmp_path / "a.arrow").read_bytes()
    record: Any = written.record
    for row in (0, num_rows - 1):
        found = np.frombuffer(content, np.dtype(record), 1, written.rows_at + row * record["itemsize"])
        assert same_rows(SampleRows.of_records(found), rows.take(np.array([row])))


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
    rows = random_rows(10, seq_len=9)
    again = concatenated([rows.take(np.arange(4)), rows.take(np.arange(4, 10))])
    assert write_segment(tmp_path / "a.arrow", rows) == write_segment(tmp_path / "b.arrow", again)
    assert (tmp_path / "a.arrow").read_bytes() == (tmp_path / "b.arrow").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.arrow", "a.crc32", "b.arrow", "b.crc32"]
