import io
import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from replay_service.corpus.ingest import pack_shard as packing
from replay_service.corpus.ingest import pipeline
from replay_service.corpus.ingest.pack_shard import pack_shard
from replay_service.corpus.ingest.parts import PackedPart, as_value, of_value
from replay_service.corpus.ingest.pipeline import ScoreParts
from replay_service.corpus.ingest.pipeline_settings import PipelineSettings
from replay_service.corpus.ingest.staging import SET_ASIDE, Packed, parts_of, read_packed, read_rows
from replay_service.corpus.shards.documents import BLANK, NO_GROUP, NOT_A_STRING, NOT_JSON
from replay_service.corpus.shards.sources import Columns, Shard, find_shards
from replay_service.errors import CorpusError, UnusableSource
from replay_service.language.packing import Ends, id_dtype, pack
from replay_service.language.pieces import PIECE_CHARACTERS
from replay_service.language.tokenizer import ends_of, ids_of, load_tokenizer
from replay_service.wire.columns import list_rows
from tests.corpus.ingested import cut_by_hand
from tests.corpus.shard_files import compressed, write
from tests.corpus.worlds import sentences, write_jsonl
from tests.language.faulty_models import with_prefix

SEQ_LEN = 16
ROWS_A_PART = 16

Row = tuple[str, str | None, tuple[int, ...]]

labels = st.sampled_from(["web", "wiki", "law"])
documents = st.lists(st.tuples(labels, labels, st.sampled_from([None, "", *sentences("some", 12)])), max_size=40)


@pytest.fixture(scope="module")
def tokenizer(tiny_model: Path) -> Any:
    return AutoTokenizer.from_pretrained(tiny_model)


def settings_for(model: Path, columns: Columns | None = None) -> PipelineSettings:
    tokenizer = load_tokenizer(str(model))
    return PipelineSettings(
        model=str(model),
        ends=ends_of(tokenizer),
        vocab_size=len(tokenizer),
        seq_len=SEQ_LEN,
        columns=columns or Columns(),
        precision="float32",
        batch_size=1,
        num_scorers=1,
        gpus_per_scorer=1.0,
        threads_per_scorer=1,
        topk=0,
        features=False,
    )


def rows_packed(shard: Shard, settings: PipelineSettings, first_row: int = 0) -> Iterator[pa.Table]:
    """The rows of each part."""
    return (each.rows for each in pack_shard(shard, settings, first_row) if each.rows is not None)


def aside_of(part: PackedPart) -> list[Any]:
    """The rows that a shard's last part says were set aside."""
    assert part.end is not None
    with zstandard.open(io.BytesIO(part.end.aside), "rt", encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def only_shard(source: Path) -> Shard:
    (shard,) = find_shards(source)
    return shard


def rows_of(parts: Sequence[pa.Table]) -> list[Row]:
    """Domain, group and real tokens of each row."""
    return [
        (domain, group, tuple(ids[:length].tolist()))
        for part in parts
        for domain, group, ids, length in zip(
            part["domain"].to_pylist(),
            part["group"].to_pylist(),
            list_rows(part["input_ids"].combine_chunks()),
            part["length"].to_pylist(),
            strict=True,
        )
    ]


def numbers_of(parts: Sequence[pa.Table]) -> list[int]:
    return [number for part in parts for number in part["row"].to_pylist()]


@given(lines=documents)
@settings(max_examples=40, deadline=None)
def test_documents_of_one_domain_and_group_are_laid_end_to_end_in_their_order(
    tiny_model: Path, tokenizer: Any, tmp_path_factory: pytest.TempPathFactory, lines: list[tuple[str, str, str | None]]
) -> None:
    folder = tmp_path_factory.mktemp("packed")
    rows_of_shard = [{"at": domain, "by": group, "text": text} for domain, group, text in lines]
    shard = only_shard(write(folder / "a.jsonl", rows_of_shard))
    wanted = settings_for(tiny_model, Columns(domain="at", group="by"))
    packed = list(pack_shard(shard, wanted))
    parts = [each.rows for each in packed if each.rows is not None]
    rows = rows_of(parts)
    assert numbers_of(parts) == list(range(len(rows)))
    for label in {(domain, group) for domain, group, _ in lines}:
        texts = [text for domain, group, text in lines if (domain, group) == label and text]
        assert [ids for *of, ids in rows if tuple(of) == label] == list(cut_by_hand(texts, tokenizer, SEQ_LEN))
    num_blank, num_none = (sum(text == each for *_, text in lines) for each in ("", None))
    set_aside = {reason: num for reason, num in ((BLANK, num_blank), (NOT_A_STRING, num_none)) if num}
    assert packed[-1].end is not None
    assert packed[-1].end.packed == Packed(len(rows), len(lines) - num_blank - num_none, set_aside)


@given(first_row=st.integers(0, 200))
@settings(max_examples=30, deadline=None)
def test_packing_from_a_row_on_gives_exactly_the_rest_in_the_same_parts(
    tiny_model: Path, tmp_path_factory: pytest.TempPathFactory, first_row: int
) -> None:
    folder = tmp_path_factory.mktemp("packed")
    shard = only_shard(write_jsonl(folder / "a.jsonl", sentences("some", 40)))
    wanted = settings_for(tiny_model)
    every, rest = (list(rows_packed(shard, wanted, first)) for first in (0, first_row))
    assert 100 < len(rows_of(every)) < 200
    assert rows_of(rest) == rows_of(every)[first_row:]
    assert numbers_of(rest) == numbers_of(every)[first_row:]
    bounds = {part["row"][-1].as_py() for part in every}
    assert {part["row"][-1].as_py() for part in rest} == {each for each in bounds if each >= first_row}


def test_a_part_begins_at_a_multiple_of_its_length_and_only_the_last_is_shorter(
    tiny_model: Path, tmp_path: Path
) -> None:
    shard = only_shard(write_jsonl(tmp_path / "a.jsonl", sentences("some", 40)))
    parts = list(rows_packed(shard, settings_for(tiny_model)))
    assert [part["row"][0].as_py() for part in parts] == list(range(0, len(rows_of(parts)), ROWS_A_PART))
    assert {len(part) for part in parts[:-1]} == {ROWS_A_PART}


def test_what_a_shard_held_comes_with_its_last_part_and_not_before(tiny_model: Path, tmp_path: Path) -> None:
    shard = only_shard(write_jsonl(tmp_path / "a.jsonl", [None, *sentences("some", 40)]))
    parts = list(pack_shard(shard, settings_for(tiny_model)))
    assert [each.end is None for each in parts] == [True] * (len(parts) - 1) + [False]
    last = parts[-1].end
    assert last is not None
    assert last.packed == Packed(len(rows_of([each.rows for each in parts])), 40, {NOT_A_STRING: 1})


def test_every_row_that_cannot_be_used_is_written_down_with_its_number_reason_and_excerpt(
    tiny_model: Path, tmp_path: Path
) -> None:
    lines = ['{"text": "good", "by": "x"}', '{"text": 5, "by": "x"}', "no json", '{"text": "  ", "by": "x"}']
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub/a.jsonl").write_text("\n".join([*lines, '{"text": "no group", "by": null}']))
    (shard,) = find_shards(tmp_path)
    (part,) = pack_shard(shard, settings_for(tiny_model, Columns(group="by")))
    assert aside_of(part) == [
        {"shard": "sub/a.jsonl", "row": 1, "reason": NOT_A_STRING, "excerpt": "5"},
        {"shard": "sub/a.jsonl", "row": 2, "reason": NOT_JSON, "excerpt": r"no json\n"},
        {"shard": "sub/a.jsonl", "row": 3, "reason": BLANK, "excerpt": "  "},
        {"shard": "sub/a.jsonl", "row": 4, "reason": NO_GROUP, "excerpt": "None"},
    ]


def test_packing_a_shard_again_gives_the_same(tiny_model: Path, tmp_path: Path) -> None:
    shard = only_shard(write_jsonl(tmp_path / "a.jsonl", [None, *sentences("some", 40)]))
    wanted = settings_for(tiny_model)
    next(pack_shard(shard, wanted))
    once, twice = (list(pack_shard(shard, wanted)) for _ in range(2))
    assert once == twice


def test_a_shard_without_text_gives_no_rows_and_says_so(tiny_model: Path, tmp_path: Path) -> None:
    shard = only_shard(write_jsonl(tmp_path / "a.jsonl", ["", " "]))
    (part,) = pack_shard(shard, settings_for(tiny_model))
    assert part.rows is None
    assert part.end is not None and part.end.packed == Packed(0, 0, {BLANK: 2})
    assert [each["reason"] for each in aside_of(part)] == [BLANK, BLANK]


@pytest.mark.parametrize("texts", [[None, *sentences("some", 40)], ["", " "], sentences("good", 20)])
def test_a_part_that_travels_between_nodes_is_staged_as_it_was(
    tiny_model: Path, tmp_path: Path, texts: list[str | None]
) -> None:
    """The rows that are staged are those packed, in whatever order parts come, and so is what was set aside."""
    shard = only_shard(write_jsonl(tmp_path / "a.jsonl", texts))
    parts = list(pack_shard(shard, settings_for(tiny_model)))
    for part in reversed(parts):
        key, come = of_value(as_value("key", part))
        assert (key, come) == ("key", part)
        pipeline._staged(tmp_path / "staging", key, come)
    last = parts[-1].end
    assert last is not None and read_packed(tmp_path / "staging", "key") == last.packed
    staged = read_rows(tmp_path / "staging", parts_of(tmp_path / "staging", "key")) if parts[0].rows else None
    packed = pa.concat_tables(each.rows for each in parts) if parts[0].rows else None
    assert (staged is None) == (packed is None)
    if staged is not None and packed is not None:
        assert staged == packed.drop_columns(["row", "position"])
    aside = tmp_path / "staging/key" / SET_ASIDE
    assert aside.exists() == bool(last.packed.set_aside)
    if aside.exists():
        assert [json.loads(line) for line in aside.read_text().splitlines()] == aside_of(parts[-1])


def broken_off(path: Path, texts: list[str]) -> Shard:
    """A shard that is read without complaint up to its end, which is not there."""
    lines = "".join(json.dumps({"text": text}) + "\n" for text in texts)
    path.write_bytes(compressed(path, lines.encode())[:-10])
    return only_shard(path)


def test_the_first_parts_of_a_long_shard_come_before_it_is_read_to_its_end(tiny_model: Path, tmp_path: Path) -> None:
    shard = broken_off(tmp_path / "a.jsonl.gz", [*sentences("some", 400), *[" " * 10_000] * 2000])
    parts = rows_packed(shard, settings_for(tiny_model))
    assert numbers_of([next(parts), next(parts)]) == list(range(2 * ROWS_A_PART))
    with pytest.raises(UnusableSource, match=shard.name):
        list(parts)


def test_few_long_documents_are_tokenized_at_once(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packing, "_CHARACTERS_AT_ONCE", 10_000)
    shard = broken_off(tmp_path / "a.jsonl.gz", [" ".join(sentences(f"long {i}", 200)) for i in range(200)])
    parts = rows_packed(shard, settings_for(tiny_model))
    assert numbers_of([next(parts)]) == list(range(ROWS_A_PART))


@pytest.mark.parametrize("name", ["a.parquet", "a.jsonl", "a.jsonl.gz", "a.txt"])
def test_parts_tell_how_much_of_a_shard_has_been_read_for_their_rows(
    tiny_model: Path, tmp_path: Path, name: str
) -> None:
    texts, path = sentences("some", 400), tmp_path / name
    if name == "a.txt":
        path.write_text(" ".join(texts))
    else:
        write(path, [{"text": each} for each in texts])
    parts = list(rows_packed(only_shard(path), settings_for(tiny_model)))
    positions = [part["position"][-1].as_py() for part in parts]
    assert positions == sorted(set(positions))
    assert positions[-1] == path.stat().st_size
    assert positions[len(parts) // 2] == pytest.approx(positions[-1] / 2, rel=0.2)


def test_the_rows_of_a_long_document_go_out_before_it_is_tokenized_to_its_end(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packing, "_CHARACTERS_AT_ONCE", 10_000)
    num_tokenized = 0

    def counted(tokenizer: Any, contents: list[str], *others: Any) -> Any:
        nonlocal num_tokenized
        num_tokenized += sum(map(len, contents))
        return ids_of(tokenizer, contents, *others)

    monkeypatch.setattr(packing, "ids_of", counted)
    text = " ".join(sentences("long", 15_000))
    shard = only_shard(write_jsonl(tmp_path / "a.jsonl", [text]))
    parts = rows_packed(shard, settings_for(tiny_model))
    position = next(parts)["position"][-1].as_py()
    assert num_tokenized <= PIECE_CHARACTERS < len(text) / 2
    assert 0 < position < shard.num_bytes / 2


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl"])
def test_a_long_document_is_packed_as_a_whole_one_is(
    tiny_model: Path, tokenizer: Any, tmp_path: Path, name: str
) -> None:
    """It is tokenized in pieces, and a separator comes at its end alone."""
    text = " ".join(sentences("long", 15_000))
    assert len(text) > 2 * PIECE_CHARACTERS
    texts = [text] if name == "a.txt" else ["before", text, "after"]
    if name == "a.txt":
        (tmp_path / name).write_text(text)
    else:
        write_jsonl(tmp_path / name, texts)
    parts = list(pack_shard(only_shard(tmp_path / name), settings_for(tiny_model)))
    assert [ids for *_, ids in rows_of([each.rows for each in parts])] == list(cut_by_hand(texts, tokenizer, SEQ_LEN))
    assert parts[-1].end is not None and parts[-1].end.packed.num_documents == len(texts)


def test_a_bos_token_begins_a_long_document_and_each_of_its_rows_but_not_its_pieces(
    tiny_model: Path, tokenizer: Any, tmp_path: Path
) -> None:
    texts = ["before", " ".join(sentences("long", 15_000)), "after"]
    assert len(texts[1]) > 2 * PIECE_CHARACTERS
    without = settings_for(tiny_model)
    ends, num_ids = Ends(without.ends.separator_id, without.vocab_size), without.vocab_size + 1
    shard = only_shard(write_jsonl(tmp_path / "a.jsonl", texts))
    rows = [ids for *_, ids in rows_of(list(rows_packed(shard, replace(without, ends=ends, vocab_size=num_ids))))]
    assert {row[0] for row in rows} == {ends.bos_id}
    documents = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
    whole = pack(documents, SEQ_LEN, ends, id_dtype(num_ids))
    assert rows == [tuple(ids[:n].tolist()) for ids, n in zip(whole.input_ids, whole.length, strict=True)]


@pytest.mark.parametrize("name", ["a.parquet", "a.jsonl", "a.arrow"])
def test_ready_made_tokens_are_packed_as_they_are(tiny_model: Path, tmp_path: Path, name: str) -> None:
    ids = [np.arange(1, 1 + n).tolist() for n in (5, 40, 1)]
    shard = only_shard(write(tmp_path / name, [{"ids": each} for each in ids]))
    rows = rows_of(list(rows_packed(shard, settings_for(tiny_model, Columns(tokens="ids")))))
    line = [token for each in ids for token in [*each, 0]]
    assert len(line) == 3 * SEQ_LEN + 1
    assert [ids for *_, ids in rows] == [tuple(line[first : first + SEQ_LEN]) for first in (0, 16, 32)]


def test_an_actor_that_cannot_load_its_model_says_so_when_it_is_called(tmp_path: Path, tiny_model: Path) -> None:
    wrapped = with_prefix(tiny_model, tmp_path / "wrapped", "module.")
    actor = ScoreParts(replace(settings_for(tiny_model), model=str(wrapped)))
    shard = only_shard(write(tmp_path / "a.jsonl", [{"text": "the cat sat on the mat"}]))
    (part,) = pack_shard(shard, settings_for(tiny_model))
    with pytest.raises(CorpusError, match="would stay random"):
        actor(as_value("key", part))


def test_ready_made_tokens_of_another_tokenizer_are_refused(tiny_model: Path, tmp_path: Path) -> None:
    shard = only_shard(write(tmp_path / "a.jsonl", [{"ids": [1, 2, 9999]}]))
    with pytest.raises(CorpusError, match="9999"):
        list(rows_packed(shard, settings_for(tiny_model, Columns(tokens="ids"))))
