from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from replay_service.corpus.shards.sources import Columns
from replay_service.language.tokenizer import ends_of, load_tokenizer, separator_id
from tests.trainer.worlds import write_text
from trainer.batches.target import TargetRows, TrainingRows, packed_by_domain
from trainer.errors import InvalidTraining


def numbered(num_rows: int) -> TrainingRows:
    return TrainingRows(np.arange(num_rows, dtype=np.uint16)[:, None], np.ones(num_rows, dtype=np.int32))


def test_every_epoch_has_every_row_once_in_another_order() -> None:
    rows = TargetRows(numbered(10), seed=1)
    first, second = (rows.take(range(start, start + 10)).input_ids.ravel().tolist() for start in (0, 10))
    assert sorted(first) == sorted(second) == list(range(10))
    assert first != second


def test_a_place_holds_the_same_row_however_it_is_reached() -> None:
    rows = TargetRows(numbered(7), seed=1)
    whole = rows.take(range(0, 30)).input_ids.ravel().tolist()
    again = TargetRows(numbered(7), seed=1)
    assert again.take(range(13, 30)).input_ids.ravel().tolist() == whole[13:]
    assert again.take(range(0, 5)).input_ids.ravel().tolist() == whole[:5]


def test_another_seed_is_another_order() -> None:
    one, other = (TargetRows(numbered(50), seed).take(range(50)).input_ids.ravel().tolist() for seed in (1, 2))
    assert one != other


def test_text_is_packed_by_domain(tmp_path: Path, tiny_model: Path) -> None:
    write_text(tmp_path / "a" / "x.parquet", 5)
    write_text(tmp_path / "b" / "y.parquet", 9)
    tokenizer = load_tokenizer(str(tiny_model))
    packed = packed_by_domain(tmp_path, Columns(), tokenizer, 16, ends_of(tokenizer))
    assert list(packed) == ["a", "b"]
    assert len(packed["b"]) > len(packed["a"]) > 0


def test_ready_made_token_ids_go_into_the_rows_as_they_are(tmp_path: Path, tiny_model: Path) -> None:
    tokenizer = load_tokenizer(str(tiny_model))
    ids = [[1, 2, 3], [4], [5, 6, 7, 8]]
    pq.write_table(pa.table({"ids": ids}), tmp_path / "web.parquet")
    packed = packed_by_domain(tmp_path, Columns(tokens="ids"), tokenizer, 16, ends_of(tokenizer))["web"]
    end = separator_id(tokenizer)
    assert packed.input_ids[0, : packed.length[0]].tolist() == [1, 2, 3, end, 4, end, 5, 6, 7, 8, end]


def test_token_ids_of_another_tokenizer_are_refused(tmp_path: Path, tiny_model: Path) -> None:
    tokenizer = load_tokenizer(str(tiny_model))
    pq.write_table(pa.table({"ids": [[1, len(tokenizer)]]}), tmp_path / "web.parquet")
    with pytest.raises(InvalidTraining, match=f"token id {len(tokenizer)}, but the model knows only"):
        packed_by_domain(tmp_path, Columns(tokens="ids"), tokenizer, 16, ends_of(tokenizer))


def test_a_column_that_no_shard_has_is_named(tmp_path: Path, tiny_model: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "x"}\n')
    tokenizer = load_tokenizer(str(tiny_model))
    with pytest.raises(InvalidTraining, match="no column 'body'"):
        packed_by_domain(tmp_path, Columns(text="body"), tokenizer, 16, ends_of(tokenizer))


def test_missing_or_empty_text_is_named(tmp_path: Path, tiny_model: Path) -> None:
    tokenizer = load_tokenizer(str(tiny_model))
    with pytest.raises(InvalidTraining, match="nowhere"):
        packed_by_domain(tmp_path / "nowhere", Columns(), tokenizer, 16, ends_of(tokenizer))
    (tmp_path / "empty.txt").write_text("  \n")
    with pytest.raises(InvalidTraining, match="holds no text"):
        packed_by_domain(tmp_path, Columns(), tokenizer, 16, ends_of(tokenizer))
