import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from replay_service.corpus.segments import (
    SampleRows,
    binary_rows,
    gather,
    list_rows,
    wide_binary,
    wide_list,
)
from tests.corpus.worlds import random_rows, same_rows


def test_rows_without_the_likeliest_tokens_have_no_columns_for_them() -> None:
    columns = ["input_ids", "length", "base_loss", "base_correct", "stratum"]
    assert list(random_rows(3).columns()) == random_rows(3).to_arrow().schema.names == columns
    assert list(random_rows(3, topk=2).columns()) == [*columns, "topk_ids", "topk_logprobs"]


@pytest.mark.parametrize("topk", [0, 1, 5])
def test_rows_survive_arrow(topk: int) -> None:
    rows = random_rows(10, topk=topk)
    batch = rows.to_arrow()
    assert same_rows(SampleRows.from_arrow(batch), rows)
    assert same_rows(SampleRows.from_arrow(batch.slice(3, 4)), rows.take(np.arange(3, 7)))


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 19)), min_size=1, max_size=40), st.sampled_from([0, 3]))
@settings(max_examples=50, deadline=None)
def test_rows_are_gathered_in_the_order_asked(addresses: list[tuple[int, int]], topk: int) -> None:
    files = [random_rows(20, seed=seed, topk=topk) for seed in range(3)]
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
