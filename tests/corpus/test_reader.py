from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from replay_service.corpus.reader import Corpus, CorpusStore
from replay_service.corpus.segments import SampleRows, map_segment
from replay_service.errors import UnknownCorpus
from tests.corpus.worlds import same_rows
from tests.support import make_corpus


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("corpora")
    make_corpus(folder, "wiki")
    make_corpus(folder, "books", domains=("novels",), seed=1)
    return folder


@pytest.fixture(scope="module")
def corpus(folder: Path) -> Corpus:
    return Corpus(folder / "wiki")


def row_at(folder: Path, sample_id: int) -> SampleRows:
    segment = map_segment(folder / "wiki" / "segments" / f"{sample_id >> 32:08d}.arrow")
    return segment.take(np.array([sample_id & 0xFFFFFFFF]))


def every_address(corpus: Corpus) -> list[int]:
    return [n << 32 | row for n, segment in enumerate(corpus.manifest.segments) for row in range(segment.num_rows)]


@given(data=st.data())
@settings(max_examples=30, deadline=None)
def test_samples_are_read_in_the_order_asked_and_as_often(folder: Path, corpus: Corpus, data: st.DataObject) -> None:
    ids = data.draw(st.lists(st.sampled_from(every_address(corpus)), min_size=1, max_size=30))
    expected = SampleRows.concatenate([row_at(folder, each) for each in ids])
    assert same_rows(corpus.rows(np.array(ids)), expected)
    assert np.array_equal(corpus.base_losses(np.array(ids)), expected.base_loss.astype(np.float64))


def test_no_ids_give_no_rows(corpus: Corpus) -> None:
    none = np.empty(0, dtype=np.int64)
    assert corpus.rows(none).input_ids.shape == (0, 12)
    assert len(corpus.base_losses(none)) == 0


def test_the_partition_leads_to_every_sample_once_and_each_is_in_its_stratum(corpus: Corpus) -> None:
    partition = corpus.partition
    strata = np.repeat(np.arange(partition.num_strata), partition.sizes)
    places = np.concatenate([np.arange(size) for size in partition.sizes])
    ids = partition.locate(strata, places)
    assert sorted(ids.tolist()) == every_address(corpus)
    assert np.array_equal(corpus.rows(ids).stratum, strata)


def test_base_losses_rise_from_quantile_to_quantile(corpus: Corpus) -> None:
    sizes = corpus.partition.sizes
    means = [
        corpus.base_losses(corpus.partition.locate(np.full(n, k), np.arange(n))).mean() for k, n in enumerate(sizes)
    ]
    assert means[0] < means[1]
    assert means[2] < means[3]


def test_a_corpus_is_opened_once(folder: Path) -> None:
    store = CorpusStore(folder)
    assert store.get("wiki") is store.get("wiki")
    assert store.get("wiki").generation == 1


def test_only_corpora_that_are_ready_are_listed(folder: Path, tmp_path: Path) -> None:
    assert CorpusStore(folder).names() == ["books", "wiki"]
    make_corpus(tmp_path, "ready")
    (tmp_path / "half" / "staging").mkdir(parents=True)
    make_corpus(tmp_path, "Not a Name")
    assert CorpusStore(tmp_path).names() == ["ready"]
    assert CorpusStore(tmp_path / "nowhere").names() == []


def test_a_corpus_that_was_made_after_the_store_was_opened_is_found(tmp_path: Path) -> None:
    store = CorpusStore(tmp_path)
    with pytest.raises(UnknownCorpus):
        store.get("late")
    make_corpus(tmp_path, "late")
    assert store.get("late").manifest.name == "late"


@pytest.mark.parametrize(
    "name",
    ["nowhere", "", ".", "..", "../wiki", "wiki/../wiki", "/wiki", "Wiki", "wiki\n", "wiki\0", "a" * 65, "wiki/"],
)
def test_a_name_that_is_no_corpus_is_unknown(folder: Path, name: str) -> None:
    with pytest.raises(UnknownCorpus):
        CorpusStore(folder / "wiki").get(name)
    with pytest.raises(UnknownCorpus):
        CorpusStore(folder).get(name)


def test_a_name_cannot_lead_out_of_the_folder(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "inside").mkdir()
    make_corpus(tmp_path, "secret")
    with pytest.raises(UnknownCorpus):
        CorpusStore(tmp_path / "inside").get("../secret")
