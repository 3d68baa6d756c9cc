import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from replay_service.wire.batches import (
    Batch,
    BatchHeader,
    Compression,
    StepHeader,
    decode_batch,
    encode_batch,
    encode_parts,
)
from replay_service.wire.losses import LOSS_ROW, LOSSES_SCHEMA, decode_losses, encode_losses
from replay_service.wire.protocol import WIRE_VERSION

SEQ_LEN = 12
OPTIONAL = ("topk_ids", "topk_logprobs", "inputs", "label")
COLUMNS = [name for name in Batch.column_names() if name not in OPTIONAL]
Decoder = Callable[..., Any]


def make_batch(num_rows: int) -> Batch:
    rng = np.random.default_rng(0)
    header = BatchHeader(
        "tune",
        1,
        "wiki",
        1,
        "0.3",
        0,
        1,
        SEQ_LEN,
        0,
        [StepHeader(4, num_rows, 7, 2), StepHeader(5, 0, 7 + num_rows, 2)],
    )
    return Batch(
        header=header,
        step=np.full(num_rows, 4, dtype=np.int64),
        sample_id=rng.integers(0, 2**40, num_rows),
        input_ids=rng.integers(0, 300, (num_rows, SEQ_LEN)).astype(np.uint16),
        length=np.full(num_rows, SEQ_LEN, dtype=np.int32),
        base_loss=rng.random(num_rows, dtype=np.float32),
        base_correct=rng.integers(0, 256, (num_rows, 2)).astype(np.uint8),
        stratum=np.zeros(num_rows, dtype=np.int32),
        probability=rng.random(num_rows),
        times_drawn=np.ones(num_rows, dtype=np.int32),
    )


def make_losses(num_rows: int) -> np.ndarray:
    rows = np.zeros(num_rows, dtype=LOSS_ROW)
    rows["sample_id"], rows["loss_nats"], rows["num_tokens"] = np.arange(num_rows), 1.5, 10
    return rows


def batch_body(num_rows: int = 5) -> bytes:
    return bytes(encode_batch(make_batch(num_rows)))


def losses_body(num_rows: int = 5) -> bytes:
    return bytes(encode_losses(make_losses(num_rows)))


def records_of(body: bytes) -> pa.RecordBatch:
    return pa.ipc.open_stream(body).read_next_batch()


def stream(records: pa.RecordBatch, compression: str | None = None) -> bytes:
    sink = pa.BufferOutputStream()
    options = pa.ipc.IpcWriteOptions(compression=compression)
    with pa.ipc.new_stream(sink, records.schema, options=options) as writer:
        writer.write_batch(records)
    return bytes(sink.getvalue())


def with_column(body: bytes, name: str, column: pa.Array) -> bytes:
    records = records_of(body)
    return stream(records.set_column(records.schema.get_field_index(name), name, column))


def with_header(body: bytes, header: object) -> bytes:
    return stream(records_of(body).replace_schema_metadata({b"replay.header": json.dumps(header).encode()}))


def touch(decoded: Batch | np.ndarray) -> int:
    """Read every byte, so that a view beyond its buffer would show."""
    arrays = list(decoded.columns().values()) if isinstance(decoded, Batch) else [decoded]
    assert len({len(array) for array in arrays}) == 1
    return sum(len(array.tobytes()) for array in arrays)


@pytest.mark.parametrize("num_rows", [0, 1, 5])
def test_a_batch_survives_the_wire(num_rows: int) -> None:
    sent = make_batch(num_rows)
    received = decode_batch(bytes(encode_batch(sent)))
    assert received.header == sent.header
    for name in COLUMNS:
        there, back = getattr(sent, name), getattr(received, name)
        assert (there.dtype, there.shape) == (back.dtype, back.shape)
        np.testing.assert_array_equal(there, back)


def test_the_rows_of_a_step_are_a_part_of_its_batch() -> None:
    batch = make_batch(6)
    steps = [StepHeader(each, 2, 7 + 2 * place, 2) for place, each in enumerate((4, 5, 6))]
    whole = replace(batch, header=replace(batch.header, steps=steps), step=np.array([4, 4, 5, 5, 6, 6]))
    for place, header in enumerate(steps):
        part = whole.of_step(header.step)
        assert part.only_step == header
        assert part.header == replace(whole.header, steps=[header])
        for name, column in part.columns().items():
            assert np.array_equal(column, whole.columns()[name][2 * place : 2 * place + 2])
    assert np.shares_memory(whole.of_step(5).input_ids, whole.input_ids)
    none = whole.of_step(7)
    assert (len(none), none.header.steps) == (0, [])


def test_adjacent_windows_are_joined_into_the_batch_that_they_are_parts_of() -> None:
    batch = make_batch(6)
    steps = [StepHeader(each, 2, 7 + 2 * place, 2) for place, each in enumerate((4, 5, 6))]
    whole = replace(batch, header=replace(batch.header, steps=steps), step=np.array([4, 4, 5, 5, 6, 6]))
    joined = Batch.joined([whole.of_step(header.step) for header in steps])
    assert joined.header == whole.header
    for name, column in whole.columns().items():
        np.testing.assert_array_equal(joined.columns()[name], column)


def test_some_rows_of_a_batch_keep_its_header() -> None:
    batch = make_batch(6)
    part = batch.rows(slice(2, 4))
    assert part.header == batch.header
    assert all(np.array_equal(column, batch.columns()[name][2:4]) for name, column in part.columns().items())


@pytest.mark.parametrize("is_contiguous", [True, False])
def test_arrays_that_are_sent_from_where_they_are_come_through(is_contiguous: bool) -> None:
    small, rng = make_batch(700), np.random.default_rng(0)
    wide = rng.integers(0, 300, (700, 128)).astype(np.uint16)
    batch = replace(small, input_ids=wide[:, :64].copy() if is_contiguous else wide[:, :64])
    body = bytes(encode_batch(batch))
    assert np.array_equal(decode_batch(body).input_ids, wide[:, :64])
    assert body == b"".join(encode_parts(batch))
    assert len(encode_parts(batch)) == (3 if is_contiguous else 1)
    losses = make_losses(10_000)
    assert np.array_equal(decode_losses(bytes(encode_losses(losses))), losses)


@pytest.mark.parametrize("num_rows", [0, 1, 5])
def test_losses_survive_the_wire(num_rows: int) -> None:
    rows = make_losses(num_rows)
    np.testing.assert_array_equal(decode_losses(bytes(encode_losses(rows))), rows)


def test_losses_may_come_in_several_record_batches() -> None:
    records, sink = records_of(losses_body()), pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, records.schema) as writer:
        for _ in range(3):
            writer.write_batch(records)
    np.testing.assert_array_equal(decode_losses(bytes(sink.getvalue())), np.tile(make_losses(5), 3))


def test_losses_may_have_further_columns_in_any_order() -> None:
    records = records_of(losses_body())
    shuffled = records.select(LOSSES_SCHEMA.names[::-1]).append_column("host", pa.array(["a"] * 5))
    np.testing.assert_array_equal(decode_losses(stream(shuffled)), make_losses(5))


@pytest.mark.parametrize("decode", [decode_batch, decode_losses])
@pytest.mark.parametrize("body", [b"", b"\0", b"garbage" * 100, b"\xff" * 64, b"\xff\xff\xff\xff\0\0\0\0"])
def test_garbage_is_refused(decode: Decoder, body: bytes) -> None:
    with pytest.raises(ValueError):
        decode(body)


@pytest.mark.parametrize(("decode", "body"), [(decode_batch, losses_body()), (decode_losses, batch_body())])
def test_one_kind_of_body_is_not_taken_for_the_other(decode: Decoder, body: bytes) -> None:
    with pytest.raises(ValueError):
        decode(body)


@pytest.mark.parametrize("name", [name for name in LOSSES_SCHEMA.names if name != "num_gains"])
def test_losses_without_a_column_are_refused(name: str) -> None:
    records = records_of(losses_body())
    with pytest.raises(ValueError, match=name):
        decode_losses(stream(records.drop_columns([name])))


@pytest.mark.parametrize("name", LOSSES_SCHEMA.names)
def test_losses_with_a_column_twice_are_refused(name: str) -> None:
    records = records_of(losses_body())
    with pytest.raises(ValueError, match=name):
        decode_losses(stream(records.append_column(name, records.column(name))))


@pytest.mark.parametrize("name", LOSSES_SCHEMA.names)
def test_losses_of_another_type_are_refused(name: str) -> None:
    column = records_of(losses_body()).column(name)
    with pytest.raises(ValueError, match=name):
        decode_losses(with_column(losses_body(), name, column.cast(pa.float32())))


@pytest.mark.parametrize("name", LOSSES_SCHEMA.names)
def test_a_null_among_losses_is_refused(name: str) -> None:
    column = records_of(losses_body()).column(name)
    with pytest.raises(ValueError, match=f"'{name}' has nulls"):
        decode_losses(with_column(losses_body(), name, pa.array([None, *column.to_pylist()[1:]], column.type)))


def test_dictionary_encoded_losses_are_refused() -> None:
    column = records_of(losses_body()).column("loss_nats").dictionary_encode()
    with pytest.raises(ValueError, match="dictionary"):
        decode_losses(with_column(losses_body(), "loss_nats", column))


GOLDEN = Path(__file__).with_name("golden")


@pytest.mark.parametrize("compression", ["none", "zstd"])
def test_a_batch_comes_through_whether_it_is_compressed_or_not(compression: Compression) -> None:
    batch = make_batch(40)
    again = decode_batch(bytes(encode_batch(batch, compression)))
    assert again.header == batch.header
    assert all(np.array_equal(getattr(again, name), getattr(batch, name)) for name in COLUMNS)


@pytest.mark.parametrize("compression", ["none", "zstd"])
@pytest.mark.parametrize("num_rows", [0, 3])
def test_the_likeliest_tokens_come_along_when_they_are_there(compression: Compression, num_rows: int) -> None:
    rng, shape = np.random.default_rng(1), (num_rows, SEQ_LEN - 1, 4)
    topk = {
        "topk_ids": rng.integers(0, 300, shape).astype(np.uint16),
        "topk_logprobs": rng.random(shape).astype(np.float16),
    }
    again = decode_batch(bytes(encode_batch(replace(make_batch(num_rows), **topk), compression)))
    for name, sent in topk.items():
        got = getattr(again, name)
        assert (got.dtype, got.shape, got.tobytes()) == (sent.dtype, sent.shape, sent.tobytes())
    assert again.rows(slice(1, 2)).columns()["topk_ids"].tolist() == topk["topk_ids"][1:2].tolist()
    assert list(decode_batch(bytes(encode_batch(make_batch(num_rows)))).columns()) == COLUMNS


def test_compression_makes_like_tokens_small() -> None:
    batch = replace(make_batch(40), input_ids=np.zeros((40, SEQ_LEN), dtype=np.uint16))
    assert len(encode_batch(batch, "zstd")) < len(encode_batch(batch))


def test_a_batch_of_this_wire_version_from_an_earlier_day_is_read() -> None:
    """A change that breaks this is a change of the wire: it needs a new version, and a golden file of that."""
    batch = decode_batch((GOLDEN / f"batch-v{WIRE_VERSION}.arrow").read_bytes())
    expected = make_batch(5)
    assert batch.header == expected.header
    for name in COLUMNS:
        column, wanted = getattr(batch, name), getattr(expected, name)
        assert (column.dtype, column.tolist()) == (wanted.dtype, wanted.tolist())


def test_batches_have_the_schema_of_the_golden_file() -> None:
    golden = pa.ipc.open_stream((GOLDEN / f"batch-v{WIRE_VERSION}.arrow").read_bytes())
    today = pa.ipc.open_stream(encode_batch(make_batch(5)))
    assert today.schema.equals(golden.schema)
    headers = [json.loads(each.schema.metadata[b"replay.header"]) for each in (today, golden)]
    assert headers[0] == headers[1]


@pytest.mark.parametrize("num_rows", [0, 5])
@pytest.mark.parametrize("compression", ["lz4", "zstd"])
def test_compressed_reports_are_refused_because_they_could_grow_without_bound(compression: str, num_rows: int) -> None:
    with pytest.raises(ValueError, match="compressed"):
        decode_losses(stream(records_of(losses_body(num_rows)), compression))


def test_rows_that_take_no_bytes_are_refused_before_memory_is_set_aside_for_them() -> None:
    with pytest.raises(ValueError, match="step"):
        decode_losses(stream(pa.record_batch({"nothing": pa.nulls(2**31 - 1)})))


@pytest.mark.parametrize("name", COLUMNS)
def test_a_batch_without_a_column_is_refused(name: str) -> None:
    records = records_of(batch_body())
    with pytest.raises(ValueError, match=name):
        decode_batch(stream(records.drop_columns([name])))


@pytest.mark.parametrize(
    ("name", "column"),
    [
        ("step", pa.array(np.arange(5.0))),
        ("sample_id", pa.array(list("abcde"))),
        ("stratum", pa.array([1, None, 2, 3, 4], pa.int32())),
        ("stratum", pa.array([1] * 5, pa.int32()).dictionary_encode()),
        ("input_ids", pa.array([[1] * 12] * 5, pa.list_(pa.uint16()))),
        ("input_ids", pa.array([["a"] * 12] * 5, pa.list_(pa.string(), 12))),
        ("input_ids", pa.array([[1] * 12] * 4 + [None], pa.list_(pa.uint16(), 12))),
        ("input_ids", pa.array([[None] * 12] * 5, pa.list_(pa.uint16(), 12))),
        ("base_correct", pa.array([b"ab", None, b"ab", b"ab", b"ab"], pa.binary(2))),
        ("base_correct", pa.array([b"ab"] * 5)),
    ],
)
def test_a_batch_with_a_column_of_another_type_or_a_null_is_refused(name: str, column: pa.Array) -> None:
    with pytest.raises(ValueError):
        decode_batch(with_column(batch_body(), name, column))


@pytest.mark.parametrize(
    "header", [3, "x", [], None, {}, {"steps": 3}, {"steps": [{"step": 1}]}, {"steps": [], "x": 1}]
)
def test_a_batch_with_a_damaged_header_is_refused(header: object) -> None:
    with pytest.raises(ValueError, match="no rehearsal batch"):
        decode_batch(with_header(batch_body(), header))


def test_a_batch_of_another_wire_version_is_refused() -> None:
    header = json.loads(records_of(batch_body()).schema.metadata[b"replay.header"])
    with pytest.raises(ValueError, match="wire version 2; this release reads 1"):
        decode_batch(with_header(batch_body(), header | {"wire_version": 2}))


@given(st.data())
@settings(max_examples=300, deadline=None)
def test_damage_is_refused_or_decodes_and_nothing_else(data: st.DataObject) -> None:
    decode, body = data.draw(
        st.sampled_from(
            [
                (decode_batch, batch_body()),
                (decode_batch, batch_body(0)),
                (decode_losses, losses_body()),
                (decode_losses, losses_body(0)),
            ]
        )
    )
    damaged = bytearray(body)
    for bit in data.draw(st.lists(st.integers(0, 8 * len(body) - 1), max_size=4)):
        damaged[bit // 8] ^= 1 << bit % 8
    kept = data.draw(st.just(len(body)) | st.integers(0, len(body)))
    try:
        decoded = decode(bytes(damaged[:kept]))
    except ValueError:
        return
    touch(decoded)


@given(st.binary(max_size=200))
@settings(max_examples=100, deadline=None)
def test_no_bytes_make_the_decoders_fail_otherwise(body: bytes) -> None:
    for decode in (decode_batch, decode_losses):
        with pytest.raises(ValueError):
            decode(body)


@given(num_rows=st.integers(0, 40), seq_len=st.integers(1, 40), dtype=st.sampled_from(["u1", "u2", "u4"]))
def test_a_batch_is_encoded_as_arrow_itself_encodes_it(num_rows: int, seq_len: int, dtype: str) -> None:
    rng = np.random.default_rng(num_rows)
    batch = replace(
        make_batch(num_rows),
        input_ids=rng.integers(0, 200, (num_rows, seq_len)).astype(dtype),
        base_correct=rng.integers(0, 256, (num_rows, -(-seq_len // 8))).astype(np.uint8),
    )
    encoded = bytes(encode_batch(batch))
    with pa.ipc.open_stream(encoded) as reader:
        schema, records = reader.schema, list(reader)
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, schema) as writer:
        for each in records:
            writer.write_batch(each)
    assert sink.getvalue().to_pybytes() == encoded
    np.testing.assert_array_equal(decode_batch(encoded).input_ids, batch.input_ids)
