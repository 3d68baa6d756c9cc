import json
from pathlib import Path

import fsspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import fs

from replay_service.corpus.format.records import SampleRows
from replay_service.corpus.reading.folders import remote_folder
from replay_service.corpus.reading.reader import Corpus, CorpusStore
from replay_service.errors import CorpusError, UnknownCorpus
from tests.corpus.worlds import concatenated, ids_of, random_rows, same_rows, write_corpus
from tests.support import make_corpus

SIZES = (700, 1, 40, 1300)
"""Rows of the segments of a corpus; the last one takes several blocks."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("corpora")
    make_corpus(folder, "wiki")
    make_corpus(folder, "books", domains=("novels",), seed=1)
    return folder


@pytest.fixture(scope="module")
def corpus(folder: Path) -> Corpus:
    return Corpus(folder / "wiki")


@pytest.fixture(scope="module", params=[0, 3, 80])
def parts(request: pytest.FixtureRequest) -> list[SampleRows]:
    """The rows of each segment; with 80 of the likeliest tokens, a row is wider than a block."""
    wide = {"seq_len": 450, "topk": 80} if request.param == 80 else {"seq_len": 61, "topk": request.param}
    sizes = (3, 1, 4) if request.param == 80 else SIZES
    return [random_rows(size, seed=seed, **wide) for seed, size in enumerate(sizes)]


@pytest.fixture(scope="module", params=["mapped", "far away", "fsspec"])
def written(
    request: pytest.FixtureRequest, parts: list[SampleRows], tmp_path_factory: pytest.TempPathFactory
) -> Corpus:
    """A corpus of these rows, wherever it is."""
    root = tmp_path_factory.mktemp("written")
    write_corpus(root / "rows", parts)
    if request.param == "mapped":
        return Corpus(root / "rows")
    if request.param == "far away":
        return Corpus(remote_folder(fs.SubTreeFileSystem(str(root), fs.LocalFileSystem()), "rows"))
    memory, place = fsspec.filesystem("memory"), f"/{root.name}"
    memory.put(str(root), place, recursive=True)
    return CorpusStore(f"memory:/{place}").get("rows")


@given(data=st.data())
@settings(max_examples=30, deadline=None)
def test_rows_read_are_rows_written_in_the_order_asked_and_as_often(
    written: Corpus, parts: list[SampleRows], data: st.DataObject
) -> None:
    every, ids = concatenated(parts), ids_of(parts)
    index = np.array(data.draw(st.lists(st.integers(0, len(ids) - 1), max_size=40)), dtype=np.int64)
    assert same_rows(written.rows(ids[index]), every.take(index))
    base = written.base_results(ids[index])
    assert np.array_equal(base.loss_nats, every.base_loss[index].astype(np.float64))
    num_right = [sum(int(byte).bit_count() for byte in bits) for bits in every.base_correct[index]]
    assert base.num_wrong.tolist() == (np.maximum(every.length[index] - 1, 0) - np.array(num_right, int)).tolist()
    assert written.damage() == []


def test_a_whole_corpus_is_read_at_once(written: Corpus, parts: list[SampleRows]) -> None:
    for _ in range(2):
        assert same_rows(written.rows(ids_of(parts)), concatenated(parts))


def test_no_ids_give_no_rows(written: Corpus, parts: list[SampleRows]) -> None:
    none = np.empty(0, dtype=np.int64)
    assert same_rows(written.rows(none), parts[0].take(none))
    assert len(written.base_results(none).loss_nats) == 0


@pytest.mark.parametrize(
    "sample_id", [len(SIZES) << 32, SIZES[0], (1 << 32) + 1, -1, -(1 << 32), -(len(SIZES) << 32), -(1 << 63), 2**63 - 1]
)
def test_ids_of_another_corpus_are_no_rows(tmp_path: Path, sample_id: int) -> None:
    write_corpus(tmp_path / "rows", [random_rows(size) for size in SIZES])
    with pytest.raises(IndexError):
        Corpus(tmp_path / "rows").rows(np.array([0, sample_id]))


def test_segments_of_other_fields_are_no_corpus(tmp_path: Path) -> None:
    write_corpus(tmp_path / "rows", [random_rows(5), random_rows(5, topk=1)])
    with pytest.raises(CorpusError, match=r"1 segments, such as segments/00000001\.arrow, have other fields"):
        Corpus(tmp_path / "rows")


NAMES = list(random_rows(1).columns())


@pytest.mark.parametrize(
    "change",
    [
        {"record": {}},
        {"record": None},
        {"record": "<i4"},
        {"record": {"names": ["length"], "formats": ["<i4"], "offsets": [0], "itemsize": 4}},
        {"record": {"names": NAMES, "formats": ["<i4"] * 5, "offsets": [0] * 5, "itemsize": 3}},
        {"record": {"names": NAMES, "formats": ["<i4"] * 5, "offsets": [-1] * 5, "itemsize": 8}},
        {"record": {"names": NAMES, "formats": ["O"] * 5, "offsets": [0, 8, 16, 24, 32], "itemsize": 40}},
        {"rows_at": 10**9},
        {"rows_at": -1},
        {"num_rows": 10**9},
        {"num_bytes": 1},
    ],
)
def test_a_manifest_that_contradicts_itself_is_no_corpus(tmp_path: Path, change: dict[str, object]) -> None:
    write_corpus(tmp_path / "rows", [random_rows(5)])
    path = tmp_path / "rows/manifest.json"
    content = json.loads(path.read_text())
    for segments in ([], [content["segments"][0] | change]):
        path.write_text(json.dumps({**content, "segments": segments}))
        with pytest.raises(CorpusError, match="the manifest is damaged"):
            Corpus(tmp_path / "rows")


def test_a_type_that_numpy_does_not_know_is_no_field(tmp_path: Path) -> None:
    write_corpus(tmp_path / "rows", [random_rows(5)])
    path = tmp_path / "rows/manifest.json"
    path.write_text(path.read_text().replace("<f4", "loss"))
    with pytest.raises(CorpusError, match="the manifest is damaged"):
        Corpus(tmp_path / "rows")


def every_address(corpus: Corpus) -> list[int]:
    return [n << 32 | row for n, segment in enumerate(corpus.manifest.segments) for row in range(segment.num_rows)]


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
        corpus.base_results(corpus.partition.locate(np.full(n, k), np.arange(n))).loss_nats.mean()
        for k, n in enumerate(sizes)
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
