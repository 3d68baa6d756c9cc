from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from replay_service.corpus.segments import SampleRows, gather
from replay_service.corpus.staging import (
    Packed,
    StagedRows,
    is_done,
    mark_done,
    read_packed,
    write_packed,
    write_part,
)
from tests.corpus.worlds import random_rows, same_rows


def part_of(rows: SampleRows, first_row: int, domain: str) -> pa.Table:
    table = pa.Table.from_batches([rows.to_arrow().drop_columns(["stratum"])])
    numbers = np.arange(first_row, first_row + len(rows))
    return table.append_column("row", pa.array(numbers)).append_column("domain", pa.array([domain] * len(rows)))


def stage(staging: Path, key: str, rows: SampleRows, first_row: int = 0, domain: str = "en") -> None:
    write_packed(staging, key, Packed(len(rows), len(rows), 0))
    write_part(staging, key, part_of(rows, first_row, domain))


def all_rows(staged: StagedRows) -> SampleRows:
    return gather(*staged.address(np.arange(len(staged))), staged.file)


def in_no_stratum(rows: SampleRows) -> SampleRows:
    return rows.in_strata(np.zeros(len(rows), dtype=np.int32))


def test_what_packing_found_is_read_back(tmp_path: Path) -> None:
    write_packed(tmp_path, "shard", Packed(3, 2, 1))
    assert read_packed(tmp_path, "shard") == Packed(3, 2, 1)


def test_a_shard_is_done_when_it_was_marked(tmp_path: Path) -> None:
    write_packed(tmp_path, "shard", Packed(0, 0, 0))
    assert not is_done(tmp_path, "shard")
    mark_done(tmp_path, "shard")
    assert is_done(tmp_path, "shard")


@pytest.mark.parametrize("order", [[0, 1, 2], [2, 0, 1], [1, 2, 0]])
def test_rows_stand_in_their_order_whatever_the_order_in_which_they_were_staged(
    tmp_path: Path, order: list[int]
) -> None:
    rows = in_no_stratum(random_rows(30))
    pieces = [(10 * i, rows.take(np.arange(10 * i, 10 * i + 10))) for i in range(3)]
    for i in order:
        stage(tmp_path, "shard", pieces[i][1], first_row=pieces[i][0])
    assert same_rows(all_rows(StagedRows(tmp_path, ["shard"])), rows)


def test_shards_stand_in_the_order_asked_for(tmp_path: Path) -> None:
    first, second = (in_no_stratum(random_rows(5, seed=seed)) for seed in range(2))
    stage(tmp_path, "b-first", first, domain="en")
    stage(tmp_path, "a-second", second, domain="fr")
    staged = StagedRows(tmp_path, ["b-first", "a-second"])
    assert same_rows(all_rows(staged), SampleRows.concatenate([first, second]))
    assert staged.domain.tolist() == ["en"] * 5 + ["fr"] * 5
    assert staged.base_loss.tolist() == [*first.base_loss.tolist(), *second.base_loss.tolist()]
    assert staged.length.tolist() == [*first.length.tolist(), *second.length.tolist()]


def test_rows_that_a_retried_task_wrote_twice_stand_once(tmp_path: Path) -> None:
    rows = in_no_stratum(random_rows(20))
    stage(tmp_path, "shard", rows.take(np.arange(12)))
    stage(tmp_path, "shard", rows.take(np.arange(5, 20)), first_row=5)
    staged = StagedRows(tmp_path, ["shard"])
    assert len(staged) == 20
    assert same_rows(all_rows(staged), rows)


def test_other_shards_and_halves_of_files_are_left_out(tmp_path: Path) -> None:
    rows = in_no_stratum(random_rows(4))
    stage(tmp_path, "shard", rows)
    stage(tmp_path, "other", random_rows(4, seed=1))
    (tmp_path / "shard" / "half.partial").write_bytes(b"ARROW1")
    assert same_rows(all_rows(StagedRows(tmp_path, ["shard"])), rows)


def test_no_shard_and_empty_shards_stage_no_row(tmp_path: Path) -> None:
    write_packed(tmp_path, "empty", Packed(0, 0, 3))
    assert len(StagedRows(tmp_path, [])) == 0
    assert len(StagedRows(tmp_path, ["empty"])) == 0
