"""Arrow streams from somebody who means harm: refused, or taken for what they are, in little memory."""

import subprocess
import sys
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest

from replay_service.wire.batches import decode_batch, encode_batch
from replay_service.wire.losses import LOSSES_SCHEMA, decode_losses
from tests.wire.test_batches import (
    Decoder,
    batch_body,
    losses_body,
    make_batch,
    make_losses,
    records_of,
    stream,
    touch,
    with_column,
)

BODIES = [(decode_batch, batch_body()), (decode_losses, losses_body())]
HUGE = [2**31 - 1, 2**31, 2**62, 2**63 - 1, -1, -(2**63)]
MEMORY_BYTES = 64 << 20


def survives(decode: Decoder, body: bytes) -> None:
    """It is refused with a ValueError, or every byte of what it decodes to can be read."""
    try:
        decoded = decode(body)
    except ValueError:
        return
    touch(decoded)


@pytest.mark.parametrize(("decode", "body"), BODIES)
def test_a_stream_cut_short_anywhere_is_refused(decode: Decoder, body: bytes) -> None:
    for length in range(len(body)):
        with pytest.raises(ValueError):
            decode(body[:length])


@pytest.mark.parametrize(("decode", "body"), BODIES)
def test_any_byte_may_have_any_value(decode: Decoder, body: bytes) -> None:
    for place in range(len(body)):
        for value in (0, 0x7F, 0xFF, body[place] ^ 1, body[place] ^ 0x80):
            survives(decode, body[:place] + bytes([value]) + body[place + 1 :])


@pytest.mark.parametrize(("decode", "body"), BODIES)
@pytest.mark.parametrize("number", HUGE)
def test_a_length_or_an_offset_may_be_huge(decode: Decoder, body: bytes, number: int) -> None:
    before = pa.default_memory_pool().max_memory()
    for place in range(0, len(body) - 8, 4):
        survives(decode, body[:place] + (number % 2**64).to_bytes(8, "little") + body[place + 8 :])
        survives(decode, body[:place] + (number % 2**32).to_bytes(4, "little") + body[place + 4 :])
    assert pa.default_memory_pool().max_memory() - before < MEMORY_BYTES


@pytest.mark.parametrize(
    "type_",
    [pa.list_(pa.int64()), pa.struct([("x", pa.int64())]), pa.string(), pa.bool_(), pa.decimal128(5), pa.null()],
)
@pytest.mark.parametrize("name", LOSSES_SCHEMA.names)
def test_nested_and_other_types_are_refused(name: str, type_: pa.DataType) -> None:
    with pytest.raises(ValueError, match=name):
        decode_losses(with_column(losses_body(), name, pa.nulls(5, type_)))


def test_losses_may_come_in_very_many_record_batches() -> None:
    records, sink = records_of(losses_body(1)), pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, records.schema) as writer:
        for _ in range(2000):
            writer.write_batch(records)
            writer.write_batch(records[:0])
    np.testing.assert_array_equal(decode_losses(bytes(sink.getvalue())), np.tile(make_losses(1), 2000))


@pytest.mark.parametrize(("decode", "body"), BODIES)
def test_streams_of_the_format_before_version_5_are_refused(decode: Decoder, body: bytes) -> None:
    """They could be compressed without the field that says so."""
    records, sink = records_of(body), pa.BufferOutputStream()
    options = pa.ipc.IpcWriteOptions(metadata_version=pa.ipc.MetadataVersion.V4)
    with pa.ipc.new_stream(sink, records.schema, options=options) as writer:
        writer.write_batch(records)
    with pytest.raises(ValueError, match="version 5"):
        decode(bytes(sink.getvalue()))


@pytest.mark.parametrize("place", range(9))
def test_one_compressed_buffer_among_others_is_refused(place: int) -> None:
    records = records_of(losses_body())
    columns = [pa.array(np.zeros(5)) if i == place else pa.array(np.random.default_rng(i).random(5)) for i in range(9)]
    further = pa.record_batch([*records.columns, *columns], names=[*records.schema.names, *"abcdefghi"])
    with pytest.raises(ValueError, match="compressed"):
        decode_losses(stream(further, "zstd"))


def test_an_answer_may_not_inflate_beyond_a_limit() -> None:
    batch = replace(make_batch(1000), input_ids=np.zeros((1000, 512), dtype=np.uint32))
    body = bytes(encode_batch(batch, "zstd"))
    assert len(body) < 100_000
    assert len(decode_batch(body, most_inflated_bytes=3 << 20)) == 1000
    with pytest.raises(ValueError, match="compressed buffers"):
        decode_batch(body, most_inflated_bytes=1 << 20)


BOMB = """
import resource, sys
from replay_service.wire.batches import decode_batch
body = sys.stdin.buffer.read()
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + (512 << 20),) * 2)
try:
    decode_batch(body)
except ValueError as error:
    print(error)
"""


def test_a_bomb_is_refused_before_memory_is_set_aside_for_it() -> None:
    """The process may have no more than 512 MiB, and the answer inflates to some 1.3 GiB."""
    records = records_of(batch_body(1))
    schema, sink = records.schema, pa.BufferOutputStream()
    bomb = records_of(bytes(encode_batch(replace(make_batch(700_000), input_ids=np.zeros((700_000, 12), np.uint16)))))
    with pa.ipc.new_stream(sink, schema, options=pa.ipc.IpcWriteOptions(compression="zstd")) as writer:
        for _ in range(30):
            writer.write_batch(bomb)
    done = subprocess.run([sys.executable, "-c", BOMB], input=bytes(sink.getvalue()), capture_output=True, check=True)
    assert b"compressed buffers" in done.stdout
