"""What scoring and packing cost beside what they cannot do without: `python -m tests.benchmarks.scoring`.

README.md in this folder says what each ratio means.
"""

import argparse
import shutil
import tempfile
import time
from collections.abc import Callable
from itertools import chain
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from replay_service.corpus.ingest.pack_shard import pack_shard
from replay_service.corpus.ingest.pipeline_settings import PipelineSettings
from replay_service.corpus.ingest.staging import write_parts
from replay_service.corpus.shards.sources import Columns, Document, Shard, find_shards, read_documents
from replay_service.demo.materials import Amounts, fetch_model, write_shards
from replay_service.language.model import (
    Precision,
    autocast,
    best_device,
    faster_precision,
    load_model,
    prepare_to_score,
)
from replay_service.language.scoring import RowScorer
from replay_service.language.tokenizer import ends_of, load_tokenizer
from replay_service.wire.columns import list_rows
from tests.benchmarks.ratios import as_table, measured, repeated


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="local folder or hub name; by default the demo's, fetched once")
    parser.add_argument("--rows", type=int, default=16)
    parser.add_argument("--seq-len", type=int, default=96)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--precision", choices=["auto", "float32", "bf16"], default="auto")
    parser.add_argument("--characters", type=int, default=1_000_000, help="of text, of each of the demo's domains")
    parser.add_argument("--repeats", type=int, default=15)
    wanted = parser.parse_args()
    precision = faster_precision() if wanted.precision == "auto" else wanted.precision
    with tempfile.TemporaryDirectory() as folder:
        write_shards(Path(folder) / "text", Amounts(corpus=wanted.characters, heldout=0, target=0), seed=0)
        shards = find_shards(Path(folder) / "text" / "pretraining")
        settings = pipeline_settings(wanted.model or str(fetch_model()), wanted.seq_len, precision, wanted.batch_size)
        print(packing(shards, settings, Path(folder) / "staging", wanted.repeats), end="\n\n", flush=True)
        print(scoring(some_rows(shards, settings, wanted.rows), settings, wanted.repeats), flush=True)


def pipeline_settings(model: str, seq_len: int, precision: Precision, batch_size: int) -> PipelineSettings:
    tokenizer = load_tokenizer(model)
    return PipelineSettings(
        model=model,
        ends=ends_of(tokenizer),
        vocab_size=len(tokenizer),
        seq_len=seq_len,
        columns=Columns(domain="domain"),
        precision=precision,
        batch_size=batch_size,
        num_scorers=1,
        gpus_per_scorer=1.0,
        threads_per_scorer=torch.get_num_threads(),
        topk=0,
        features=False,
    )


# Tokenizing, packing, writing


def packing(shards: list[Shard], settings: PipelineSettings, staging: Path, repeats: int) -> str:
    """Shards to parts, against the tokenizer alone on the texts of each shard, which it finds in memory."""
    tokenizer = load_tokenizer(settings.model).backend_tokenizer
    tokenizer.encode_special_tokens = True
    texts = [
        [str(each.content) for each in read_documents(shard, settings.columns) if isinstance(each, Document)]
        for shard in shards
    ]
    num_tokens = sum(len(encoding) for encoding in chain(*(bare_encodings(tokenizer, each) for each in texts)))
    ways = [
        lambda: num_tokens / seconds(lambda: [bare_encodings(tokenizer, each) for each in texts]),
        lambda: num_tokens / seconds(lambda: stage(shards, settings, staging)),
    ]
    bare, packed = repeated(repeats, ways)
    rows = [
        ["tokenizer alone", *measured(bare, bare, "tokens/s")],
        ["read, tokenize, pack, write", *measured(packed, bare, "tokens/s")],
    ]
    return as_table([f"{num_tokens:,} tokens", "rate", "ratio"], rows)


def bare_encodings(tokenizer: object, texts: list[str]) -> list[object]:
    encodings: list[object] = tokenizer.encode_batch_fast(texts, add_special_tokens=False)  # type: ignore[attr-defined]
    return encodings


def stage(shards: list[Shard], settings: PipelineSettings, staging: Path) -> None:
    """What the stages of an ingest do, but for the scores and the way from one process to another."""
    shutil.rmtree(staging, ignore_errors=True)
    for number, shard in enumerate(shards):
        for part in pack_shard(shard, settings):
            if part.rows is not None:
                (staging / str(number)).mkdir(parents=True, exist_ok=True)
                write_parts(staging, str(number), part.rows)


# Scoring


def scoring(input_ids: NDArray[np.integer], settings: PipelineSettings, repeats: int) -> str:
    """`RowScorer` with and without options, against forward passes alone, of batches of as many full rows."""
    length = np.full(len(input_ids), input_ids.shape[1])
    options = {"": {}, ", topk=8": {"topk": 8}, ", features": {"features": True}}
    scorers = [
        RowScorer(settings.model, settings.precision, batch_size=settings.batch_size, **option)
        for option in options.values()
    ]
    ways: list[Callable[[], object]] = [bare_loop(input_ids, settings)]
    ways += [lambda scorer=scorer: scorer.score(input_ids, length) for scorer in scorers]
    for way in ways:
        way()
    bare, *scored = in_any_order(repeats, [lambda way=way: input_ids.size / seconds(way) for way in ways])
    rows = [["forward passes alone", *measured(bare, bare, "tokens/s")]]
    for name, own in zip(options, scored, strict=True):
        rows.append([f"RowScorer{name}", *measured(own, bare, "tokens/s")])
    return as_table([f"{input_ids.size:,} tokens, {settings.precision}", "rate", "ratio"], rows)


def in_any_order(repeats: int, ways: list[Callable[[], float]]) -> list[list[float]]:
    """What each way measured, [ways][repeats], in an order of its own in each repeat: the memory that one leaves behind
    changes how quickly the next one gets its own."""
    rng, found = np.random.default_rng(0), np.empty((len(ways), repeats))
    for repeat in range(repeats):
        for way in rng.permutation(len(ways)):
            found[way, repeat] = ways[way]()
    rates: list[list[float]] = found.tolist()
    return rates


def bare_loop(input_ids: NDArray[np.integer], settings: PipelineSettings) -> Callable[[], None]:
    """Forward passes whose logits nobody looks at; the model and its arithmetic are those of scoring."""
    device = best_device()
    model = prepare_to_score(load_model(settings.model), settings.precision).to(device)
    rows = torch.from_numpy(input_ids.astype(np.int64)).to(device)

    def loop() -> None:
        with torch.inference_mode(), autocast(settings.precision, device):
            for ids in rows.split(settings.batch_size):
                model(input_ids=ids, use_cache=False)
        if device.type == "cuda":
            torch.cuda.synchronize()

    return loop


def some_rows(shards: list[Shard], settings: PipelineSettings, num_rows: int) -> NDArray[np.integer]:
    """Full rows of real text, from all over the shards."""
    parts = chain.from_iterable(pack_shard(shard, settings) for shard in shards)
    tables = [part.rows for part in parts if part.rows is not None]
    full = [
        list_rows(table["input_ids"].combine_chunks())[table["length"].to_numpy() == settings.seq_len]
        for table in tables
    ]
    rows = np.concatenate(full)
    if len(rows) < num_rows:
        raise SystemExit(f"the text makes {len(rows)} full rows, not {num_rows}; give more --characters")
    chosen: NDArray[np.integer] = rows[np.linspace(0, len(rows) - 1, num_rows).astype(int)]
    return chosen


def seconds(way: Callable[[], object]) -> float:
    begin = time.perf_counter()
    way()
    return time.perf_counter() - begin


if __name__ == "__main__":
    main()
