from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from replay_service.corpus.segments import (
    SampleRows,
    binary_rows,
    gather,
    list_rows,
    map_segment,
    wide_binary,
    wide_list,
    write_segment,
)
from tests.corpus.worlds import random_rows, same_rows


@pytest.mark.parametrize("num_rows", [1, 2, 100])
@pytest.mark.parametrize("seq_len", [2, 8, 13])
def test_a_segment_is_read_back_as_it_was_written(tmp_path: Path, num_rows: int, seq_len: int) -> None:
    rows = random_rows(num_rows, seq_len)
    write_segment(tmp_path / "a.arrow", rows)
    assert same_rows(map_segment(tmp_path / "a.arrow"), rows)


def test_rows_of_a_mapped_segment_are_views_that_cannot_be_written(tmp_path: Path) -> None:
    write_segment(tmp_path / "a.arrow", random_rows(10))
    mapped = map_segment(tmp_path / "a.arrow")
    for column in mapped.columns():
        assert not column.flags.owndata
        assert not column.flags.writeable


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 19)), min_size=1, max_size=40))
@settings(max_examples=50, deadline=None)
def test_rows_are_gathered_in_the_order_asked(addresses: list[tuple[int, int]]) -> None:
    files = [random_rows(20, seed=seed) for seed in range(3)]
    file, row = np.array(addresses).T
    gathered = gather(file, row, files.__getitem__)
    expected = SampleRows.concatenate([files[f].take(np.array([r])) for f, r in addresses])
    assert same_rows(gathered, expected)


def test_gathering_opens_each_file_once_and_no_other() -> None:
    files, opened = [random_rows(5, seed=seed) for seed in range(4)], []

    def rows_of(number: int) -> SampleRows:
        opened.append(number)
        return files[number]

    gather(np.array([3, 1, 3, 1, 1]), np.array([0, 1, 2, 3, 4]), rows_of)
    assert sorted(opened) == [1, 3]


def test_columns_survive_being_sliced() -> None:
    ids, bits = np.arange(30, dtype=np.uint16).reshape(10, 3), np.arange(20, dtype=np.uint8).reshape(10, 2)
    assert np.array_equal(list_rows(wide_list(ids).slice(4, 3)), ids[4:7])
    assert np.array_equal(binary_rows(wide_binary(bits).slice(4, 3)), bits[4:7])


def test_columns_that_are_not_contiguous_are_written_right() -> None:
    ids = np.arange(30, dtype=np.uint16).reshape(3, 10).T
    assert np.array_equal(list_rows(wide_list(ids)), ids)


def test_putting_rows_in_strata_changes_nothing_else() -> None:
    rows = random_rows(6)
    moved = rows.in_strata(np.arange(6, dtype=np.int32))
    assert moved.stratum.tolist() == list(range(6))
    assert same_rows(moved.in_strata(rows.stratum), rows)
