"""A corpus that is made in one go, and what follows from its being there."""

import shutil
from collections import Counter
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM, AutoTokenizer

from replay_service.corpus.describe import domain_rows, group_rows
from replay_service.corpus.format.manifest import Manifest, read_manifest
from replay_service.corpus.format.records import SampleRows
from replay_service.corpus.ingest.driver import ingest
from replay_service.corpus.ingest.settings import IngestSettings
from replay_service.corpus.ingest.status import IngestProgress, read_status
from replay_service.corpus.reading.reader import Corpus, CorpusStore
from replay_service.corpus.shards.documents import BLANK, NOT_A_STRING
from replay_service.errors import CorpusError, ModelMismatch, UnusableSource
from tests.corpus.ingested import (
    NAME,
    NUM_WITHOUT_TEXT,
    TEXTS,
    all_rows,
    content_of,
    cut_by_hand,
    settings_of,
    write_source,
)
from tests.corpus.worlds import sentences, write_jsonl
from tests.language.faulty_models import bert_encoder
from tests.support import make_tiny_model

TOPK = 3


@dataclass
class Made:
    """A corpus that was made in one go, and what was seen of it meanwhile."""

    settings: IngestSettings
    manifest: Manifest
    corpus: Corpus
    progress: list[IngestProgress] = field(default_factory=list)
    generations: dict[int, int] = field(default_factory=dict)
    """The samples that could be read of each."""
    refused: list[str] = field(default_factory=list)
    """What an ingest was told that wanted to begin meanwhile."""


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_source(tmp_path_factory.mktemp("source"))


@pytest.fixture(scope="module")
def made(source: Path, tiny_model: Path, ray_session: None, tmp_path_factory: pytest.TempPathFactory) -> Made:
    settings = settings_of(source, tmp_path_factory.mktemp("corpora"), tiny_model, topk=TOPK, gpus_per_scorer=8.0)
    store = CorpusStore(settings.folder)
    made = Made(settings, None, None)  # type: ignore[arg-type]

    def watch(progress: IngestProgress) -> None:
        if not made.progress:
            with pytest.raises(CorpusError) as refused:
                ingest(settings)
            made.refused.append(str(refused.value))
        made.progress.append(progress)
        if progress.generation:
            corpus = store.get(NAME)
            assert corpus.generation == progress.generation
            made.generations[corpus.generation] = int((all_rows(corpus).length > 0).sum())

    made.manifest = ingest(settings, watch)
    made.corpus = Corpus(settings.corpus_folder)
    return made


@pytest.fixture(scope="module")
def tokenizer(tiny_model: Path) -> Any:
    return AutoTokenizer.from_pretrained(tiny_model)


@pytest.fixture
def copied(made: Made, tmp_path: Path) -> IngestSettings:
    """The settings of a copy of the corpus and of its source, both of which may be changed."""
    shutil.copytree(made.settings.corpus_folder, tmp_path / NAME)
    shutil.copytree(made.settings.source, tmp_path / "source", copy_function=shutil.copy2)
    return replace(made.settings, folder=tmp_path, source=str(tmp_path / "source"))


def files_of(folder: Path) -> dict[Path, tuple[int, int]]:
    """Every file, and what changes when it is written."""
    return {path: (path.stat().st_ino, path.stat().st_mtime_ns) for path in folder.rglob("*") if path.is_file()}


def logits_of(model: Path, rows: SampleRows) -> list[torch.Tensor]:
    """Of each row, the logits [length - 1, vocabulary] that a plain loop gets."""
    plain = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
    with torch.inference_mode():
        return [
            plain(input_ids=torch.from_numpy(ids[None, :length].astype(np.int64))).logits[0, :-1]
            for ids, length in zip(rows.input_ids, rows.length, strict=True)
        ]


# What is in it


def test_every_token_of_every_document_is_in_the_corpus(made: Made, tokenizer: Any) -> None:
    expected = Counter(row for texts in TEXTS.values() for row in cut_by_hand(texts, tokenizer, 32))
    rows = all_rows(made.corpus)
    assert Counter(tuple(ids[:n].tolist()) for ids, n in zip(rows.input_ids, rows.length, strict=True)) == expected
    assert made.manifest.num_tokens == sum(count * len(row) for row, count in expected.items())
    assert made.manifest.num_samples == expected.total()


def test_documents_are_counted_and_those_without_text_set_aside(made: Made) -> None:
    assert made.manifest.num_shards == len(TEXTS)
    assert made.manifest.num_rows_of_next_shard == 0
    assert made.manifest.num_documents == sum(map(len, TEXTS.values()))
    assert made.manifest.set_aside == {NOT_A_STRING: 1, BLANK: 1}
    assert made.manifest.num_set_aside == NUM_WITHOUT_TEXT
    (written,) = (made.settings.corpus_folder / "set_aside").iterdir()
    assert written.read_text().count('"shard": "en/one.jsonl"') == NUM_WITHOUT_TEXT


def test_base_losses_and_hits_are_those_of_a_plain_loop(made: Made, tiny_model: Path) -> None:
    rows = all_rows(made.corpus)
    bits = np.unpackbits(rows.base_correct, axis=1, bitorder="little").astype(bool)
    for i, logits in enumerate(logits_of(tiny_model, rows)):
        length = rows.length[i]
        ids = torch.from_numpy(rows.input_ids[i, :length].astype(np.int64))
        assert rows.base_loss[i] == pytest.approx(float(cross_entropy(logits, ids[1:])), abs=1e-3)
        best, second = logits.topk(2, dim=1).values.T
        is_clear = (best - second > 1e-4).numpy()
        hits = (logits.argmax(dim=1) == ids[1:]).numpy()
        assert np.array_equal(bits[i, 1:length][is_clear], hits[is_clear])
        assert not bits[i, 0]
        assert not bits[i, length:].any()


def test_the_likeliest_tokens_and_their_log_probabilities_are_those_of_a_plain_loop(
    made: Made, tiny_model: Path
) -> None:
    rows = all_rows(made.corpus)
    assert rows.topk_ids is not None and rows.topk_logprobs is not None
    assert rows.topk_ids.shape == rows.topk_logprobs.shape == (len(rows), 31, TOPK)
    assert (rows.topk_logprobs <= 0).all()
    for i, logits in enumerate(logits_of(tiny_model, rows)):
        logprobs = logits.log_softmax(dim=1)
        ids = torch.from_numpy(rows.topk_ids[i, : len(logits)].astype(np.int64))
        kept = torch.from_numpy(rows.topk_logprobs[i, : len(logits)].astype(np.float32))
        torch.testing.assert_close(kept, logprobs.topk(TOPK, dim=1).values, atol=5e-3, rtol=0)
        torch.testing.assert_close(kept, logprobs.gather(1, ids), atol=5e-3, rtol=0)
        best, second = logits.topk(2, dim=1).values.T
        is_clear = best - second > 1e-4
        assert torch.equal(ids[is_clear, 0], logits.argmax(dim=1)[is_clear])


def test_the_strata_of_a_group_follow_from_its_edges(made: Made) -> None:
    partition, rows = made.corpus.partition, all_rows(made.corpus)
    assert sorted(partition.groups) == ["en", "essay", "fr"]
    assert partition.sizes.sum() == len(rows) == made.manifest.num_samples
    assert np.array_equal(np.bincount(rows.stratum, minlength=9), partition.sizes)
    for i, group in enumerate(made.manifest.groups):
        fences = [-np.inf, *group.edges_nats, np.inf]
        for quantile in range(3):
            losses = rows.base_loss[rows.stratum == 3 * i + quantile]
            assert ((fences[quantile] < losses) & (losses <= fences[quantile + 1])).all()


def test_domains_are_summed_up_from_their_samples(made: Made) -> None:
    rows = all_rows(made.corpus)
    place = {group.name: i for i, group in enumerate(made.manifest.groups)}
    for domain in made.manifest.domains:
        members = rows.stratum // 3 == place[domain.name]
        assert domain.num_samples == members.sum()
        assert domain.num_tokens == rows.length[members].sum()
        assert domain.mean_base_loss_nats == pytest.approx(float(rows.base_loss[members].mean()), rel=1e-5)
        assert 1 <= domain.num_entropies <= domain.num_samples
        assert 0.0 < abs(domain.loss_above_entropy_nats) < domain.mean_base_loss_nats
    assert [row[0] for row in domain_rows(made.manifest)] == [domain.name for domain in made.manifest.domains]
    assert len(group_rows(made.manifest)) == len(made.manifest.groups)


# While it is made


def test_each_finished_segment_is_a_generation_that_can_be_read_at_once(made: Made) -> None:
    sizes = [segment.num_rows for segment in made.manifest.segments]
    assert [segment.generation for segment in made.manifest.segments] == list(range(1, len(sizes) + 1))
    assert sizes[:-1] == [50] * (len(sizes) - 1)
    assert made.manifest.generation == len(sizes) >= 5
    assert len(made.generations) >= 3
    assert made.generations == {each: sum(sizes[:each]) for each in made.generations}


def test_progress_counts_up_to_every_shard_row_and_token(made: Made) -> None:
    manifest = made.manifest
    assert made.progress[0] == IngestProgress(0, len(TEXTS), 0.0, 0, 0, 0, 0, 1, ["notes.csv"])
    assert made.progress[-1] == IngestProgress(
        len(TEXTS),
        len(TEXTS),
        1.0,
        manifest.num_samples,
        manifest.num_tokens,
        NUM_WITHOUT_TEXT,
        manifest.generation,
        num_passed_over=1,
        passed_over=["notes.csv"],
    )
    within = [each for each in made.progress if each.shards_done == 0 and each.num_rows]
    assert all(0 < each.share_done < 1 for each in within)
    assert within
    for name in ("shards_done", "share_done", "num_rows", "num_tokens", "generation"):
        seen = [getattr(each, name) for each in made.progress]
        assert seen == sorted(seen)


def test_an_ingest_beside_another_one_is_refused(made: Made) -> None:
    assert made.refused == [f"another ingest writes corpus {NAME!r}; wait for it, or stop it"]


def test_in_the_end_its_status_says_so_and_nothing_is_left_of_the_staging(made: Made) -> None:
    folder = made.settings.corpus_folder
    status = read_status(folder)
    assert status is not None
    assert (status.state, status.problem, status.progress) == ("finished", None, made.progress[-1])
    assert {path.name for path in folder.iterdir()} == {
        ".lock",
        "manifest.json",
        "segments",
        "set_aside",
        "shards.jsonl",
        "status.json",
        "tokenizer.json",
    }


# When it is there


def test_ingesting_again_returns_the_same_manifest_and_writes_nothing_but_its_status(made: Made) -> None:
    before = files_of(made.settings.corpus_folder)
    progress: list[IngestProgress] = []
    assert ingest(made.settings, progress.append) == read_manifest(made.settings.corpus_folder) == made.manifest
    assert progress == []
    after = files_of(made.settings.corpus_folder)
    assert {path.name for path in before | after if before.get(path) != after.get(path)} <= {"status.json", ".lock"}


def test_what_a_killed_ingest_has_left_in_staging_is_taken_away(copied: IngestSettings) -> None:
    before = content_of(copied.corpus_folder)
    (copied.corpus_folder / "staging/other/shard").mkdir(parents=True)
    ingest(copied)
    assert content_of(copied.corpus_folder) == before
    assert not (copied.corpus_folder / "staging").exists()


def test_a_corpus_that_was_made_with_other_settings_is_refused_and_they_are_named(made: Made) -> None:
    said = "made with other settings: seq_len 32 and not 16, topk 3 and not 0; repeat them"
    with pytest.raises(CorpusError, match=f"corpus '{NAME}' exists already, {said}"):
        ingest(replace(made.settings, seq_len=16, topk=0))


def test_the_same_model_by_another_path_is_no_other_model(copied: IngestSettings, made: Made, tmp_path: Path) -> None:
    elsewhere = shutil.copytree(copied.model, tmp_path / "elsewhere")
    assert ingest(replace(copied, model=str(elsewhere))) == made.manifest


def test_a_model_of_the_same_name_with_other_weights_does_not_fit(copied: IngestSettings, tmp_path: Path) -> None:
    tuned = make_tiny_model(tmp_path / "tuned", seed=1)
    with pytest.raises(ModelMismatch, match=r"with other weights, or another config\.json"):
        ingest(replace(copied, model=str(tuned)))


def test_an_error_of_a_base_model_in_a_process_of_ray_is_shown_as_ours(made: Made, tmp_path: Path) -> None:
    model = bert_encoder(Path(made.settings.model), tmp_path / "encoder")
    with pytest.raises(CorpusError) as refused:
        ingest(replace(made.settings, model=str(model), folder=tmp_path / "corpora"))
    assert type(refused.value) is CorpusError
    assert str(refused.value).startswith("the model (bert) is not causal") and "\n" not in str(refused.value)
    assert list((tmp_path / "corpora").iterdir()) == []


def test_how_fast_it_is_made_is_not_a_setting_of_the_corpus(made: Made) -> None:
    assert ingest(replace(made.settings, num_scorers=2, batch_size=7, gpus_per_scorer=0.5)) == made.manifest


def test_a_shard_that_has_changed_is_refused(copied: IngestSettings) -> None:
    write_jsonl(Path(copied.source) / "de/new.jsonl", sentences("new", 20))
    ingest(copied)
    before = content_of(copied.corpus_folder)
    write_jsonl(Path(copied.source) / "de/new.jsonl", sentences("other", 3))
    with pytest.raises(CorpusError, match=r"shard de/new.jsonl has changed since it was ingested"):
        ingest(copied)
    assert content_of(copied.corpus_folder) == before


def test_a_shard_that_is_gone_stays_in_the_corpus(copied: IngestSettings, made: Made) -> None:
    (Path(copied.source) / "en/one.jsonl").unlink()
    assert ingest(copied) == made.manifest


def test_a_new_shard_brings_a_generation_and_leaves_what_is_there(copied: IngestSettings, made: Made) -> None:
    before, texts = files_of(copied.corpus_folder / "segments"), sentences("late", 40)
    write_jsonl(Path(copied.source) / "de/late.jsonl", texts)
    manifest = ingest(copied)
    after = files_of(copied.corpus_folder / "segments")
    assert {path: after[path] for path in before} == before
    assert manifest.segments[: len(made.manifest.segments)] == made.manifest.segments
    assert manifest.groups[: len(made.manifest.groups)] == made.manifest.groups
    assert manifest.generation > made.manifest.generation
    assert manifest.num_documents == made.manifest.num_documents + len(texts)
    assert {each.name for each in manifest.domains} == {"de", "en", "essay", "fr"}
    old = manifest.partition(made.manifest.generation)
    assert old == made.corpus.partition
    assert len(all_rows(Corpus(copied.corpus_folder))) == manifest.num_samples


def test_a_model_with_another_tokenizer_does_not_fit(made: Made, tmp_path: Path) -> None:
    other = make_tiny_model(tmp_path / "other-model", vocab_size=280)
    with pytest.raises(ModelMismatch, match="tokenizer differs"):
        ingest(replace(made.settings, model=str(other)))


def test_what_is_plainly_wrong_shows_before_anything_is_made(source: Path, tiny_model: Path, tmp_path: Path) -> None:
    settings = settings_of(source, tmp_path / "corpora", tiny_model)
    write_jsonl(tmp_path / "wrong/a.jsonl", ["x"], column="body")
    wrong: list[tuple[IngestSettings, type[CorpusError]]] = [
        (replace(settings, source=str(tmp_path / "nowhere")), UnusableSource),
        (replace(settings, source=str(tmp_path / "wrong")), UnusableSource),
        (replace(settings, seq_len=65), CorpusError),
        (replace(settings, model=str(tmp_path)), CorpusError),
    ]
    for each, error in wrong:
        with pytest.raises(error):
            ingest(each)
    assert list((tmp_path / "corpora").iterdir()) == []
