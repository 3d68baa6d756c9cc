"""Which Arrow types the columns of a sample take, and the two kinds of samples."""

from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from replay_service.wire.batches import decode_batch, encode_batch
from replay_service.wire.columns import columns_of
from replay_service.wire.losses import decode_losses
from replay_service.wire.samples import SampleColumns
from tests.wire.test_batches import losses_body, make_batch, make_losses, records_of, stream

IDS, NESTED = pa.list_(pa.uint16(), 3), pa.list_(pa.list_(pa.uint16(), 2), 3)
HALVES = pa.list_(pa.list_(pa.float16(), 2), 3)


@pytest.mark.parametrize(
    ("name", "fitting", "others"),
    [
        ("input_ids", IDS, [pa.uint16(), pa.list_(pa.uint16()), pa.list_(pa.int16(), 3), NESTED]),
        ("topk_ids", NESTED, [IDS, HALVES, pa.list_(pa.list_(pa.uint16()), 3), pa.list_(pa.list_(pa.uint16(), 2))]),
        ("topk_logprobs", HALVES, [pa.list_(pa.float16(), 3), NESTED, pa.list_(pa.list_(pa.float32(), 2), 3)]),
        ("base_correct", pa.binary(2), [pa.binary(), IDS]),
        ("inputs", pa.list_(pa.list_(pa.float32(), 2), 3), [pa.float32(), pa.list_(pa.string(), 3), pa.list_(IDS)]),
        ("inputs", pa.list_(pa.uint8(), 3), [pa.list_(pa.uint8()), pa.list_(pa.list_(pa.bool_(), 2), 3)]),
    ],
)
def test_each_column_takes_its_own_type_alone(name: str, fitting: pa.DataType, others: list[pa.DataType]) -> None:
    column = columns_of(SampleColumns)[name]
    assert column.fits(fitting)
    assert not any(column.fits(other) for other in others)


def test_samples_to_classify_travel_without_token_ids() -> None:
    rng, text = np.random.default_rng(0), make_batch(5)
    inputs, label = rng.random((5, 3, 2), dtype=np.float32), np.arange(5, dtype=np.int32)
    columns = {name: each for name, each in text.columns().items() if name != "input_ids"}
    header = replace(text.header, kind="classification")
    batch = type(text).of({**columns, "inputs": inputs, "label": label}, header=header)
    assert (batch.input_ids.shape, batch.input_ids.dtype) == ((5, 0), np.uint8)
    assert "input_ids" not in batch.columns()
    again = decode_batch(bytes(encode_batch(batch)))
    assert again.header == header
    assert again.inputs is not None and again.label is not None
    assert np.array_equal(again.inputs, inputs) and again.label.tolist() == label.tolist()
    assert again.input_ids.shape == (5, 0)
    unknown: Any = "speech"
    with pytest.raises(ValueError, match="'speech' are not known to this release"):
        decode_batch(bytes(encode_batch(replace(batch, header=replace(header, kind=unknown)))))


def test_a_report_that_does_not_tell_of_gains_is_taken() -> None:
    records = records_of(losses_body()).drop_columns(["num_gains"])
    rows = make_losses(5)
    rows["num_gains"] = -1
    assert np.array_equal(decode_losses(stream(records)), rows)
