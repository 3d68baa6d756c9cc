"""What all cells of a study are measured on: they are comparable only as long as that stays the same."""

import hashlib
import json
from collections.abc import Iterable

from replay_service.corpus.shards.sources import find_shards, fingerprint_of
from replay_service.language.checkpoint import checkpoint_fingerprint
from replay_trainer.study.cells import Study
from replay_trainer.study.questions import question_files
from replay_trainer.study.settings import OF_A_TARGET


def inputs_of(study: Study) -> dict[str, str]:
    """The base model, the texts, the questions and how they are measured, each with a fingerprint of its content.

    Raises:
        UnusableSource: when a text cannot be read.
        InvalidTraining: when the questions are not there.
    """
    first = study.cells[0]
    assert first.data.heldout_pretraining is not None
    how = first.data.model_dump(mode="json", exclude={*OF_A_TARGET, "heldout_pretraining"}, exclude_defaults=True)
    named = {"model": first.job.model, "precision": first.job.precision, "heldout_rows": study.settings.heldout_rows}
    found = {
        "[data], model, precision or heldout_rows": _hash([json.dumps(how | named, sort_keys=True)]),
        "the held-out text of pretraining": _text(first.data.heldout_pretraining),
        "the questions": "" if study.choices is None else _hash(_contents(study)),
    }
    weights = checkpoint_fingerprint(first.job.model)
    if weights:  # they are there, and not still to be fetched
        found["the base model's weights"] = weights
    for target, data in {cell.target: cell.data for cell in study.cells}.items():
        assert data.heldout_target is not None
        found[f"the text of target {target!r}"] = _text(data.target)
        found[f"the held-out text of target {target!r}"] = _text(data.heldout_target)
    return found


def _text(source: str) -> str:
    return _hash(fingerprint_of(shard) for shard in find_shards(source))


def _contents(study: Study) -> Iterable[str]:
    assert study.choices is not None
    return (hashlib.sha256(file.read_bytes()).hexdigest() for file in question_files(study.choices))


def _hash(parts: Iterable[str]) -> str:
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]
