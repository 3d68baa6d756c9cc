import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from torch.nn.functional import cross_entropy
from typer.testing import CliRunner

from replay_service.corpus.shards.documents import NOT_UTF8
from replay_service.language.model import load_model
from replay_service.language.tokenizer import load_tokenizer
from replay_trainer.cli import app
from replay_trainer.errors import InvalidTraining
from replay_trainer.scoring import ScoringSettings, score_rows
from tests.language.faulty_models import bert_encoder, roberta_decoder, with_prefix
from tests.support import make_tiny_model
from tests.trainer.batches.test_tables import write_lines

PAIRS = [
    {"prompt": "the cat of number 1", "response": " sat on the mat.", "id": 7},
    {"prompt": "", "response": "le chat est ici.", "id": 8},
    {"prompt": "le chat", "response": " <|endoftext|> est", "id": 9},
]


@pytest.fixture(autouse=True)
def plain_wide_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("NO_COLOR", "1")


def run(*arguments: object) -> Any:
    return CliRunner().invoke(app, ["score", *map(str, arguments)])


def scored(tmp_path: Path, model: Path, rows: list[Any], **options: Any) -> list[dict[str, Any]]:
    source, output = write_lines(tmp_path / "rows.jsonl", rows), tmp_path / "scored.parquet"
    score_rows(ScoringSettings(source, output, str(model), precision="float32", seq_len=48, **options))
    table: list[dict[str, Any]] = pq.read_table(output).to_pylist()
    return table


def scored_pairs(tmp_path: Path, model: Path, rows: list[Any], **options: Any) -> list[dict[str, Any]]:
    return scored(tmp_path, model, rows, prompt_column="prompt", response_column="response", **options)


def tokens(model: Path, text: str) -> list[int]:
    tokenizer = load_tokenizer(str(model))
    ids: list[int] = tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
    return ids


@torch.no_grad()
def nats_by_hand(model: Path, prompt: str, response: str) -> list[float]:
    """One row alone, labels of -100 on the prompt, as fine-tuning libraries do it."""
    before, after = tokens(model, prompt), tokens(model, response)
    ids = torch.tensor([before + after])
    labels = torch.tensor([-100] * len(before) + after)
    logits = load_model(str(model))(input_ids=ids).logits[0]
    nats = cross_entropy(logits[:-1], labels[1:], reduction="none")
    kept: list[float] = nats[labels[1:] != -100].tolist()
    return kept


def test_the_loss_of_a_row_is_the_mean_over_its_response(tmp_path: Path, tiny_model: Path) -> None:
    rows = scored_pairs(tmp_path, tiny_model, PAIRS)
    for row, pair in zip(rows, PAIRS, strict=True):
        expected = nats_by_hand(tiny_model, str(pair["prompt"]), str(pair["response"]))
        np.testing.assert_allclose(row["base_token_losses"], expected, atol=1e-4)
        assert row["base_loss"] == pytest.approx(np.mean(expected), abs=1e-4)
        assert row["truncated"] is False


def test_the_first_token_counts_after_a_prompt_and_not_without_one(tmp_path: Path, tiny_model: Path) -> None:
    first, second, _ = scored_pairs(tmp_path, tiny_model, PAIRS)
    assert len(first["base_token_losses"]) == len(tokens(tiny_model, " sat on the mat."))
    assert len(second["base_token_losses"]) == len(tokens(tiny_model, "le chat est ici.")) - 1


def test_a_text_counts_from_its_second_token_on(tmp_path: Path, tiny_model: Path) -> None:
    (row,) = scored(tmp_path, tiny_model, [{"body": "the cat of number 1 sat"}], response_column="body")
    np.testing.assert_allclose(
        row["base_token_losses"], nats_by_hand(tiny_model, "", "the cat of number 1 sat"), atol=1e-4
    )


def test_all_other_columns_and_the_order_are_kept(tmp_path: Path, tiny_model: Path) -> None:
    texts = [{"text": "the cat " * (1 + i * 7 % 5), "id": i, "tags": ["a"] * (i % 3)} for i in range(40)]
    rows = scored(tmp_path, tiny_model, texts, batch_size=3)
    assert [{name: row[name] for name in ("text", "id", "tags")} for row in rows] == texts
    alike = {row["text"]: row["base_loss"] for row in rows}
    assert all(row["base_loss"] == pytest.approx(alike[row["text"]], abs=1e-5) for row in rows)


def test_columns_have_the_stated_types_and_the_file_says_what_was_measured(tmp_path: Path, tiny_model: Path) -> None:
    scored(tmp_path, tiny_model, [{"text": "the cat sat"}])
    schema = pq.read_schema(tmp_path / "scored.parquet")
    assert schema.field("base_loss").type == pa.float32()
    assert schema.field("base_token_losses").type == pa.list_(pa.float32())
    assert schema.field("truncated").type == pa.bool_()
    measured = json.loads(schema.metadata[b"base_loss"])
    assert measured == {"model": str(tiny_model), "precision": "float32", "seq_len": 48, "bos_id": None}


def test_with_a_bos_token_the_first_token_counts_too(tmp_path: Path) -> None:
    model, text = make_tiny_model(tmp_path / "begun", bos=True), "the cat of number 1 sat"
    (row,) = scored(tmp_path, model, [{"text": text}])
    assert len(row["base_token_losses"]) == len(tokens(model, text))
    ids = torch.tensor([[1, *tokens(model, text)]])
    nats = cross_entropy(load_model(str(model))(input_ids=ids).logits[0, :-1], ids[0, 1:], reduction="none")
    np.testing.assert_allclose(row["base_token_losses"], nats.tolist(), atol=1e-4)
    assert json.loads(pq.read_schema(tmp_path / "scored.parquet").metadata[b"base_loss"])["bos_id"] == 1
    (row,) = scored(tmp_path, model, [{"text": text}], bos="never")
    np.testing.assert_allclose(row["base_token_losses"], nats_by_hand(model, "", text), atol=1e-4)
    pair = {"prompt": "the cat", "response": " sat"}
    for bos in ("auto", "never"):
        (row,) = scored_pairs(tmp_path, model, [pair], bos=bos)
        assert len(row["base_token_losses"]) == len(tokens(model, " sat"))


def test_a_model_without_a_bos_token_cannot_begin_rows_with_one(tmp_path: Path, tiny_model: Path) -> None:
    with pytest.raises(InvalidTraining, match="no bos token"):
        scored(tmp_path, tiny_model, [{"text": "the cat"}], bos="always")
    assert not (tmp_path / "scored.parquet").exists()


def test_a_model_that_cannot_be_used_is_refused_in_one_sentence_and_nothing_is_written(
    tmp_path: Path, tiny_model: Path
) -> None:
    source = write_lines(tmp_path / "rows.jsonl", [{"text": "the cat sat"}])
    faulty = {
        "would stay random": with_prefix(tiny_model, tmp_path / "compiled", "_orig_mod."),
        "is not causal": bert_encoder(tiny_model, tmp_path / "encoder"),
        "choose at most 32": roberta_decoder(tiny_model, tmp_path / "decoder", 34),
    }
    for said, model in faulty.items():
        result = run(source, "--model", model, "--output", tmp_path / "out.parquet", "--seq-len", 34)
        assert result.exit_code == 2 and said in result.stderr
        assert "Traceback" not in result.stderr
    assert not (tmp_path / "out.parquet").exists()


def test_long_rows_are_cut_at_the_right_and_flagged(tmp_path: Path, tiny_model: Path) -> None:
    long = " sat on the mat." * 20
    rows = scored_pairs(tmp_path, tiny_model, [{"prompt": "the cat", "response": long}, PAIRS[0]])
    assert [row["truncated"] for row in rows] == [True, False]
    num_prompt_tokens = len(tokens(tiny_model, "the cat"))
    assert len(rows[0]["base_token_losses"]) == 48 - num_prompt_tokens
    expected = nats_by_hand(tiny_model, "the cat", " sat on the mat.")
    np.testing.assert_allclose(rows[0]["base_token_losses"][: len(expected)], expected, atol=1e-4)


@pytest.mark.parametrize(
    "pair",
    [
        {"prompt": "the cat", "response": None},
        {"prompt": "the cat", "response": ""},
        {"prompt": "the cat", "response": " \n"},
        {"prompt": "the cat"},
        {"prompt": None, "response": "x"},
        {"prompt": "the cat " * 60, "response": " sat"},
    ],
)
def test_a_row_without_a_token_to_score_is_null_and_counted(
    tmp_path: Path, tiny_model: Path, pair: dict[str, Any]
) -> None:
    rows = scored_pairs(tmp_path, tiny_model, [PAIRS[0], pair, PAIRS[1]])
    assert rows[1]["base_loss"] is rows[1]["base_token_losses"] is None
    assert all(row["base_loss"] is not None for row in (rows[0], rows[2]))
    settings = ScoringSettings(
        tmp_path / "rows.jsonl", tmp_path / "again.parquet", str(tiny_model), "response", "prompt", 48, "float32"
    )
    summary = score_rows(settings)
    assert (summary.num_rows, summary.num_unscored) == (3, 1)
    assert summary.num_truncated == (len(pair["prompt"] or "") > 100)


def test_a_set_without_any_token_to_score_is_written_with_nulls(tmp_path: Path, tiny_model: Path) -> None:
    rows = scored(tmp_path, tiny_model, [{"text": ""}, {"text": None}])
    assert [row["base_loss"] for row in rows] == [None, None]
    settings = ScoringSettings(tmp_path / "rows.jsonl", tmp_path / "again.parquet", str(tiny_model), seq_len=48)
    assert math.isnan(score_rows(settings).mean_nats())


def test_progress_goes_from_none_to_all_of_the_rows(tmp_path: Path, tiny_model: Path) -> None:
    source = write_lines(tmp_path / "rows.jsonl", [{"text": "the cat sat"}] * 10 + [{"text": ""}])
    seen: list[tuple[int, int]] = []
    settings = ScoringSettings(source, tmp_path / "out.parquet", str(tiny_model), seq_len=32, batch_size=4)
    score_rows(settings, lambda done, total: seen.append((done, total)))
    assert seen == [(0, 11), (4, 11), (8, 11), (10, 11), (11, 11)]


def test_the_command_scores_and_says_what_it_did(tmp_path: Path, tiny_model: Path) -> None:
    source = write_lines(tmp_path / "rows.jsonl.gz", [*PAIRS, {"prompt": "the cat", "response": None}])
    result = run(
        source, "--model", tiny_model, "--output", tmp_path / "out.parquet", "--seq-len", 32, "--precision", "bf16",
        "--prompt-column", "prompt", "--response-column", "response",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    assert "4 rows in" in result.output
    assert "(bf16); 0 truncated, 1 without a token to score" in result.output
    assert pq.read_table(tmp_path / "out.parquet").num_rows == 4


@pytest.mark.parametrize(
    ("rows", "options", "said"),
    [
        ([{"body": "x"}], [], "has no column 'text'; its columns: body"),
        ([{"text": 5}], [], "holds int64, not text"),
        ([{"text": "x", "base_loss": 1.0}], [], "has a column 'base_loss' already"),
        ([{"text": "x"}], ["--seq-len", 65], "beyond the model's 64 positions"),
        ([{"text": "x"}], ["--seq-len", 1], "--seq-len"),
        ([{"text": "x"}], ["--batch-size", 0], "--batch-size"),
        ([{"text": "x"}], ["--model", "/nowhere"], "/nowhere"),
        ([5, 6], [], "holds no rows: rows.jsonl line 1: not a JSON object"),
        ([{"text": [{"role": "user"}]}], [], "not text; chats"),
        ([{"text": {}}, {"text": 5}], [], "holds values of several types, not text"),
        ([{"text": "x"}], ["--prompt-column", "text"], "go together"),
        ([{"text": "x"}], ["--prompt-column", "a", "--response-column", "b", "--text-column", "c"], "--text-column"),
        ([{"text": "x"}], ["--output", "/proc/nowhere/out.parquet"], "cannot be written"),
        ([{"text": "x"}], ["--precision", "float8"], "float8"),
    ],
)
def test_what_cannot_be_scored_ends_with_a_message_and_writes_nothing(
    tmp_path: Path, tiny_model: Path, rows: list[Any], options: list[object], said: str
) -> None:
    source, output = write_lines(tmp_path / "rows.jsonl", rows), tmp_path / "out.parquet"
    result = run(source, "--model", tiny_model, "--output", output, "--seq-len", 32, *options)
    assert result.exit_code == 2
    assert said in result.output
    assert "Traceback" not in result.output
    assert [path.name for path in tmp_path.iterdir()] == ["rows.jsonl"]


def test_what_could_only_fail_at_the_end_is_refused_before_the_model_is_looked_at(tmp_path: Path) -> None:
    source = write_lines(tmp_path / "rows.jsonl", PAIRS)
    (tmp_path / "folder").mkdir()
    for output, said in [("folder", "it is a folder"), ("rows.jsonl/a.parquet", "Not a directory")]:
        with pytest.raises(InvalidTraining, match=f"{output} cannot be written: .*{said}"):
            score_rows(ScoringSettings(source, tmp_path / output, "/no/such/model", response_column="response"))


def test_rows_that_cannot_be_read_are_null_and_named_and_the_others_scored(tmp_path: Path, tiny_model: Path) -> None:
    good = {"text": "the cat sat", "id": 2**63 + 5, "meta": {}}
    rows = [good, {**good, "text": "\ud83d"}, {**good, "text": 5}, good]
    path = write_lines(tmp_path / "rows.jsonl", rows)
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes() + b'{"text": "a",}\n')
    result = run(path, "--model", tiny_model, "--output", tmp_path / "out.parquet", "--seq-len", 32)
    assert result.exit_code == 0, result.output
    assert "kept as JSON in text: meta" in result.output
    assert "no loss for 3 of 5 rows: rows.jsonl line 2: half a surrogate pair; " in result.output
    assert "rows.jsonl line 3: the text is not a string; rows.jsonl line 5: not a JSON object" in result.output
    table = pq.read_table(tmp_path / "out.parquet").to_pylist()
    assert [row["base_loss"] is None for row in table] == [False, True, True, False, True]
    assert [row["text"] for row in table] == ["the cat sat", None, None, "the cat sat", None]
    assert [row["id"] for row in table] == [2**63 + 5] * 4 + [None]
    assert [row["meta"] for row in table] == ["{}"] * 4 + [None]


def test_parquet_texts_that_are_not_utf8_are_named_and_other_columns_kept(tmp_path: Path, tiny_model: Path) -> None:
    bad = pa.array([b"the cat sat", b"\xff", b"the cat"]).view(pa.string())
    other = pa.array([b"\xfe", b"b", b"c"]).view(pa.string())
    pq.write_table(pa.table({"text": bad, "other": other}), tmp_path / "rows.parquet")
    settings = ScoringSettings(tmp_path / "rows.parquet", tmp_path / "out.parquet", str(tiny_model), seq_len=32)
    summary = score_rows(settings)
    assert [(each.place, each.reason) for each in summary.unusable] == [("rows.parquet row 1", NOT_UTF8)]
    table = pq.read_table(tmp_path / "out.parquet")
    assert [loss is None for loss in table["base_loss"].to_pylist()] == [False, True, False]
    assert table["other"].combine_chunks().view(pa.binary()).to_pylist() == [b"\xfe", b"b", b"c"]


def test_a_long_text_is_cut_as_a_short_one_is(tmp_path: Path, tiny_model: Path) -> None:
    short, long = scored(tmp_path, tiny_model, [{"text": "the cat sat " * 100}, {"text": "the cat sat " * 100_000}])
    assert short["truncated"] is long["truncated"] is True
    np.testing.assert_allclose(short["base_token_losses"], long["base_token_losses"], atol=1e-4)


def test_a_source_that_is_not_there_is_named(tmp_path: Path, tiny_model: Path) -> None:
    settings = ScoringSettings(tmp_path / "none.jsonl", tmp_path / "out.parquet", str(tiny_model))
    with pytest.raises(InvalidTraining, match="none"):
        score_rows(settings)


def test_every_option_is_explained() -> None:
    result = run("--help")
    for option in ("--model", "--output", "--seq-len", "--text-column", "--prompt-column", "--response-column"):
        assert option in result.output
