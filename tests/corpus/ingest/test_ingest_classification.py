"""Corpora of samples with a label, made by the whole pipeline."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from torch import nn

from replay_service.classification.model import fingerprint, load_classifier
from replay_service.classification.scoring import ClassScorer
from replay_service.corpus.describe import content_of, sample_texts
from replay_service.corpus.format.manifest import Classes
from replay_service.corpus.ingest.driver import ingest
from replay_service.corpus.ingest.growth import NO_LOSS
from replay_service.corpus.ingest.labelled import NO_CLASS, OTHER_SHAPE
from replay_service.corpus.ingest.settings import IngestJob, IngestSettings
from replay_service.corpus.ingest.work import STAGING
from replay_service.corpus.reading.reader import Corpus
from replay_service.corpus.shards.documents import NO_GROUP, Columns
from replay_service.errors import CorpusError, EmptyCorpus, ModelMismatch, UnusableSource
from replay_service.gateway.app import create_app
from replay_service.settings import load_settings
from replay_service.testing.transport import in_process
from replay_service.wire.columns import wide_list
from replay_trainer.client import ReplayClient
from replay_trainer.plain import Rehearsal
from tests.classification.worlds import NUM_CLASSES, SHAPE, images, make_tiny_bert, make_tiny_vit, tiny_net
from tests.corpus.ingested import all_rows
from tests.corpus.ingested import content_of as content_of_folder
from tests.corpus.worlds import sentences

TENSORS = Columns(inputs="image", label="label", group="label")
FACTORY = "tests.classification.worlds:tiny_net"


def settings_of(source: Path, folder: Path, model: object = FACTORY, **others: Any) -> IngestSettings:
    usual = {"num_quantiles": 2, "batch_size": 4, "rows_per_segment": 50, "kind": "classification", "columns": TENSORS}
    return IngestSettings(str(source), folder, "digits", str(model), **usual | others)


def write_images(path: Path, num: int, seed: int = 0, **changes: Any) -> Path:
    inputs, label = images(num, seed)
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({"image": wide_list(inputs), "label": pa.array(label), **changes}), path)
    return path


class Capricious(nn.Module):
    """A model that gives no number for a dark image."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        mean = images.mean(dim=(1, 2, 3))
        return torch.stack([mean, -mean], dim=1) / (mean > 100).float()[:, None]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("root")


@pytest.fixture(scope="module")
def made(ray_session: None, root: Path) -> Corpus:
    write_images(root / "source/a.parquet", 70)
    write_images(root / "source/b.parquet", 50, seed=1)
    other = pa.array([*range(NUM_CLASSES), NUM_CLASSES, -1, None], pa.int64())
    write_images(root / "source/c.parquet", 7, seed=2, label=other)
    write_images(root / "source/d.parquet", 1, image=pa.array([[[[0] * 7]]]))
    settings = settings_of(root / "source", root / "corpora")
    ingest(settings)
    return Corpus(settings.corpus_folder)


def test_the_samples_stand_in_the_corpus_as_they_came_with_the_models_losses(made: Corpus) -> None:
    rows = all_rows(made)
    assert rows.inputs is not None and rows.label is not None
    came = {
        (each.tobytes(), int(label))
        for num, seed in ((70, 0), (50, 1), (7, 2))
        for each, label in zip(*images(num, seed), strict=True)
    }
    found = [(each.tobytes(), int(label)) for each, label in zip(rows.inputs, rows.label, strict=True)]
    assert len(found) == 124 and len(came & set(found)) >= 120
    scores = ClassScorer(tiny_net(), "float32", batch_size=124).score(rows.inputs, rows.label)
    np.testing.assert_allclose(rows.base_loss, scores.base_loss, rtol=1e-5)
    np.testing.assert_array_equal(rows.base_correct[:, 0], scores.correct)
    assert (rows.length == 1).all()


def test_a_loop_rehearses_what_was_ingested(root: Path, made: Corpus) -> None:
    model = tiny_net().eval()
    with in_process(create_app(load_settings(root=root))) as transport:
        client = ReplayClient("http://127.0.0.1", transport=transport)
        settings = {"global_batch_size": 8, "injection_ratio": "0.5", "injection_mode": "add"}
        client.ensure_run("a-run", "digits", settings)
        rehearsal = Rehearsal(client, "a-run", base_model=model, prepare=torch.Tensor.float)
        inputs, label = images(8, 9)
        ours = {"images": torch.from_numpy(inputs).float(), "labels": torch.from_numpy(label)}
        with rehearsal.open(num_steps=5) as loop:
            for step in range(5):
                batch = loop.mix(step, ours)
                loop.report(batch, batch.losses(model(batch.inputs["images"])))
        stats = client.stats("a-run")
    # The model is the one that scored them, so nothing is forgotten.
    assert (stats["num_reported"], stats["num_flips"]) == (40, 0)
    assert stats["mean_excess_nats"] == pytest.approx(0, abs=1e-5)


def test_the_manifest_says_what_is_classified_and_by_which_model(made: Corpus) -> None:
    manifest = made.manifest
    assert (manifest.kind, manifest.precision, manifest.seq_len) == ("classification", "float32", 0)
    assert manifest.classes == Classes(NUM_CLASSES, fingerprint(tiny_net()), list(SHAPE), "uint8")
    assert manifest.set_aside == {NO_CLASS: 2, NO_GROUP: 1, OTHER_SHAPE: 1}
    assert manifest.num_documents == manifest.num_samples == manifest.num_tokens == 124
    assert sorted(group.name for group in manifest.groups) == [str(each) for each in range(NUM_CLASSES)]


def test_strata_are_quantiles_of_the_loss_within_each_label(made: Corpus) -> None:
    rows, partition = all_rows(made), made.partition
    assert rows.label is not None
    for stratum in range(partition.num_strata):
        here = rows.stratum == stratum
        assert set(rows.label[here].tolist()) <= {int(partition.groups[stratum // 2])}


def test_a_person_sees_what_a_sample_holds(made: Corpus) -> None:
    assert content_of(made.manifest) == "uint8[1, 8, 8] of 4 classes"
    (text,) = [each.text for each in sample_texts(made, "1/q0", 1, 0)]
    assert text.startswith("label 1: uint8[1, 8, 8] from ")


def test_the_same_ingest_again_does_nothing_and_new_shards_are_added(ray_session: None, tmp_path: Path) -> None:
    write_images(tmp_path / "source/a.parquet", 60)
    settings = settings_of(tmp_path / "source", tmp_path)
    first = ingest(settings)
    assert ingest(settings) == first
    write_images(tmp_path / "source/b.parquet", 40, seed=5)
    grown = ingest(settings)
    assert (grown.num_samples, grown.fingerprint) == (100, first.fingerprint)
    with pytest.raises(ModelMismatch, match="other weights"):
        ingest(replace(settings, model=str(make_tiny_vit(tmp_path / "vit"))))
    with pytest.raises(CorpusError, match="of kind classification"):
        ingest(replace(settings, kind="language", columns=Columns()))


def test_a_stopped_ingest_goes_on_to_the_same_corpus(root: Path, made: Corpus, tmp_path: Path) -> None:
    settings = settings_of(root / "source", tmp_path)
    ingest(settings, is_stopped=lambda: True)
    assert (settings.corpus_folder / STAGING).exists()
    ingest(settings)
    assert content_of_folder(settings.corpus_folder) == content_of_folder(root / "corpora" / "digits")


def test_a_model_of_transformers_scores_images(ray_session: None, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    tensors = rng.random((30, *SHAPE), dtype=np.float32)
    pq.write_table(
        pa.table({"image": pa.FixedShapeTensorArray.from_numpy_ndarray(tensors), "label": [i % 4 for i in range(30)]}),
        tmp_path / "a.parquet",
    )
    vit = make_tiny_vit(tmp_path / "vit")
    settings = settings_of(tmp_path / "a.parquet", tmp_path, vit, columns=replace(TENSORS, group=None))
    manifest = ingest(settings)
    rows = all_rows(Corpus(settings.corpus_folder))
    assert rows.inputs is not None and rows.label is not None
    model = load_classifier(str(vit), is_text=False)
    assert manifest.classes is not None and manifest.classes.model_fingerprint == fingerprint(model)
    scores = ClassScorer(model, "float32", batch_size=30).score(rows.inputs, rows.label)
    np.testing.assert_allclose(rows.base_loss, scores.base_loss, rtol=1e-4)


def test_texts_are_tokenized_with_their_special_tokens_cut_and_scored(
    ray_session: None, tiny_model: Path, tmp_path: Path
) -> None:
    from replay_service.language.tokenizer import load_tokenizer

    texts = sentences("english", 30)
    pq.write_table(pa.table({"text": texts, "label": [i % 3 for i in range(30)]}), tmp_path / "a.parquet")
    bert = make_tiny_bert(tmp_path / "bert", tiny_model)
    settings = settings_of(tmp_path / "a.parquet", tmp_path, bert, columns=Columns(label="label"), seq_len=24)
    manifest = ingest(settings)
    corpus = Corpus(settings.corpus_folder)
    rows = all_rows(corpus)
    assert rows.label is not None and rows.inputs is None
    assert (manifest.seq_len, manifest.num_samples) == (24, 30)
    tokenizer = load_tokenizer(str(bert))
    wanted = {tuple(tokenizer(text, truncation=True, max_length=24)["input_ids"]) for text in texts}
    assert {tuple(ids[:n].tolist()) for ids, n in zip(rows.input_ids, rows.length, strict=True)} == wanted
    model = load_classifier(str(bert), is_text=True)
    scores = ClassScorer(model, "float32", batch_size=30).score(rows.input_ids, rows.label, rows.length)
    np.testing.assert_allclose(rows.base_loss, scores.base_loss, rtol=1e-4)
    (text,) = [each.text for each in sample_texts(corpus, "a/q1", 1, 0)]
    assert text.startswith("label ") and "english" in text


def test_a_factory_that_makes_another_model_each_time_is_refused(ray_session: None, tmp_path: Path) -> None:
    write_images(tmp_path / "a.parquet", 5)
    with pytest.raises(CorpusError, match="other weights each time"):
        ingest(settings_of(tmp_path / "a.parquet", tmp_path, "tests.classification.worlds:TinyNet"))


def test_a_sample_without_a_finite_loss_is_set_aside(ray_session: None, tmp_path: Path) -> None:
    inputs = np.full((40, *SHAPE), 200, dtype=np.uint8)
    inputs[:5] = 10
    write_images(tmp_path / "a.parquet", 40, image=wide_list(inputs), label=pa.array([0, 1] * 20))
    name = "tests.corpus.ingest.test_ingest_classification:Capricious"
    settings = settings_of(tmp_path / "a.parquet", tmp_path, name, rows_per_segment=20)
    manifest = ingest(settings)
    assert (manifest.num_samples, manifest.set_aside) == (35, {NO_LOSS: 5})
    inputs[:] = 10
    write_images(tmp_path / "dark.parquet", 40, image=wide_list(inputs), label=pa.array([0, 1] * 20))
    with pytest.raises(CorpusError, match="no finite loss for any of 20 samples"):
        ingest(replace(settings, source=str(tmp_path / "dark.parquet"), name="dark"))


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"columns": replace(TENSORS, inputs="picture")}, "no column 'picture'"),
        ({"columns": replace(TENSORS, label="class")}, "no column 'class'"),
        ({"model": "no.such:factory"}, "cannot be called"),
        ({"model": "tests.classification.worlds:tiny_reader"}, "does not classify a tensor"),
    ],
)
def test_what_cannot_be_ingested_is_told_and_leaves_nothing(
    changes: dict[str, Any], problem: str, ray_session: None, tmp_path: Path
) -> None:
    write_images(tmp_path / "a.parquet", 5)
    settings = replace(settings_of(tmp_path / "a.parquet", tmp_path), **changes)
    with pytest.raises((CorpusError, UnusableSource), match=problem):
        ingest(settings)
    assert not settings.corpus_folder.exists()


def test_shards_without_a_usable_row_are_told(ray_session: None, tmp_path: Path) -> None:
    write_images(tmp_path / "a.parquet", 5, label=pa.array([None] * 5, pa.int64()))
    with pytest.raises(EmptyCorpus, match="no row of the shards has numbers"):
        ingest(settings_of(tmp_path / "a.parquet", tmp_path))


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"columns": Columns(inputs="image")}, "need a column of labels"),
        ({"kind": "language"}, "say kind classification"),
        ({"topk": 3}, "leave topk"),
        ({"num_clusters": 3, "columns": replace(TENSORS, group=None)}, "leave topk"),
        ({"columns": Columns(label="label")}, "brings no tokenizer"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(changes: dict[str, Any], problem: str, tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match=problem):
        settings_of(tmp_path, tmp_path, **changes)


def test_an_ingest_of_labelled_samples_travels_to_a_process_of_its_own(tmp_path: Path) -> None:
    job = IngestJob(settings_of(tmp_path, tmp_path))
    assert IngestJob.from_json(job.to_json()) == job


def test_the_recipe_of_a_language_corpus_is_what_it_was_before_there_were_other_kinds() -> None:
    settings = IngestSettings("/data", Path("/corpora"), "wiki", "tiny")
    assert settings.recipe("abc") == "816e37e3a30700d8"
