from dataclasses import replace
from pathlib import Path

import pytest

from replay_service.corpus.format.manifest import read_manifest, write_manifest
from replay_service.language.packing import Ends
from replay_service.language.tokenizer import load_tokenizer
from replay_trainer.errors import TrainerError
from replay_trainer.job.feed import document_ends
from replay_trainer.job.ray_train import preflight
from tests.support import make_tiny_model, running_service
from tests.trainer.worlds import a_job, corpus_for


def test_documents_have_the_tokens_around_them_that_the_corpus_records(tmp_path: Path, tiny_model: Path) -> None:
    corpus_for(tiny_model, tmp_path)
    folder = tmp_path / "corpora" / "wiki"
    write_manifest(folder, replace(read_manifest(folder), separator_id=7, bos_id=9))
    with running_service(tmp_path) as (url, _):
        job = a_job(tmp_path / "job", tiny_model, url)
        preflight(job)
        assert document_ends(job, load_tokenizer(job.model)) == Ends(7, 9)
        for bos, said in (("never", "begin with the bos token 9, but data.bos is 'never'"), ("always", "no bos token")):
            data = job.data.model_copy(update={"bos": bos})
            with pytest.raises(TrainerError, match=said):
                preflight(job.model_copy(update={"data": data}))


def test_without_rehearsal_they_are_those_of_the_tokenizer(tmp_path: Path) -> None:
    job = a_job(tmp_path / "job", make_tiny_model(tmp_path / "begun", bos=True), None)
    tokenizer = load_tokenizer(job.model)
    assert document_ends(job, tokenizer) == Ends(0, 1)
    never = job.model_copy(update={"data": job.data.model_copy(update={"bos": "never"})})
    assert document_ends(never, tokenizer) == Ends(0)
