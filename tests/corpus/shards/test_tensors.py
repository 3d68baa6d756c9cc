from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from replay_service.corpus.format.manifest import Classes
from replay_service.corpus.ingest.labelled import NO_CLASS, OTHER_SHAPE, OTHER_TOKENS, judged
from replay_service.corpus.shards.documents import (
    NOT_A_LABEL,
    NOT_A_TENSOR,
    NOT_FINITE,
    Columns,
    Labelled,
    Row,
    SetAside,
    document_of,
)
from replay_service.corpus.shards.tensors import tensors_of
from replay_service.wire.columns import wide_list

COLUMNS = Columns(inputs="image", label="label")
IMAGES = Classes(10, "none", [2, 2], "uint8")


def forms_of(tensors: np.ndarray) -> list[pa.Array]:
    """Every way to lay tensors into a column."""
    nested = pa.array(tensors.tolist(), type=list_type(tensors))
    extension = pa.FixedShapeTensorArray.from_numpy_ndarray(np.ascontiguousarray(tensors))
    return [wide_list(tensors), nested, extension]


def list_type(tensors: np.ndarray) -> pa.DataType:
    type_ = pa.from_numpy_dtype(tensors.dtype)
    for _ in tensors.shape[1:]:
        type_ = pa.list_(type_)
    return type_


@given(st.lists(st.integers(1, 4), min_size=1, max_size=3), st.sampled_from(["u1", "i4", "f4"]), st.integers(0, 5))
def test_tensors_come_out_of_every_form_as_they_went_in(shape: list[int], type_: str, first: int) -> None:
    tensors = np.random.default_rng(0).integers(0, 99, (6, *shape)).astype(type_)
    for column in forms_of(tensors):
        found = tensors_of(column.slice(first))
        assert len(found) == 6 - first
        for mine, wanted in zip(found, tensors[first:], strict=True):
            assert mine.dtype == wanted.dtype
            np.testing.assert_array_equal(mine, wanted)


@pytest.mark.parametrize(
    "values",
    [
        [[[1, 2], [3, 4]], None, [[1, 2], [3]], [], [[1, None], [2, 3]], [[5, 6], [7, 8]]],
        [[[1.0, 2.0], [3.0, 4.0]], [[float("nan"), 2.0], [3.0, 4.0]], [[5.0, 6.0], [7.0, 8.0]]],
    ],
)
def test_rows_that_hold_no_tensor_are_told_from_those_that_do(values: list[Any]) -> None:
    found = tensors_of(pa.array(values))
    documents = [document_of(Row(i, {"image": each, "label": 1}), COLUMNS, "d") for i, each in enumerate(found)]
    usable = [each.row for each in documents if isinstance(each, Labelled)]
    assert usable == [0, len(values) - 1]
    assert {each.reason for each in documents if isinstance(each, SetAside)} <= {NOT_A_TENSOR, NOT_FINITE}


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"image": [[1, 2], [3, 4]], "label": 2.0}, NOT_A_LABEL),
        ({"image": [[1, 2], [3, 4]], "label": None}, NOT_A_LABEL),
        ({"image": [[1, 2], [3, 4]], "label": True}, NOT_A_LABEL),
        ({"image": "cat", "label": 1}, NOT_A_TENSOR),
        ({"image": 3, "label": 1}, NOT_A_TENSOR),
        ({"image": [["a"]], "label": 1}, NOT_A_TENSOR),
        ({"image": [[1, 2**40]], "label": 1}, NOT_FINITE),
        ({"image": [[1.0, 1e300]], "label": 1}, NOT_FINITE),
    ],
)
@pytest.mark.filterwarnings("ignore:overflow encountered:RuntimeWarning")
def test_a_row_that_cannot_be_classified_is_set_aside(fields: dict[str, Any], reason: str) -> None:
    found = document_of(Row(3, fields), COLUMNS, "d")
    assert isinstance(found, SetAside) and (found.row, found.reason) == (3, reason)


def test_wide_numbers_are_stored_as_narrow_ones() -> None:
    for given_, stored in (([1, 2], "int32"), ([1.5, 2.0], "float32"), (np.ones(2, np.float16), "float16")):
        found = document_of(Row(0, {"image": given_, "label": 1}), COLUMNS, "d")
        assert isinstance(found, Labelled) and isinstance(found.content, np.ndarray)
        assert found.content.dtype == stored


@pytest.mark.parametrize(
    ("content", "label", "reason"),
    [
        (np.ones((2, 2), np.uint8), 10, NO_CLASS),
        (np.ones((2, 2), np.uint8), -1, NO_CLASS),
        (np.ones((2, 3), np.uint8), 1, OTHER_SHAPE),
        (np.full((2, 2), 0.5, np.float32), 1, OTHER_SHAPE),
        (np.full((2, 2), 256, np.int32), 1, OTHER_SHAPE),
        (np.full((2, 2), -1, np.int32), 1, OTHER_SHAPE),
    ],
)
def test_a_sample_that_does_not_fit_the_corpus_is_set_aside(content: np.ndarray, label: int, reason: str) -> None:
    found = judged(Labelled("d", None, content, label, 7), IMAGES, 0)
    assert isinstance(found, SetAside) and (found.row, found.reason) == (7, reason)


def test_numbers_that_stay_the_same_are_taken_in_the_corpus_type() -> None:
    found = judged(Labelled("d", None, np.array([[0, 255], [1, 2]], np.int32), 9, 0), IMAGES, 0)
    assert isinstance(found, Labelled) and isinstance(found.content, np.ndarray)
    assert found.content.dtype == np.uint8 and found.content.tolist() == [[0, 255], [1, 2]]


def test_token_ids_beyond_the_vocabulary_are_set_aside() -> None:
    found = judged(Labelled("d", None, np.array([1, 50]), 1, 0), Classes(10, "none"), 50)
    assert isinstance(found, SetAside) and found.reason == OTHER_TOKENS
