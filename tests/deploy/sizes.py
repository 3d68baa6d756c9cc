"""What a corpus and a journal take, bytes: python -m tests.deploy.sizes

They depend on the settings and not on the machine. A row has 512 tokens of a vocabulary of 49,152; a step rehearses 32
rows of a global batch of 64, on 8 ranks. The journal is measured on SQLite, as the growth of its file.
"""

import tempfile
from pathlib import Path

import numpy as np

from replay_service.wire.losses import LOSS_ROW
from replay_trainer.client import ReplayClient
from tests.support import make_corpus, running_service

SEQ_LEN, VOCAB_SIZE, ROWS = 512, 49_152, 4096
STEPS, RANKS, REHEARSED = 200, 8, 32


def corpus_bytes(folder: Path, topk: int) -> float:
    """Of a sample in its segment and checksums."""
    name = f"topk-{topk}"
    make_corpus(
        folder,
        name,
        rows_per_domain=ROWS // 2,
        seq_len=SEQ_LEN,
        vocab_size=VOCAB_SIZE,
        rows_per_segment=ROWS,
        topk=topk,
    )
    return sum(each.stat().st_size for each in (folder / name / "segments").iterdir()) / ROWS


def journal_bytes(root: Path) -> float:
    """Of a step: its plan, and the reports of all ranks."""
    settings = {"seed": 0, "injection_ratio": 0.5, "global_batch_size": 2 * REHEARSED}
    with running_service(root) as (url, _), ReplayClient(url) as client:
        client.ensure_run("sizes", "topk-0", settings)
        _train(client, 0, STEPS)
        before = _size(root)
        _train(client, STEPS, 2 * STEPS)
        return (_size(root) - before) / STEPS


def _train(client: ReplayClient, first: int, stop: int) -> None:
    for step in range(first, stop):
        for rank in range(RANKS):
            sample_id = client.batch("sizes", step, rank=rank, world_size=RANKS).of_step(step).sample_id
            rows = np.zeros(len(sample_id), LOSS_ROW)
            rows["step"], rows["sample_id"], rows["loss_nats"], rows["num_tokens"] = step, sample_id, 2.0, SEQ_LEN - 1
            client.report("sizes", rows)


def _size(root: Path) -> int:
    return sum(each.stat().st_size for each in root.glob("journal.sqlite*") if not each.name.endswith("-shm"))


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        plain, likely = (corpus_bytes(root / "corpora", topk) for topk in (0, 8))
        journal = journal_bytes(root)
    print("| what | bytes |")
    print("| --- | --- |")
    print(f"| a row of {SEQ_LEN} tokens in a corpus | {plain:,.0f} |")
    print(f"| the same with `store_topk` 8 | {likely:,.0f} |")
    print(f"| a step in the journal: {REHEARSED} rehearsed rows, reports of {RANKS} ranks | {journal:,.0f} |")


if __name__ == "__main__":
    main()
