"""Sources to ingest, and what an ingest has left on the disk."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from replay_service.corpus.format.records import SampleRows
from replay_service.corpus.ingest.settings import IngestSettings
from replay_service.corpus.reading.reader import Corpus
from tests.corpus.worlds import sentences, write_jsonl

NAME = "mixed"
TEXTS = {
    "en/one.jsonl": sentences("english", 40),
    "en/two.parquet": sentences("more english", 30),
    "fr/one.jsonl": sentences("français", 50),
    "essay/1.txt": [" ".join(sentences("essay", 40))],
}
NUM_WITHOUT_TEXT = 2


def write_source(folder: Path) -> Path:
    """The shards of TEXTS, two rows without text, and a file that is no shard."""
    write_jsonl(folder / "en/one.jsonl", [None, *TEXTS["en/one.jsonl"], ""])
    pq.write_table(pa.table({"text": TEXTS["en/two.parquet"]}), folder / "en/two.parquet")
    write_jsonl(folder / "fr/one.jsonl", TEXTS["fr/one.jsonl"])
    (folder / "notes.csv").touch()
    (folder / "essay").mkdir()
    (folder / "essay/1.txt").write_text(TEXTS["essay/1.txt"][0])
    return folder


def settings_of(source: Path | str, folder: Path, model: Path, **others: Any) -> IngestSettings:
    """Rows of 32 tokens in segments of 50 rows, parts of 32 rows, three quantiles."""
    usual = {"seq_len": 32, "num_quantiles": 3, "precision": "float32", "batch_size": 2, "rows_per_segment": 50}
    return IngestSettings(str(source), folder, NAME, str(model), **usual | others)


def all_rows(corpus: Corpus) -> SampleRows:
    segments = corpus.manifest.segments
    return corpus.rows(np.array([n << 32 | row for n, each in enumerate(segments) for row in range(each.num_rows)]))


def content_of(folder: Path) -> dict[str, bytes]:
    """Every file of a corpus but those that tell of one ingest: by its path below the corpus."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name not in ("status.json", ".lock")
    }


def cut_by_hand(texts: Sequence[str], tokenizer: Any, seq_len: int) -> Iterator[tuple[int, ...]]:
    """The rows of texts that are laid end to end."""
    line = [
        token
        for text in texts
        for token in [*tokenizer(text, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
    ]
    for first in range(0, len(line), seq_len):
        row = line[first : first + seq_len]
        if len(row) > 1:
            yield tuple(row)
