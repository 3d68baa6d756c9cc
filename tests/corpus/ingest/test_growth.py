"""Growth through real staging: random rows, in shards that come in any order and in any parts, killed anywhere."""

from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from replay_service.corpus.format.manifest import MANIFEST_NAME, Manifest, read_manifest
from replay_service.corpus.format.records import SampleRows
from replay_service.corpus.reading.reader import Corpus
from tests.corpus.ingest.staged_shards import NOTHING, Ingest, Shards, contents, made, shards_of
from tests.corpus.killing import killed_after

some_shards = st.builds(
    lambda sizes, set_aside, seed: shards_of(*sizes, set_aside=set_aside, seed=seed),
    st.lists(st.sampled_from([0, 1, 3, 8, 20]), min_size=1, max_size=5).filter(any),
    st.lists(st.integers(0, 2), max_size=5),
    st.integers(0, 3),
)


@given(some_shards, st.integers(1, 25), st.data())
@settings(max_examples=40, deadline=None)
def test_where_a_row_stands_depends_on_the_order_of_the_shards_alone(
    shards: Shards, rows_per_segment: int, data: st.DataObject
) -> None:
    with TemporaryDirectory() as one, TemporaryDirectory() as other:
        manifest, files = made(Path(one), shards, rows_per_segment)
        whole = Corpus(Path(one))
        ingest = Ingest(Path(other), shards, rows_per_segment)
        events: list[tuple[str, int, int]] = []
        for key, rows in shards.rows.items():
            inner = data.draw(st.lists(st.integers(0, len(rows)), max_size=3, unique=True), label=f"cuts of {key}")
            bounds = sorted({0, *inner, len(rows)})
            overlap = data.draw(st.integers(0, 2), label="rows that are scored twice")
            events += [(key, max(0, a - overlap), b) for a, b in pairwise(bounds)]
            events.append((key, -1, -1))
        for key, first, stop in data.draw(st.permutations(events), label="order"):
            if data.draw(st.integers(0, 5), label="kill now") == 5:
                ingest = Ingest(Path(other), shards, rows_per_segment)
            if key in ingest.finished:
                continue
            ingest.pack(key) if first < 0 else ingest.stage(key, first, stop)
            if data.draw(st.booleans(), label="grow now") and ingest.grow():
                standing = read_manifest(Path(other))
                assert standing == ingest.growing.manifest
                assert standing.groups == manifest.groups[: len(standing.groups)]
                assert standing.segments == manifest.segments[: len(standing.segments)]
                for generation in range(1, standing.generation + 1):
                    assert Corpus(Path(other)).partition_of(generation) == whole.partition_of(generation)
        assert ingest.finish() == manifest
        assert contents(Path(other)) == files
        assert read_manifest(Path(other)) == manifest


@given(some_shards, st.integers(3, 25), st.lists(st.integers(0, 120), min_size=1, max_size=6))
@settings(max_examples=40, deadline=None)
def test_an_ingest_that_is_killed_at_any_file_operation_goes_on_where_it_was(
    shards: Shards, rows_per_segment: int, kills: list[int]
) -> None:
    with TemporaryDirectory() as one, TemporaryDirectory() as other:
        manifest, files = made(Path(one), shards, rows_per_segment)
        for num_operations in kills:
            ingest = Ingest(Path(other), shards, rows_per_segment)
            with killed_after(num_operations):
                ingest.finish()
        ingest = Ingest(Path(other), shards, rows_per_segment)
        assert ingest.finish() == manifest
        assert contents(Path(other)) == files


@given(some_shards, st.integers(1, 25))
@settings(max_examples=30, deadline=None)
def test_the_manifest_adds_up_and_every_row_is_there_once(shards: Shards, rows_per_segment: int) -> None:
    with TemporaryDirectory() as folder:
        manifest, _ = made(Path(folder), shards, rows_per_segment)
        num_segments = -(-shards.num_rows // rows_per_segment)
        assert [each.generation for each in manifest.segments] == list(range(1, num_segments + 1))
        assert manifest.generation == num_segments
        assert [each.num_rows for each in manifest.segments[:-1]] == [rows_per_segment] * (num_segments - 1)
        assert (manifest.num_shards, manifest.num_rows_of_next_shard) == (len(shards.rows), 0)
        assert manifest.num_samples == sum(each.num_samples for each in manifest.domains) == shards.num_rows
        assert manifest.num_documents == 2 * shards.num_rows + len(shards.rows)
        assert manifest.num_set_aside == sum(shards.num_set_aside.values())
        corpus, names = Corpus(Path(folder)), ("base_loss", "length")
        line = shards.line(names)
        for number, segment in enumerate(manifest.segments):
            rows = corpus.rows((number << 32) + np.arange(segment.num_rows))
            there = list(zip(rows.base_loss.tolist(), rows.length.tolist(), strict=True))
            first = number * rows_per_segment
            assert sorted(there) == sorted(line[first : first + rows_per_segment])
            assert (np.diff(rows.stratum) >= 0).all()


def edges_of(manifest: Manifest) -> dict[str, list[float]]:
    return {each.name: each.edges_nats for each in manifest.groups}


def test_strata_are_what_they_were_when_their_group_came(tmp_path: Path) -> None:
    shards = shards_of(40, 30, 30, 30, 30)
    ingest = Ingest(tmp_path, shards, 40)
    seen: dict[str, list[float]] = {}
    for key, rows in shards.rows.items():
        ingest.stage(key, 0, len(rows))
        ingest.pack(key)
        ingest.grow()
        assert edges_of(ingest.growing.manifest).items() >= seen.items()
        seen = edges_of(ingest.growing.manifest)
    manifest = ingest.finish()
    assert edges_of(manifest).items() >= seen.items()
    assert [each.name for each in manifest.groups] == ["code", "web", "books", "art"]
    assert [each.generation for each in manifest.groups] == [1, 1, 2, 4]
    corpus = Corpus(tmp_path)
    for number, segment in enumerate(manifest.segments):
        rows = corpus.rows((number << 32) + np.arange(segment.num_rows))
        for group, summary in enumerate(manifest.groups):
            mine = rows.base_loss[rows.stratum // 2 == group], rows.stratum[rows.stratum // 2 == group] % 2
            assert ((mine[0] > summary.edges_nats[0]) == mine[1]).all()


def test_partitions_of_earlier_generations_stay_as_they_were(tmp_path: Path) -> None:
    shards = shards_of(25, 0, 25, 25)
    ingest = Ingest(tmp_path, shards, 10)
    seen = []
    for key, rows in shards.rows.items():
        ingest.stage(key, 0, len(rows))
        ingest.pack(key)
        if ingest.grow():
            corpus = Corpus(tmp_path)
            seen.append((corpus.generation, corpus.partition, ingest.growing.manifest.num_samples))
    ingest.finish()
    assert [generation for generation, _, _ in seen] == [2, 5, 7]
    for generation, partition, num_samples in seen:
        assert Corpus(tmp_path).partition_of(generation) == partition
        assert partition.num_samples == num_samples == 10 * generation


def test_a_shard_of_many_segments_grows_the_corpus_before_it_is_read_to_its_end(tmp_path: Path) -> None:
    ingest = Ingest(tmp_path, shards_of(100), 8)
    ingest.stage("shard-0", 0, 50)
    assert ingest.grow()
    manifest = ingest.growing.manifest
    assert (manifest.generation, manifest.num_shards, manifest.num_rows_of_next_shard) == (6, 0, 48)
    assert (manifest.num_documents, manifest.num_samples) == (0, 48)
    assert not ingest.grow()
    assert ingest.finish().num_samples == 100


def test_too_few_rows_make_no_generation_until_no_more_come(tmp_path: Path) -> None:
    ingest = Ingest(tmp_path, shards_of(5), 8)
    ingest.stage("shard-0", 0, 5)
    ingest.pack("shard-0")
    assert not ingest.grow()
    assert not (tmp_path / MANIFEST_NAME).exists()
    assert ingest.grow(is_all=True)
    assert read_manifest(tmp_path).num_samples == 5


def test_nothing_at_all_makes_no_corpus(tmp_path: Path) -> None:
    ingest = Ingest(tmp_path, shards_of(0, 0, set_aside=[2, 1]), 8)
    assert ingest.finish().generation == 0
    assert not (tmp_path / MANIFEST_NAME).exists()


def test_empty_shards_count_with_the_rows_around_them(tmp_path: Path) -> None:
    shards = shards_of(0, 8, 0, 0, 8, 0, set_aside=[1, 0, 2, 0, 0, 3])
    manifest, files = made(tmp_path, shards, 8)
    assert (manifest.generation, manifest.num_shards, manifest.set_aside) == (2, 6, {"blank": 6})
    assert [name for name in files if name.startswith("set_aside")] == [
        f"set_aside/shard-{number}.jsonl" for number in (0, 2, 5)
    ]


def test_of_finished_shards_only_what_was_set_aside_is_kept(tmp_path: Path) -> None:
    shards = shards_of(8, 12, set_aside=[2, 1])
    ingest = Ingest(tmp_path, shards, 8)
    for key in shards.rows:
        ingest.stage(key, 0, 8)
        ingest.pack(key)
    ingest.grow()
    assert [path.name for path in (tmp_path / "staging").iterdir()] == ["shard-1"]
    assert (tmp_path / "set_aside/shard-0.jsonl").read_text() == "rows of shard-0\n" * 2
    assert not (tmp_path / "set_aside/shard-1.jsonl").exists()
    assert ingest.growing.manifest.set_aside == {"blank": 2}
    ingest.finish()
    assert list((tmp_path / "staging").iterdir()) == []
    assert read_manifest(tmp_path).set_aside == {"blank": 3}


def test_more_shards_bring_more_generations_of_the_same_corpus(tmp_path: Path) -> None:
    more = shards_of(13, 7, 12, 9)
    few = Shards({key: more.rows[key] for key in ("shard-0", "shard-1")}, more.num_set_aside)
    first = Ingest(tmp_path, few, 10).finish()
    second = Ingest(tmp_path, more, 10).finish()
    assert (first.generation, first.num_samples) == (2, 20)
    assert (second.generation, second.num_samples) == (5, 41)
    assert second.segments[:2] == first.segments
    assert second.groups[: len(first.groups)] == first.groups
    assert Corpus(tmp_path).partition_of(2) == Corpus(tmp_path, first).partition


@pytest.mark.parametrize("topk", [0, 1, 3])
def test_every_column_of_a_sample_comes_through(tmp_path: Path, topk: int) -> None:
    shards = shards_of(9, 4, topk=topk)
    ingest = Ingest(tmp_path, shards, 5)
    ingest.growing.manifest = replace(NOTHING, topk=topk)
    ingest.finish()
    corpus = Corpus(tmp_path)
    rows = corpus.rows(
        np.concatenate([(n << 32) + np.arange(s.num_rows) for n, s in enumerate(corpus.manifest.segments)])
    )
    staged = pa.concat_tables(shards.rows.values()).drop_columns(["row", "domain", "group"]).combine_chunks()
    (batch,) = staged.append_column("stratum", pa.array(np.zeros(13, dtype=np.int32))).to_batches()
    expected = SampleRows.from_arrow(batch)
    assert (rows.topk_ids is None) == (topk == 0)
    mine, theirs = np.argsort(rows.base_loss), np.argsort(expected.base_loss)
    for name, column in rows.columns().items():
        if name != "stratum":
            assert column.dtype == expected.columns()[name].dtype
            assert np.array_equal(column[mine], expected.columns()[name][theirs]), name
