import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from replay_service.corpus.format.records import SampleRows
from replay_service.wire.columns import binary_rows, list_rows, wide_binary, wide_list
from tests.corpus.worlds import concatenated, labelled_rows, random_rows, same_rows

FIELDS = ["input_ids", "length", "base_loss", "base_correct", "stratum"]


def test_rows_without_the_likeliest_tokens_have_no_fields_for_them() -> None:
    rows = random_rows(3)
    assert list(rows.columns()) == FIELDS
    assert rows.topk_ids is None
    assert rows.topk_logprobs is None
    assert list(random_rows(3, topk=2).columns()) == [*FIELDS, "topk_ids", "topk_logprobs"]


@pytest.mark.parametrize("topk", [0, 2])
def test_rows_hold_the_columns_that_they_were_made_of(topk: int) -> None:
    columns = random_rows(5, topk=topk).columns()
    rows = SampleRows.of_columns(**{name: column.copy() for name, column in columns.items()})
    assert len(rows) == 5
    for name, column in columns.items():
        assert np.array_equal(getattr(rows, name), column)
        assert getattr(rows, name).dtype == column.dtype


@given(st.integers(2, 70), st.integers(0, 3), st.sampled_from([np.uint8, np.uint16, np.uint32]))
def test_fields_are_aligned_and_at_most_the_end_of_a_record_is_padding(seq_len: int, topk: int, ids: type) -> None:
    columns = random_rows(2, seq_len, topk=topk).columns()
    columns |= {name: columns[name].astype(ids) for name in ("input_ids", "topk_ids") if name in columns}
    records = SampleRows.of_columns(**columns).records
    assert all(records[name].flags.aligned for name in columns)
    padding = records.itemsize - sum(column[0].nbytes for column in columns.values())
    assert 0 <= padding < 4


@given(st.lists(st.integers(0, 19), max_size=30), st.integers(0, 3))
def test_rows_are_taken_and_put_together_in_the_order_asked(index: list[int], topk: int) -> None:
    rows = random_rows(20, topk=topk)
    taken = rows.take(np.array(index, dtype=np.int64))
    for name, column in rows.columns().items():
        assert np.array_equal(taken.columns()[name], column[index])
    one_by_one = [rows.take(np.array([i])) for i in index]
    assert same_rows(concatenated([rows.take(np.arange(0)), *one_by_one]), taken)


@pytest.mark.parametrize("topk", [0, 1, 5])
def test_rows_are_made_of_arrow_columns(topk: int) -> None:
    rows = random_rows(10, topk=topk)
    columns = {name: wide_list(column) for name, column in rows.columns().items()}
    batch = pa.record_batch(columns | {"base_correct": wide_binary(rows.base_correct), "other": columns["length"]})
    assert same_rows(SampleRows.from_arrow(batch), rows)
    assert same_rows(SampleRows.from_arrow(batch.slice(3, 4)), rows.take(np.arange(3, 7)))


@given(
    st.lists(st.integers(1, 5), min_size=1, max_size=4),
    st.sampled_from(["u1", "i1", "i2", "i4", "f2", "f4"]),
    st.integers(0, 9),
)
def test_samples_to_classify_have_tensors_of_any_shape_and_type(shape: list[int], type_: str, num_rows: int) -> None:
    rows = labelled_rows(num_rows, tuple(shape), type_)
    assert rows.records["inputs"].flags.aligned
    assert rows.input_ids.shape == (num_rows, 0)
    found = SampleRows.from_arrow(
        pa.record_batch(
            {name: wide_list(column) for name, column in rows.columns().items()}
            | {"base_correct": wide_binary(rows.base_correct)}
        )
    )
    assert found.inputs is not None and found.inputs.shape == (num_rows, *shape)
    assert same_rows(found, rows)


def test_columns_survive_being_sliced() -> None:
    ids, bits = np.arange(30, dtype=np.uint16).reshape(10, 3), np.arange(20, dtype=np.uint8).reshape(10, 2)
    assert np.array_equal(list_rows(wide_list(ids).slice(4, 3)), ids[4:7])
    assert np.array_equal(binary_rows(wide_binary(bits).slice(4, 3)), bits[4:7])


def test_columns_that_are_not_contiguous_are_written_right() -> None:
    rows = random_rows(10)
    assert not rows.input_ids.flags.c_contiguous
    assert np.array_equal(list_rows(wide_list(rows.input_ids)), rows.input_ids)
    assert np.array_equal(binary_rows(wide_binary(rows.base_correct)), rows.base_correct)
