"""What a checksum of a batch costs, beside encoding and decoding it: `python -m tests.benchmarks.checksums`."""

import hashlib
import timeit
import zlib
from collections.abc import Callable

import numpy as np
from zlib_ng.zlib_ng import crc32

from replay_service.wire.batches import Batch, BatchHeader, StepHeader, decode_batch, encode_batch
from replay_service.wire.decoding import Heads

NUM_ROWS = 64
SEQ_LEN = 1024
_REPEATS = 200


def a_batch() -> Batch:
    """A window of one step, of random rows of 16-bit token ids."""
    rng = np.random.default_rng(0)
    return Batch(
        header=BatchHeader("a-run", 1, "wiki", 1, "0.5", 0, 1, SEQ_LEN, 0, [StepHeader(0, NUM_ROWS, 0, 1)]),
        step=np.zeros(NUM_ROWS, dtype=np.int64),
        sample_id=np.arange(NUM_ROWS),
        input_ids=rng.integers(0, 1 << 16, (NUM_ROWS, SEQ_LEN)).astype(np.uint16),
        length=np.full(NUM_ROWS, SEQ_LEN, dtype=np.int32),
        base_loss=np.ones(NUM_ROWS, dtype=np.float32),
        base_correct=rng.integers(0, 256, (NUM_ROWS, SEQ_LEN // 8)).astype(np.uint8),
        stratum=np.zeros(NUM_ROWS, dtype=np.int32),
        probability=np.ones(NUM_ROWS),
        times_drawn=np.ones(NUM_ROWS, dtype=np.int32),
    )


def microseconds(action: Callable[[], object]) -> float:
    return min(timeit.repeat(action, number=_REPEATS, repeat=5)) / _REPEATS * 1e6


def main() -> None:
    batch = a_batch()
    body, heads = bytes(encode_batch(batch)), Heads()
    print(f"a batch of {NUM_ROWS} rows of {SEQ_LEN} tokens, {len(body):,} bytes; microseconds:")
    actions: dict[str, Callable[[], object]] = {
        "encode": lambda: bytes(encode_batch(batch)),
        "decode": lambda: decode_batch(body, heads=heads),
        "CRC-32": lambda: crc32(body),
        "CRC-32 of the standard library": lambda: zlib.crc32(body),
        "SHA-256": lambda: hashlib.sha256(body).digest(),
        "BLAKE2b": lambda: hashlib.blake2b(body, digest_size=8).digest(),
    }
    for name, action in actions.items():
        print(f"  {name:32} {microseconds(action):6.0f}")


if __name__ == "__main__":
    main()
