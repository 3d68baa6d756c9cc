from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from torch.nn.functional import cross_entropy

from replay_service.corpus.pipeline import PipelineSettings, Scorer, pack_shard
from replay_service.corpus.segments import binary_rows, list_rows
from replay_service.corpus.sources import Columns, Shard
from replay_service.corpus.staging import Packed, read_packed
from replay_service.language.model import Precision, autocast, load_model
from replay_service.language.tokenizer import encode, load_tokenizer, separator_id
from tests.corpus.worlds import sentences

SEQ_LEN = 32


@pytest.fixture
def shard(tmp_path: Path) -> Shard:
    """A shard of two domains, with a row that holds no text."""
    rows = [{"text": text, "topic": topic} for topic in ("fr", "en") for text in sentences(topic, 20)]
    rows.insert(7, {"text": " ", "topic": "en"})
    table = pa.Table.from_pylist(rows)
    pa.parquet.write_table(table, tmp_path / "web.parquet")
    return Shard(str(tmp_path / "web.parquet"), "parquet", "web", "web.parquet", "1")


def settings_of(
    model: Path, staging: Path, precision: Precision = "float32", columns: Columns | None = None
) -> PipelineSettings:
    tokenizer = load_tokenizer(str(model))
    return PipelineSettings(
        model=str(model),
        separator_id=separator_id(tokenizer),
        vocab_size=len(tokenizer),
        seq_len=SEQ_LEN,
        columns=columns or Columns(domain="topic"),
        precision=precision,
        batch_size=8,
        num_scorers=1,
        threads_per_scorer=1,
        staging=staging,
    )


def losses_and_hits_of(model: Any, ids: np.ndarray, length: int, precision: Precision) -> tuple[float, np.ndarray]:
    row = torch.from_numpy(ids[None, :].astype(np.int64))
    with torch.inference_mode(), autocast(precision, torch.device("cpu")):
        logits = model(input_ids=row).logits[0, : length - 1].float()
    target = row[0, 1:length]
    return float(cross_entropy(logits, target)), (logits.argmax(dim=1) == target).numpy()


def test_a_shard_is_packed_by_domain_into_rows_that_are_counted_through(
    shard: Shard, tiny_model: Path, tmp_path: Path
) -> None:
    settings = settings_of(tiny_model, tmp_path)
    tables = list(pack_shard("key", shard, settings))
    assert [table["domain"].unique().to_pylist() for table in tables] == [["en"], ["fr"]]
    rows = [row for table in tables for row in table["row"].to_pylist()]
    assert rows == list(range(len(rows)))
    assert {key for table in tables for key in table["shard_key"].to_pylist()} == {"key"}
    tokenizer = load_tokenizer(str(tiny_model))
    for domain, table in zip(("en", "fr"), tables, strict=True):
        num_tokens = sum(len(ids) + 1 for ids in encode(tokenizer, sentences(domain, 20)))
        assert num_tokens - sum(table["length"].to_pylist()) in (0, 1)


def test_what_a_shard_held_is_written_down_before_its_first_row_goes_on(
    shard: Shard, tiny_model: Path, tmp_path: Path
) -> None:
    tables = pack_shard("key", shard, settings_of(tiny_model, tmp_path))
    first = next(tables)
    packed = read_packed(tmp_path, "key")
    assert packed == Packed(len(first) + sum(map(len, tables)), num_documents=40, num_set_aside=1)


def test_ready_made_token_ids_are_packed_as_their_text_would_be(tiny_model: Path, tmp_path: Path) -> None:
    texts = sentences("en", 20)
    ids = encode(load_tokenizer(str(tiny_model)), texts)
    pa.parquet.write_table(pa.table({"text": texts, "ids": ids}), tmp_path / "web.parquet")
    shard = Shard(str(tmp_path / "web.parquet"), "parquet", "web", "web.parquet", "1")
    from_text, from_ids = (
        pa.concat_tables(pack_shard("key", shard, settings_of(tiny_model, tmp_path, columns=columns)))
        for columns in (Columns(), Columns(tokens="ids"))
    )
    assert from_ids.equals(from_text)


@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_scores_are_those_of_a_plain_forward_pass(
    shard: Shard, tiny_model: Path, tmp_path: Path, precision: Precision
) -> None:
    settings = settings_of(tiny_model, tmp_path, precision)
    packed = pa.concat_tables(pack_shard("key", shard, settings))
    scored = Scorer(settings)(packed)
    assert scored.drop_columns(["base_loss", "base_correct"]).equals(packed)
    model = load_model(str(tiny_model))
    bits = np.unpackbits(binary_rows(scored["base_correct"].combine_chunks()), axis=1, bitorder="little")
    ids, lengths = list_rows(scored["input_ids"].combine_chunks()), scored["length"].to_pylist()
    for i, (base_loss, length) in enumerate(zip(scored["base_loss"].to_pylist(), lengths, strict=True)):
        loss, hits = losses_and_hits_of(model, ids[i], length, precision)
        assert base_loss == pytest.approx(loss, abs=1e-3)
        assert np.mean(bits[i, 1:length] != hits) <= 0.1
        assert not bits[i, 0]
        assert not bits[i, length:].any()
