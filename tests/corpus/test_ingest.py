import gzip
import json
import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray
import torch
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM, AutoTokenizer

from replay_service.corpus.ingest import IngestProgress, IngestSettings, ingest
from replay_service.corpus.manifest import Manifest, read_manifest
from replay_service.corpus.reader import Corpus
from replay_service.corpus.segments import SampleRows
from replay_service.errors import CorpusError, EmptyCorpus, ModelMismatch, UnusableSource
from tests.corpus.killed_ingest import settings_of
from tests.corpus.worlds import same_rows, sentences, write_jsonl
from tests.support import make_tiny_model

TEXTS = {
    "en/one.jsonl": sentences("english", 40),
    "en/two.parquet": sentences("more english", 30),
    "fr/one.jsonl": sentences("français", 50),
    "essay.txt": [" ".join(sentences("essay", 40))],
}
NUM_WITHOUT_TEXT = 2


@dataclass(frozen=True)
class Made:
    """A corpus that was made in one go."""

    settings: IngestSettings
    manifest: Manifest
    progress: list[IngestProgress]
    corpus: Corpus


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("source")
    write_jsonl(folder / "en/one.jsonl", [None, *TEXTS["en/one.jsonl"], ""])
    pq.write_table(pa.table({"text": TEXTS["en/two.parquet"]}), folder / "en/two.parquet")
    write_jsonl(folder / "fr/one.jsonl", TEXTS["fr/one.jsonl"])
    (folder / "essay.txt").write_text(TEXTS["essay.txt"][0])
    return folder


@pytest.fixture(scope="module")
def made(source: Path, tiny_model: Path, ray_session: None, tmp_path_factory: pytest.TempPathFactory) -> Made:
    settings, progress = settings_of(source, tmp_path_factory.mktemp("corpora"), tiny_model), []
    manifest = ingest(settings, progress.append)
    return Made(settings, manifest, progress, Corpus(settings.folder / settings.name))


@pytest.fixture(scope="module")
def tokenizer(tiny_model: Path) -> Any:
    return AutoTokenizer.from_pretrained(tiny_model)


def all_rows(corpus: Corpus) -> SampleRows:
    segments = corpus.manifest.segments
    return corpus.rows(np.array([n << 32 | row for n, each in enumerate(segments) for row in range(each.num_rows)]))


def cut_by_hand(texts: list[str], tokenizer: Any, seq_len: int) -> Iterator[tuple[int, ...]]:
    line = [
        token
        for text in texts
        for token in [*tokenizer(text, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
    ]
    for first in range(0, len(line), seq_len):
        row = line[first : first + seq_len]
        if len(row) > 1:
            yield tuple(row)


def test_every_token_of_every_document_is_in_the_corpus(made: Made, tokenizer: Any) -> None:
    expected = Counter(row for texts in TEXTS.values() for row in cut_by_hand(texts, tokenizer, 32))
    rows = all_rows(made.corpus)
    assert Counter(tuple(ids[:n].tolist()) for ids, n in zip(rows.input_ids, rows.length, strict=True)) == expected
    assert made.manifest.num_tokens == sum(count * len(row) for row, count in expected.items())


def test_documents_are_counted_and_those_without_text_set_aside(made: Made) -> None:
    assert made.manifest.num_documents == sum(map(len, TEXTS.values()))
    assert made.manifest.num_set_aside == NUM_WITHOUT_TEXT


def test_base_losses_and_hits_are_those_of_a_plain_loop(made: Made, tiny_model: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32).eval()
    rows = all_rows(made.corpus)
    bits = np.unpackbits(rows.base_correct, axis=1, bitorder="little").astype(bool)
    for i, length in enumerate(rows.length):
        ids = torch.from_numpy(rows.input_ids[i, :length].astype(np.int64))
        with torch.inference_mode():
            logits = model(input_ids=ids[None]).logits[0, :-1]
        assert rows.base_loss[i] == pytest.approx(float(cross_entropy(logits, ids[1:])), abs=1e-3)
        best, second = logits.topk(2, dim=1).values.T
        is_clear = (best - second > 1e-4).numpy()
        hits = (logits.argmax(dim=1) == ids[1:]).numpy()
        assert np.array_equal(bits[i, 1:length][is_clear], hits[is_clear])
        assert not bits[i, 0]
        assert not bits[i, length:].any()


def test_strata_of_a_domain_are_of_equal_size_and_ordered_by_base_loss(made: Made) -> None:
    partition, rows = made.corpus.partition, all_rows(made.corpus)
    assert partition.groups == ("en", "essay", "fr")
    assert partition.num_quantiles == 3
    for i, domain in enumerate(made.manifest.domains):
        of_domain = partition.sizes[3 * i : 3 * i + 3]
        assert of_domain.sum() == domain.num_samples
        assert np.ptp(of_domain) <= 1
        fences = [-np.inf, *domain.quantile_edges_nats, np.inf]
        for quantile in range(3):
            losses = rows.base_loss[rows.stratum == 3 * i + quantile]
            assert ((fences[quantile] < losses) & (losses <= fences[quantile + 1])).all()


def test_segments_are_sorted_by_stratum_and_no_longer_than_asked(made: Made) -> None:
    assert (np.diff(all_rows(made.corpus).stratum) >= 0).all()
    lengths = [segment.num_rows for segment in made.manifest.segments]
    assert lengths[:-1] == [50] * (len(lengths) - 1)
    assert 0 < lengths[-1] <= 50


def test_domains_are_summed_up_from_their_samples(made: Made) -> None:
    rows = all_rows(made.corpus)
    for i, domain in enumerate(made.manifest.domains):
        members = rows.stratum // 3 == i
        assert domain.num_tokens == rows.length[members].sum()
        assert domain.mean_base_loss_nats == pytest.approx(float(rows.base_loss[members].mean()), rel=1e-5)


def test_progress_ends_with_every_shard_and_row(made: Made) -> None:
    assert made.progress[0] == IngestProgress(0, len(TEXTS), 0, 0)
    assert made.progress[-1] == IngestProgress(
        len(TEXTS), len(TEXTS), made.manifest.num_samples, made.manifest.num_tokens
    )
    assert sorted(each.num_rows for each in made.progress) == [each.num_rows for each in made.progress]


def test_nothing_is_left_of_the_staging(made: Made) -> None:
    folder = made.settings.folder / made.settings.name
    assert sorted(path.name for path in folder.iterdir()) == ["manifest.json", "segments"]
    assert read_manifest(folder).partition() == made.corpus.partition


def test_ingesting_again_returns_the_same_manifest_without_work(made: Made) -> None:
    folder = made.settings.folder / made.settings.name
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    progress: list[IngestProgress] = []
    assert ingest(made.settings, progress.append) == read_manifest(folder)
    assert progress == []
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before


@pytest.mark.parametrize("change", [{"seq_len": 16}, {"num_quantiles": 4}, {"rows_per_segment": 60}])
def test_a_name_that_is_taken_by_other_settings_is_refused(made: Made, change: dict[str, int]) -> None:
    with pytest.raises(CorpusError, match="exists already"):
        ingest(replace(made.settings, **change))


def test_a_name_that_is_taken_by_other_shards_is_refused(made: Made, tmp_path: Path) -> None:
    write_jsonl(tmp_path / "other.jsonl", ["other text"])
    with pytest.raises(CorpusError, match="exists already"):
        ingest(replace(made.settings, source=tmp_path))


def test_a_model_with_another_tokenizer_does_not_fit(made: Made, tmp_path: Path) -> None:
    other = make_tiny_model(tmp_path / "other-model", vocab_size=280)
    with pytest.raises(ModelMismatch, match="tokenizer differs"):
        ingest(replace(made.settings, model=str(other)))


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("name", "../up"),
        ("name", ""),
        ("seq_len", 1),
        ("num_quantiles", 0),
        ("batch_size", 0),
        ("num_scorers", 0),
        ("rows_per_segment", 0),
        ("rows_per_segment", -1),
    ],
)
def test_a_setting_that_makes_no_corpus_is_refused(tmp_path: Path, setting: str, value: object) -> None:
    with pytest.raises(CorpusError):
        replace(settings_of(tmp_path, tmp_path, tmp_path), **{setting: value})  # type: ignore[arg-type]


def test_what_is_plainly_wrong_shows_before_anything_is_made(source: Path, tiny_model: Path, tmp_path: Path) -> None:
    settings = settings_of(source, tmp_path / "corpora", tiny_model)
    write_jsonl(tmp_path / "wrong/a.jsonl", ["x"], column="body")
    wrong: list[tuple[IngestSettings, type[CorpusError]]] = [
        (replace(settings, source=tmp_path / "nowhere"), UnusableSource),
        (replace(settings, source=tmp_path / "wrong"), UnusableSource),
        (replace(settings, seq_len=65), CorpusError),
        (replace(settings, model=str(tmp_path)), CorpusError),
    ]
    for each, error in wrong:
        with pytest.raises(error):
            ingest(each)
    assert not (tmp_path / "corpora").exists()


@pytest.mark.usefixtures("ray_session")
def test_shards_without_text_make_no_corpus(tiny_model: Path, tmp_path: Path) -> None:
    write_jsonl(tmp_path / "source/a.jsonl", ["", None, "  \n"])
    (tmp_path / "source/b.txt").touch()
    settings = replace(settings_of(tmp_path / "source", tmp_path, tiny_model), precision="auto")
    with pytest.raises(EmptyCorpus, match="2 shards"):
        ingest(settings)
    assert not (tmp_path / "mixed/manifest.json").exists()


@pytest.mark.usefixtures("ray_session")
def test_a_shard_that_breaks_off_in_the_middle_makes_no_corpus_until_it_is_mended(
    tiny_model: Path, tmp_path: Path, tokenizer: Any
) -> None:
    texts = sentences("english", 20)
    write_jsonl(tmp_path / "source/whole.jsonl", texts)
    broken = tmp_path / "source/broken.jsonl.gz"
    rows = [*texts, *([" " * 10_000] * 500)]  # so long that its head is sound
    whole = gzip.compress("".join(json.dumps({"text": text}) + "\n" for text in rows).encode())
    broken.write_bytes(whole[:-10])
    settings = settings_of(tmp_path / "source", tmp_path, tiny_model)
    with pytest.raises(UnusableSource, match=str(broken)):
        ingest(settings)
    assert not (tmp_path / "mixed/manifest.json").exists()
    broken.write_bytes(whole)
    manifest = ingest(settings)
    assert manifest.num_samples == 2 * len(list(cut_by_hand(texts, tokenizer, 32)))
    assert manifest.num_set_aside == 500


def parts_of_finished_shards(staging: Path) -> dict[Path, int]:
    """The parts of the shards that are done, and when each was written."""
    return {part: part.stat().st_mtime_ns for done in staging.glob("*/*/done") for part in done.parent.glob("*.arrow")}


def test_an_ingest_that_was_killed_goes_on_where_it_was(
    made: Made, source: Path, tiny_model: Path, tmp_path: Path
) -> None:
    command = [sys.executable, "-m", "tests.corpus.killed_ingest", str(source), str(tmp_path), str(tiny_model)]
    address = ray.get_runtime_context().gcs_address
    killed = subprocess.run(command, env={**os.environ, "RAY_ADDRESS": address}, check=False)
    assert killed.returncode == -signal.SIGKILL
    assert not (tmp_path / "mixed/manifest.json").exists()

    finished = parts_of_finished_shards(tmp_path / "mixed/staging")
    num_finished = len({part.parent for part in finished})
    assert 1 <= num_finished < len(TEXTS)
    seen: list[tuple[IngestProgress, dict[Path, int]]] = []
    manifest = ingest(
        settings_of(source, tmp_path, tiny_model),
        lambda progress: seen.append((progress, {part: part.stat().st_mtime_ns for part in finished})),
    )

    assert all(parts == finished for _, parts in seen)
    assert seen[0][0].shards_done == num_finished
    assert seen[-1][0].num_rows < manifest.num_samples
    assert manifest.segments == made.manifest.segments
    assert same_rows(all_rows(Corpus(tmp_path / "mixed")), all_rows(made.corpus))
