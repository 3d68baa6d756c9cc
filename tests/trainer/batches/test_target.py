from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from replay_service.corpus.shards.sources import Columns
from replay_service.language.packing import Ends
from replay_service.language.tokenizer import ends_of, load_tokenizer, separator_id
from replay_trainer.batches.examples import scored_with
from replay_trainer.batches.target import TargetRows, TrainingRows, load_target, packed_by_domain
from replay_trainer.config import DataConfig, FlowConfig
from replay_trainer.errors import InvalidTraining
from tests.support import make_tiny_model
from tests.trainer.worlds import write_text


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


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A tokenizer that puts the bos token 1 before a text; 0 ends one."""
    return load_tokenizer(str(make_tiny_model(tmp_path_factory.mktemp("begun"), bos=True)))


def write_pairs(path: Path, **columns: list[Any]) -> Path:
    pairs = {"ask": ["the cat of number 1"] * 3, "say": [" sat on the mat", " is", " sat. " * 3]}
    pq.write_table(pa.table({**pairs, **columns}), path)
    return path


def test_text_begins_with_a_bos_token_as_the_corpus_has_it(tmp_path: Path, begun: Any) -> None:
    data = DataConfig(target=str(write_text(tmp_path / "x.parquet", 9)), seq_len=8)
    assert (load_target(data, None, begun).input_ids[:, 0] == 1).all()
    for plain in (load_target(data, None, begun, Ends(0)), load_target(with_bos(data, "never"), None, begun)):
        assert 1 not in plain.input_ids


def with_bos(data: DataConfig, bos: str) -> DataConfig:
    return DataConfig.model_validate({**data.model_dump(), "bos": bos})


@pytest.mark.parametrize("layout", ["packed", "padded"])
def test_examples_begin_with_a_bos_token_that_weighs_nothing(tmp_path: Path, begun: Any, layout: str) -> None:
    columns = {"prompt_column": "ask", "response_column": "say"}
    data = DataConfig.model_validate(
        {"target": str(write_pairs(tmp_path / "x.parquet")), "seq_len": 24, "layout": layout, **columns}
    )
    rows, plain = load_target(data, None, begun), load_target(with_bos(data, "never"), None, begun)
    assert rows.weight is not None and plain.weight is not None
    assert (rows.input_ids[:, 0] == 1).all() and not rows.weight[rows.input_ids == 1].any()
    learned = [each.input_ids[each.weight > 0].tolist() for each in (rows, plain)]
    if layout == "packed":
        # A separator that would stand alone in the last row is left off.
        assert learned[0] in (learned[1], learned[1] + [0]) or learned[1] == learned[0] + [0]
    else:
        assert learned[0] == [token for token in learned[0] if token != 1] and learned[0][0] == learned[1][0]


def test_base_losses_of_rows_with_another_bos_token_are_refused(tmp_path: Path, begun: Any) -> None:
    path = write_pairs(tmp_path / "x.parquet", base_loss=[1.0, 2.0, 3.0])
    data = DataConfig(target=str(path), seq_len=64, prompt_column="ask", response_column="say")
    load_target(data, FlowConfig(), begun)
    for scored, ends in ((1, Ends(0)), (None, Ends(0, 1))):
        table = pq.read_table(path).replace_schema_metadata(scored_with("tiny", "float32", 64, scored))
        pq.write_table(table, path)
        with pytest.raises(InvalidTraining, match="score it again with --bos"):
            load_target(data, FlowConfig(), begun, ends)
        load_target(data, FlowConfig(), begun, Ends(0, scored))


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
