"""What reading random rows costs, as ratios to bare numpy: `python -m tests.benchmarks.reading`.

README.md in this folder says what each ratio means.
"""

import argparse
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from replay_service.corpus.reading.reader import Corpus
from replay_service.sampling.partition import sample_ids
from tests.benchmarks.ratios import as_table, measured, repeated
from tests.support import make_corpus

NUM_SEGMENTS = 4
ROWS_A_ROUND = 4096


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=101)
    parser.add_argument("--seq-len", type=int, nargs="+", default=[512, 2048])
    parser.add_argument("--megabytes", type=int, default=128, help="of one corpus")
    wanted = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        print(reading(Path(folder), wanted.repeats, wanted.seq_len, wanted.megabytes << 20))


def reading(root: Path, repeats: int, seq_lens: Sequence[int], num_bytes: int) -> str:
    """Random rows a second, against fancy indexing of one mapped file with the same bytes a row."""
    rows = []
    for seq_len in seq_lens:
        corpus, raw, addresses = world(root / str(seq_len), seq_len, num_bytes)
        for at_once in (64, 512):
            ways: list[Callable[[], float]] = [
                partial(rate, raw.__getitem__, np.arange(len(addresses)), at_once, np.random.default_rng(0)),
                partial(rate, corpus.rows, addresses, at_once, np.random.default_rng(0)),
            ]
            bare, own = repeated(repeats, ways)
            name = f"seq_len {seq_len}, {at_once} ids"
            rows.append([f"numpy.memmap, {name}", *measured(bare, bare, "rows/s")])
            rows.append([f"Corpus.rows, {name}", *measured(own, bare, "rows/s")])
    return as_table(["what", "rate", "ratio"], rows)


def world(root: Path, seq_len: int, num_bytes: int) -> tuple[Corpus, np.ndarray, np.ndarray]:
    """A corpus, a raw file of the same number of rows of the same width, and every sample id; all read once."""
    row_bytes = 2 * seq_len + seq_len // 8 + 12
    rows_per_segment = num_bytes // row_bytes // NUM_SEGMENTS
    num_rows = rows_per_segment * NUM_SEGMENTS
    make_corpus(root, rows_per_domain=num_rows // 2, rows_per_segment=rows_per_segment, seq_len=seq_len)
    np.random.default_rng(0).integers(0, 256, (num_rows, row_bytes), dtype=np.uint8).tofile(root / "raw")
    corpus = Corpus(root / "wiki")
    raw = np.memmap(root / "raw", np.uint8, "r", shape=(num_rows, row_bytes)).view(np.ndarray)
    addresses = sample_ids(*np.divmod(np.arange(num_rows), rows_per_segment))
    for first in range(0, num_rows, 1024):
        corpus.rows(addresses[first : first + 1024])
        raw[np.arange(first, min(first + 1024, num_rows))]
    return corpus, raw, addresses


def rate(read: Callable[[np.ndarray], Any], addresses: np.ndarray, at_once: int, rng: np.random.Generator) -> float:
    """Rows a second of the thread's time, `at_once` rows a call, uniformly random among all."""
    drawn = rng.integers(0, len(addresses), (ROWS_A_ROUND // at_once, at_once))
    batches = list(addresses[drawn])
    # The thread's own time: nothing is waited for, and other work on the machine would count else.
    begin = time.thread_time()
    for batch in batches:
        read(batch)
    return drawn.size / (time.thread_time() - begin)


if __name__ == "__main__":
    main()
