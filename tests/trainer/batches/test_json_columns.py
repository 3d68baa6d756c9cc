import json
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from replay_trainer.batches.json_columns import JsonColumns
from replay_trainer.errors import InvalidTraining

EMPTY: dict[str, Any] = {}


def columns_of(*parts: list[dict[str, Any]], texts: tuple[str, ...] = ()) -> JsonColumns:
    columns = JsonColumns(texts)
    for rows in parts:
        columns.add(rows)
    return columns


def kept(columns: JsonColumns, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = JsonColumns.batch(rows, columns.schema(), columns.as_json(), str).to_pylist()
    return found


@pytest.mark.parametrize(
    ("values", "type_"),
    [
        ([1, None], pa.int64()),
        ([1, 0.5], pa.float64()),
        ([2**63 + 5, 1], pa.uint64()),
        (["a", None], pa.string()),
        ([[1], [0.5]], pa.list_(pa.float64())),
        ([{"a": 1}, {"b": "x"}], pa.struct([("a", pa.int64()), ("b", pa.string())])),
        ([None], pa.null()),
    ],
)
def test_values_of_one_type_keep_it(values: list[Any], type_: pa.DataType) -> None:
    parts = [[{"x": value}] for value in values], [[{"x": value} for value in values]]
    for part in parts:
        columns = columns_of(*part)
        if type_ != pa.uint64() or part is parts[1]:
            assert columns.schema() == pa.schema([("x", type_)])
            assert columns.as_json() == []


@pytest.mark.parametrize(
    "values",
    [
        [EMPTY],
        [[EMPTY]],
        [{"a": EMPTY}],
        [2**64],
        [-1, 2**63],
        [1, "one"],
        [True, 1],
        ["\ud83d"],
        [{"a": "\ud83d"}],
        [[2**63]],
        [0.5, 2**53 + 1],
        [[1], {"a": 1}],
    ],
)
def test_values_that_no_type_holds_are_json_in_text(values: list[Any]) -> None:
    rows = [{"x": value} for value in values]
    for parts in ([rows], [[row] for row in rows]):
        columns = columns_of(*parts)
        assert columns.as_json() == ["x"]
        assert [json.loads(row["x"]) for row in kept(columns, rows)] == values


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(st.characters()),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(st.characters(), max_size=2), inner, max_size=3)
    ),
    max_leaves=6,
)


@given(st.lists(st.dictionaries(st.sampled_from(["a", "b", "\ud800"]), values, max_size=3), min_size=1, max_size=5))
@settings(max_examples=100, deadline=None)
def test_any_lines_are_kept_and_can_be_written(rows: list[dict[str, Any]]) -> None:
    columns = columns_of(rows)
    batch = JsonColumns.batch(rows, columns.schema(), columns.as_json(), str)
    if batch.num_columns:
        assert len(batch) == len(rows)
        pq.write_table(pa.Table.from_batches([batch]), pa.BufferOutputStream())


def test_a_column_of_text_stays_text_whatever_else_is_in_it() -> None:
    rows = [{"text": "a"}, {"text": 5}, {"text": "\ud83d"}, {"text": EMPTY}]
    columns = columns_of(rows, texts=("text",))
    assert columns.schema() == pa.schema([("text", pa.string())])
    assert [row["text"] for row in kept(columns, rows)] == ["a", None, None, None]


def test_a_value_that_came_later_is_named() -> None:
    columns = columns_of([{"id": 1}])
    with pytest.raises(InvalidTraining, match="line 1: column 'id' cannot be kept as int64"):
        JsonColumns.batch([{"id": 1}, {"id": "x"}], columns.schema(), [], "line {}".format)
