from dataclasses import replace
from pathlib import Path

import pytest

from replay_service.corpus.ingest.settings import IngestJob, IngestSettings, digest
from replay_service.corpus.shards.documents import Columns
from replay_service.errors import CorpusError

SETTINGS = IngestSettings("/data", Path("/corpora"), "wiki", "tiny")
BY_LANGUAGE = Columns(group="language")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("name", "../up"),
        ("name", ""),
        ("seq_len", 1),
        ("num_quantiles", 0),
        ("num_clusters", -1),
        ("batch_size", 0),
        ("num_scorers", 0),
        ("topk", -1),
        ("topk", 65),
        ("rows_per_segment", 0),
        ("gpus_per_scorer", 0.0),
        ("gpus_per_scorer", -1.0),
        ("gpus_per_scorer", 1.5),
        ("gpus_per_scorer", 9.0),
        ("gpus_per_scorer", float("nan")),
    ],
)
def test_a_setting_out_of_range_is_refused_with_its_value(name: str, value: object) -> None:
    with pytest.raises(CorpusError, match=f"{name}.*{value}|cannot name a corpus"):
        replace(SETTINGS, **{name: value})  # type: ignore[arg-type]


@pytest.mark.parametrize("value", [0.25, 1.0, 2.0, 8.0])
def test_a_scorer_takes_part_of_a_gpu_or_whole_ones(value: float) -> None:
    assert replace(SETTINGS, gpus_per_scorer=value).gpus_per_scorer == value


def test_texts_to_classify_have_no_bos_of_their_own() -> None:
    labelled = replace(SETTINGS, kind="classification", columns=Columns(label="label"))
    with pytest.raises(CorpusError, match="leave bos out"):
        replace(labelled, bos="never")


def test_a_job_keeps_its_settings_on_the_way_to_its_process() -> None:
    job = IngestJob(replace(SETTINGS, bos="always", columns=BY_LANGUAGE), 2.0)
    assert IngestJob.from_json(job.to_json()) == job


def test_clusters_and_a_column_of_groups_do_not_go_together() -> None:
    with pytest.raises(CorpusError, match="do not go together"):
        replace(SETTINGS, num_clusters=8, columns=BY_LANGUAGE)


def test_a_corpus_is_partitioned_by_one_thing() -> None:
    assert SETTINGS.partition_by == "domain"
    assert replace(SETTINGS, num_clusters=8).partition_by == "cluster"
    assert replace(SETTINGS, columns=BY_LANGUAGE).partition_by == "column language"


def test_the_source_which_may_hold_secrets_is_not_printed() -> None:
    assert "swordfish" not in repr(replace(SETTINGS, source="s3://me:swordfish@bucket/data"))


@pytest.mark.parametrize(
    "change",
    [
        {"model": "large"},
        {"seq_len": 256},
        {"columns": BY_LANGUAGE},
        {"columns": Columns(text="body")},
        {"num_quantiles": 4},
        {"num_clusters": 8},
        {"precision": "bf16"},
        {"topk": 4},
        {"rows_per_segment": 100},
    ],
)
def test_what_changes_rows_or_strata_changes_the_recipe(change: dict[str, object]) -> None:
    assert replace(SETTINGS, **change).recipe("f") != SETTINGS.recipe("f")  # type: ignore[arg-type]


def test_another_tokenizer_changes_the_recipe() -> None:
    assert SETTINGS.recipe("f") != SETTINGS.recipe("g")


@pytest.mark.parametrize(
    "change",
    [
        {"source": "s3://elsewhere/data"},
        {"folder": Path("/mnt/corpora")},
        {"name": "other"},
        {"batch_size": 64},
        {"num_scorers": 8},
        {"gpus_per_scorer": 0.5},
    ],
)
def test_what_only_says_where_and_how_fast_does_not_change_the_recipe(change: dict[str, object]) -> None:
    assert replace(SETTINGS, **change).recipe("f") == SETTINGS.recipe("f")  # type: ignore[arg-type]


def test_a_digest_tells_words_apart() -> None:
    assert len({digest("ab", "c"), digest("a", "bc"), digest("abc"), digest("abc", ""), digest()}) == 5
    assert digest("é", "\udcff") == digest("é", "\udcff")
