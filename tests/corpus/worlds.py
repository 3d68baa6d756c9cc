"""Shards to ingest, and rows to write down."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, replace
from itertools import zip_longest
from pathlib import Path

import numpy as np
import pyarrow as pa

from replay_service.corpus.format.manifest import DomainSummary, Manifest, Segment, write_manifest
from replay_service.corpus.format.records import SampleRows
from replay_service.corpus.format.segment_file import write_segment
from replay_service.corpus.format.strata import Group
from replay_service.sampling.partition import Int64Array, sample_ids
from replay_service.wire.columns import wide_binary, wide_list


def write_jsonl(path: Path, texts: Iterable[object], column: str = "text") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps({column: text}) + "\n" for text in texts))
    return path


def sentences(domain: str, count: int) -> list[str]:
    """Documents of different lengths, no two alike."""
    return [f"{domain} {i}: the cat of number {i * i} sat on the mat. " * (1 + i % 4) for i in range(count)]


def random_rows(num_rows: int, seq_len: int = 12, seed: int = 0, topk: int = 0) -> SampleRows:
    """Rows of which no two are alike; with the base model's `topk` likeliest tokens if there are any."""
    rng = np.random.default_rng(seed)
    shape = (num_rows, seq_len - 1, topk)
    return SampleRows.of_columns(
        input_ids=rng.integers(0, 300, (num_rows, seq_len)).astype(np.uint16),
        length=rng.integers(2, seq_len + 1, num_rows).astype(np.int32),
        base_loss=rng.gamma(4.0, 1.0, num_rows).astype(np.float32),
        base_correct=rng.integers(0, 256, (num_rows, -(-seq_len // 8))).astype(np.uint8),
        stratum=np.sort(rng.integers(0, 4, num_rows)).astype(np.int32),
        topk_ids=rng.integers(0, 300, shape).astype(np.uint16) if topk else None,
        topk_logprobs=-rng.random(shape).astype(np.float16) if topk else None,
    )


def concatenated(parts: Sequence[SampleRows]) -> SampleRows:
    """All rows of `parts`, at least one, which have the same fields."""
    columns = {name: np.concatenate([part.columns()[name] for part in parts]) for name in parts[0].columns()}
    return SampleRows.of_columns(**columns)


def labelled_rows(num_rows: int, shape: tuple[int, ...] = (1, 4, 4), type_: str = "u1", seed: int = 0) -> SampleRows:
    """Samples to classify, of which no two are alike."""
    rng = np.random.default_rng(seed)
    return SampleRows.of_columns(
        inputs=rng.integers(0, 127, (num_rows, *shape)).astype(type_),
        label=rng.integers(0, 10, num_rows).astype(np.int32),
        length=np.ones(num_rows, dtype=np.int32),
        base_loss=rng.gamma(4.0, 1.0, num_rows).astype(np.float32),
        base_correct=rng.integers(0, 2, (num_rows, 1)).astype(np.uint8),
        stratum=np.sort(rng.integers(0, 4, num_rows)).astype(np.int32),
    )


def staged_rows(
    domains: Sequence[str], first_row: int = 0, seq_len: int = 12, seed: int = 0, topk: int = 0, num_features: int = 0
) -> pa.Table:
    """Scored rows of these domains as the pipeline stages them, numbered from `first_row`; no two are alike."""
    num_rows = len(domains)
    rows = random_rows(num_rows, seq_len, seed, topk)
    table = pa.table(
        {
            "row": np.arange(first_row, first_row + num_rows),
            "domain": pa.array(domains, pa.string()),
            "group": pa.array([f"group of {each}" for each in domains], pa.string()),
            "input_ids": wide_list(rows.input_ids),
            "length": rows.length,
            "base_loss": rows.base_loss,
            "base_correct": wide_binary(rows.base_correct),
        }
    )
    if rows.topk_ids is not None and rows.topk_logprobs is not None:
        table = table.append_column("topk_ids", wide_list(rows.topk_ids))
        table = table.append_column("topk_logprobs", wide_list(rows.topk_logprobs))
    if num_features:
        feature = np.random.default_rng(seed).normal(size=(num_rows, num_features)).astype(np.float16)
        table = table.append_column("feature", wide_list(feature))
    return table


def write_corpus(folder: Path, parts: Sequence[SampleRows], generations: Sequence[int] = ()) -> Manifest:
    """A corpus of one segment a part, in one stratum; segment i came with generation `generations[i]`, or with 1."""
    (folder / "segments").mkdir(parents=True, exist_ok=True)
    segments = []
    for number, (rows, generation) in enumerate(zip_longest(parts, generations, fillvalue=1)):
        file = f"segments/{number:08d}.arrow"
        written = write_segment(folder / file, rows)
        segments.append(Segment(file, len(rows), [(0, 0, len(rows))], **asdict(written), generation=generation))
    num_rows = sum(map(len, parts))
    nothing = Manifest.of_nothing(
        name=folder.name,
        model="none",
        tokenizer_fingerprint="none",
        vocab_size=300,
        separator_id=0,
        seq_len=parts[0].input_ids.shape[1],
        precision="float32",
        num_quantiles=1,
        partition_by="domain",
        topk=0,
        recipe="none",
    )
    manifest = replace(
        nothing,
        generation=max(generations, default=1),
        num_documents=num_rows,
        domains=[DomainSummary("en", num_rows, num_rows, 2.0, {})],
        groups=[Group("en", 1, [])],
        segments=segments,
    )
    write_manifest(folder, manifest)
    return manifest


def ids_of(parts: Sequence[SampleRows]) -> Int64Array:
    """The ids of all samples of such a corpus."""
    return np.concatenate([sample_ids(np.full(len(rows), i), np.arange(len(rows))) for i, rows in enumerate(parts)])


def same_rows(left: SampleRows, right: SampleRows) -> bool:
    mine, theirs = left.columns(), right.columns()
    return mine.keys() == theirs.keys() and all(
        mine[name].dtype == theirs[name].dtype and np.array_equal(mine[name], theirs[name]) for name in mine
    )
