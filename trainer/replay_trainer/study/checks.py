"""Whether a study can be carried out, found out before any work."""

import json
from typing import Any

from replay_service.corpus.shards.sources import Columns, check_readable, find_shards
from replay_service.errors import ReplayError
from replay_service.language.model import faster_precision, outline_of
from replay_service.language.precision import Precision
from replay_service.language.tokenizer import ends_of
from replay_trainer.client import ReplayClient, RetryPolicy
from replay_trainer.config import DataConfig, TrainConfig
from replay_trainer.corpus_info import CorpusInfo
from replay_trainer.errors import CorpusMismatch, InvalidTraining
from replay_trainer.job.adapters import check_peft
from replay_trainer.job.ray_train import check_corpus
from replay_trainer.study.cells import Cell, Study
from replay_trainer.study.inputs import inputs_of
from replay_trainer.study.outcomes import write_whole
from replay_trainer.study.questions import encoded, read_questions

STUDY_FILE = "study.json"

_NEED_STRATA = ("stratified", "mix_cd", "permuted_mix_cd")


def check_study(study: Study, retry: RetryPolicy | None = None) -> Precision:
    """Find what is wrong with a study; the precision that all of its cells are trained and measured in.

    Args:
        study: to look at.
        retry: how long to wait for the service.

    Raises:
        InvalidTraining: when the folder is another study's, or the model, a text or the questions cannot be used or are
            others than when the folder was begun.
        CorpusMismatch: when an arm cannot rehearse its corpus.
        ServiceError: when the service cannot be reached, or has no such corpus.
    """
    check_folder(study)
    first = study.cells[0]
    try:
        tokenizer = outline_of(first.job.model, first.data.seq_len).tokenizer
        ends_of(tokenizer, first.data.bos)
        _check_text(study)
        if study.choices is not None:
            encoded(read_questions(study.choices), tokenizer, first.data)
        _check_inputs(study)
    except ReplayError as error:
        raise InvalidTraining(error.detail) from error
    known: dict[tuple[str | tuple[str, ...], str], CorpusInfo] = {}
    for arm, job in {cell.arm: cell.job for cell in study.cells}.items():
        if job.lora is not None:
            check_peft()
        if job.rehearsal is not None:
            place = (job.rehearsal.service_url, job.rehearsal.corpus)
            if place not in known:
                with ReplayClient(place[0], retry=retry or RetryPolicy()) as client:
                    known[place] = client.corpus(place[1])
            _check_arm(arm, job, tokenizer, known[place])
    return _precision(first, list(known.values()))


def check_folder(study: Study) -> None:
    """A folder takes more arms, targets and seeds; raises InvalidTraining when one of its own is another now."""
    known = _read_folder(study)["cells"]
    for cell in study.cells:
        if known.get(cell.title, cell.name) != cell.name:
            raise InvalidTraining(
                f"{study.folder} holds the results of another study: {cell.title} has another job there; give this "
                "study another `output`, rename the arm, or put its configuration back as it was"
            )


def _check_inputs(study: Study) -> None:
    before, now = _read_folder(study)["inputs"], inputs_of(study)
    changed = [name for name, fingerprint in now.items() if before.get(name, fingerprint) != fingerprint]
    if changed:
        raise InvalidTraining(
            f"{study.folder} holds the results of another study: {', '.join(changed)} changed since, so that its cells "
            "could not be compared; give this study another `output`, or put back what was there"
        )


def write_folder(study: Study) -> None:
    """Mark the folder as this study's: its cells beside those that were there before, and what they are measured on."""
    before = _read_folder(study)
    study.folder.mkdir(parents=True, exist_ok=True)
    said = {
        "inputs": before["inputs"] | inputs_of(study),
        "cells": before["cells"] | {cell.title: cell.name for cell in study.cells},
        "jobs": before["jobs"] | {cell.name: cell.job.model_dump(mode="json") for cell in study.cells},
    }
    write_whole(study.folder / STUDY_FILE, json.dumps(said, indent=1))


def _read_folder(study: Study) -> dict[str, dict[str, Any]]:
    path, empty = study.folder / STUDY_FILE, dict[str, dict[str, Any]](inputs={}, cells={}, jobs={})
    if not path.exists():
        return empty
    said: dict[str, dict[str, Any]] = json.loads(path.read_text())
    if said.keys() != empty.keys():
        raise InvalidTraining(f"{study.folder} holds a study of an earlier release; give this one another `output`")
    return said


def _check_text(study: Study) -> None:
    for source, columns in {each: None for cell in study.cells for each in _sources(cell.data)}:
        for shard in find_shards(source):
            check_readable(shard, columns)


def _sources(data: DataConfig) -> list[tuple[str, Columns]]:
    """The shards of a target, with the columns that they need; examples are looked at where they are loaded."""
    assert data.heldout_pretraining is not None and data.heldout_target is not None
    heldout = (data.heldout_pretraining, Columns(data.text_column, data.tokens_column, data.domain_column))
    if data.response_column is not None:
        return [heldout]
    columns = Columns(data.text_column, data.tokens_column)
    return [heldout, (data.target, columns), (data.heldout_target, columns)]


def _check_arm(arm: str, job: TrainConfig, tokenizer: object, info: CorpusInfo) -> None:
    try:
        check_corpus(job, tokenizer, info)
    except CorpusMismatch as error:
        raise CorpusMismatch(f"arm {arm!r}: {error}") from error
    policy = job.run_settings()["policy"]
    if info.num_strata == 1 and policy in _NEED_STRATA:
        raise CorpusMismatch(
            f"arm {arm!r}: policy {policy} chooses between strata, and corpus {info.corpus!r} has only "
            "one; ingest it with a domain column or with more than one quantile, or take the policy uniform"
        )


def _precision(first: Cell, corpora: list[CorpusInfo]) -> Precision:
    if first.job.precision != "corpus":
        return first.job.precision
    stated = {each.precision for each in corpora}
    if len(stated) > 1:
        raise CorpusMismatch(
            "the corpora of this study were scored in different precisions, so their base losses cannot be compared; "
            'write precision = "float32" or "bf16" into the job'
        )
    if not stated:
        return faster_precision()
    return "bf16" if stated == {"bf16"} else "float32"
