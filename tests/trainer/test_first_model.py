"""Jobs whose model is not the one that scored the corpus."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from replay_service.corpus.format.manifest import read_manifest, write_manifest
from replay_service.language.checkpoint import checkpoint_fingerprint
from replay_service.language.model import load_model
from replay_service.language.tokenizer import load_tokenizer
from replay_trainer.corpus_info import CorpusInfo
from replay_trainer.first_model import warn_if_tuned_before
from replay_trainer.job.ray_train import preflight
from tests.support import running_service
from tests.trainer.worlds import a_job, corpus_for


@pytest.fixture(scope="module")
def tuned(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Path:
    """The model, after a job has changed its weights."""
    folder = tmp_path_factory.mktemp("tuned")
    model = load_model(str(tiny_model))
    for each in model.parameters():
        each.data.add_(0.01)
    model.save_pretrained(folder)
    load_tokenizer(str(tiny_model)).save_pretrained(folder)
    return folder


def corpus(scored_by: Path | None, topk: int = 0) -> CorpusInfo:
    found = "" if scored_by is None else checkpoint_fingerprint(str(scored_by))
    return CorpusInfo("wiki", "", 0, 12, "float32", 1, topk, 9, checkpoint_fingerprint=found)


def told(folder: Path, model: Path, info: CorpusInfo, **changes: Any) -> list[str]:
    with capture_logs() as logs:
        warn_if_tuned_before(a_job(folder, model, "http://unused", **changes), info)
    return [each["event"] for each in logs]


DISTILL = {"rehearsal_loss": "distill"}


def test_a_later_stage_that_learns_from_its_own_model_is_told(tmp_path: Path, tiny_model: Path, tuned: Path) -> None:
    said = ["teacher_is_not_the_first_model"]
    assert told(tmp_path, tuned, corpus(tiny_model), rehearsal=DISTILL) == said
    assert told(tmp_path, tuned, corpus(tiny_model, topk=8), rehearsal={**DISTILL, "teacher": "base"}) == said
    assert told(tmp_path, tuned, corpus(tiny_model, topk=8), rehearsal=DISTILL, chunked_head=True) == said


def test_who_learns_from_the_model_that_scored_the_corpus_is_told_nothing(
    tmp_path: Path, tiny_model: Path, tuned: Path
) -> None:
    assert told(tmp_path, tuned, corpus(tiny_model, topk=8), rehearsal=DISTILL) == []
    assert told(tmp_path, tiny_model, corpus(tiny_model), rehearsal=DISTILL) == []
    assert told(tmp_path, tuned, corpus(tiny_model)) == []


def test_a_job_is_told_before_it_begins_by_what_the_service_says_of_the_corpus(
    tmp_path: Path, tiny_model: Path, tuned: Path
) -> None:
    corpus_for(tiny_model, tmp_path)
    folder = tmp_path / "corpora" / "wiki"
    scored_by = checkpoint_fingerprint(str(tiny_model))
    write_manifest(folder, replace(read_manifest(folder), checkpoint_fingerprint=scored_by))
    with running_service(tmp_path) as (url, _):
        for model, said in ((tiny_model, []), (tuned, ["teacher_is_not_the_first_model"])):
            with capture_logs() as logs:
                preflight(a_job(tmp_path / model.name, model, url, run=f"by-{len(said)}", rehearsal=DISTILL))
            assert [each["event"] for each in logs] == said


def test_nothing_is_said_where_it_is_not_known_which_weights_scored_the_corpus(tmp_path: Path, tuned: Path) -> None:
    assert told(tmp_path, tuned, corpus(None), rehearsal=DISTILL) == []
    gone = replace(corpus(tuned), checkpoint_fingerprint="0123456789abcdef")
    assert told(tmp_path, tmp_path / "not-there", gone, rehearsal=DISTILL) == []
