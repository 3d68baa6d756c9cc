"""What is remembered of streams: it saves time, and changes nothing."""

from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from replay_service.wire.batches import _HEADER_KEY, Batch, decode_batch, encode_batch
from replay_service.wire.decoding import Heads
from replay_service.wire.losses import LOSSES_SCHEMA, decode_losses, encode_losses
from tests.wire.test_batches import (
    Decoder,
    batch_body,
    losses_body,
    make_batch,
    make_losses,
    records_of,
    stream,
    with_column,
)


def outcome(decode: Decoder, body: bytes) -> object:
    """All that comes of decoding."""
    try:
        decoded = decode(body)
    except ValueError as error:
        return type(error)
    if isinstance(decoded, Batch):
        arrays = {name: (each.dtype, each.shape, each.tobytes()) for name, each in decoded.columns().items()}
        return decoded.header, arrays
    return decoded.tobytes()


def ways(decode: Decoder, body: bytes, heads: Heads) -> tuple[object, object]:
    """What comes of a body where streams are remembered, and where none is."""
    return outcome(partial(decode, heads=heads), body), outcome(decode, body)


@pytest.mark.parametrize(("decode", "body"), [(decode_batch, batch_body()), (decode_losses, losses_body())])
def test_a_stream_like_one_that_came_before_is_read_as_if_it_were_the_first(decode: Decoder, body: bytes) -> None:
    heads = Heads()
    outcome(partial(decode, heads=heads), body)
    assert len(heads) == 1
    for place in range(len(body)):
        for change in (1, 0x80, 0xFF):
            changed = body[:place] + bytes([body[place] ^ change]) + body[place + 1 :]
            with_memory, without = ways(decode, changed, heads)
            assert with_memory == without, (place, change)


@pytest.mark.parametrize(
    "column",
    [
        pa.array([1, None, 2, 3, 4], pa.int64()),
        pa.array([0, 1, 2, 3, 4], pa.int32()),
        pa.array([0, 1, 2, 3, 4], pa.int64()),
        pa.array([[0]] * 5, pa.list_(pa.int64(), 1)),
    ],
)
def test_a_column_of_another_kind_is_not_taken_for_the_one_that_came_before(
    column: pa.Array,
) -> None:
    heads = Heads()
    decode_losses(losses_body(), heads)
    with_memory, without = ways(decode_losses, with_column(losses_body(), "step", column), heads)
    assert with_memory == without


def test_columns_in_another_order_are_found_where_they_are() -> None:
    records, heads = records_of(losses_body()), Heads()
    for order in (LOSSES_SCHEMA.names, LOSSES_SCHEMA.names[::-1], LOSSES_SCHEMA.names):
        np.testing.assert_array_equal(decode_losses(stream(records.select(order)), heads), make_losses(5))


def test_what_is_remembered_has_a_limit() -> None:
    heads, none = Heads(most=4), Heads(most_head_bytes=0)
    for num_rows in range(20):
        np.testing.assert_array_equal(decode_losses(losses_body(num_rows), heads), make_losses(num_rows))
        assert len(heads) <= 4
        decode_losses(losses_body(num_rows), none)
    assert not len(none)


def test_a_head_is_found_for_streams_like_its_own_and_no_others() -> None:
    heads, body = Heads(), bytes(encode_batch(make_batch(5)))
    decode_batch(body, heads=heads)
    assert heads.find(_HEADER_KEY, body) is not None
    assert heads.find(b"another", body) is None
    assert heads.find(_HEADER_KEY, body[:-1]) is None
    assert heads.find(_HEADER_KEY, bytes([body[0] ^ 1]) + body[1:]) is None


def test_few_heads_of_one_length_are_kept_the_latest_first() -> None:
    heads, records = Heads(), records_of(losses_body())
    names = LOSSES_SCHEMA.names
    orders = [names[shift:] + names[:shift] for shift in range(6)]
    bodies = [stream(records.select(order)) for order in orders]
    for body in bodies:
        decode_losses(body, heads)
    same_length = [body for body in bodies if len(body) == len(bodies[-1])]
    assert len(same_length) > 4
    found = [heads.find(b"", body) is not None for body in same_length]
    assert found == [place >= len(same_length) - 4 for place in range(len(same_length))]


def test_a_head_that_is_too_long_is_not_remembered() -> None:
    body = bytes(encode_batch(make_batch(5)))
    heads = Heads()
    decode_batch(body, heads=heads)
    head = heads.find(_HEADER_KEY, body)
    assert head is not None
    num_bytes = len(head.before) + len(head.after)
    for most, is_kept in ((num_bytes, True), (num_bytes - 1, False)):
        limited = Heads(most_head_bytes=most)
        decode_batch(body, heads=limited)
        assert bool(len(limited)) == is_kept


@pytest.mark.parametrize("kind", ["classification", "another"])
def test_a_header_that_says_another_kind_than_the_columns_are_of_is_refused(kind: Any) -> None:
    batch = make_batch(5)
    wrong = replace(batch, header=replace(batch.header, kind=kind))
    heads = Heads()
    for _ in range(2):
        decode_batch(bytes(encode_batch(batch)), heads=heads)
        with pytest.raises(ValueError, match="no rehearsal batch"):
            decode_batch(bytes(encode_batch(wrong)), heads=heads)


def test_a_head_serves_streams_with_other_headers_and_other_numbers() -> None:
    batch, heads = make_batch(5), Heads()
    for step in range(4, 9):
        steps = [replace(each, step=step) for each in batch.header.steps]
        header = replace(batch.header, steps=steps)
        sent = replace(batch, header=header, step=np.full(5, step), input_ids=batch.input_ids + np.uint16(step))
        received = decode_batch(bytes(encode_batch(sent)), heads=heads)
        assert received.header == header
        assert received.input_ids.tolist() == sent.input_ids.tolist()
        assert len(heads) == 1


@pytest.mark.parametrize("further", [b"\0" * 8, b"\xff\xff\xff\xff\0\0\0\0", b"\1" * 8])
def test_bytes_behind_the_numbers_are_treated_alike_whether_the_stream_is_known(
    further: bytes,
) -> None:
    body, heads = losses_body(), Heads()
    longer = body[:-8] + further + body[-8:]
    for _ in range(2):
        decode_losses(body, heads)
        with_memory, without = ways(decode_losses, longer, heads)
        assert with_memory == without


@pytest.mark.parametrize("message", [1, 2])
def test_a_stream_that_does_not_begin_with_a_schema_is_refused(message: int) -> None:
    """Arrow itself crashes when it is told to find a schema in another message."""
    body = losses_body()
    for _ in range(message):
        body = body[8 + int.from_bytes(body[4:8], "little") :]
    with pytest.raises(ValueError, match=r"no Arrow IPC stream|does not begin with a schema"):
        decode_losses(body)


def test_a_batch_cannot_be_written_to_whatever_it_came_in() -> None:
    body = np.frombuffer(encode_batch(make_batch(5)), dtype=np.uint8).copy()
    for each in (body.tobytes(), body.data.toreadonly()):
        assert not any(array.flags.writeable for array in decode_batch(each).columns().values())
    batch = decode_batch(body.data.toreadonly())
    assert all(np.shares_memory(array, body) for array in batch.columns().values())


@given(num_rows=st.integers(0, 70), seed=st.integers(0, 100))
def test_losses_are_encoded_as_arrow_itself_encodes_them(num_rows: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    rows = make_losses(num_rows)
    rows["step"], rows["loss_nats"] = rng.integers(0, 2**40, num_rows), rng.random(num_rows)
    records = pa.record_batch([rows[name].copy() for name in LOSSES_SCHEMA.names], schema=LOSSES_SCHEMA)
    assert bytes(encode_losses(rows)) == stream(records)
