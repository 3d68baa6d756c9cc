"""Checks that a run and its corpus fit a loop: its batches, tokenizer, model and teacher."""

from collections.abc import Mapping
from typing import Any, Literal

from torch import nn

from replay_service.classification.model import fingerprint as model_fingerprint
from replay_service.language.tokenizer import is_known_as
from replay_service.sampling.injection import InjectionMode
from replay_trainer.corpus_info import CorpusInfo
from replay_trainer.errors import CorpusMismatch, InvalidTraining
from replay_trainer.methods.teacher import Teacher


def check_run(run: Mapping[str, Any], injection_mode: InjectionMode, global_batch_size: int | None) -> None:
    """Raises InvalidTraining when a run, as `ReplayClient.run` gives it, was made for other batches than the loop's.

    A loop that does not know its `global_batch_size` gives None.
    """
    name, config = run["run"], run["config"]
    if config["injection_mode"] != injection_mode:
        how = {
            "add": "rehearsed rows are added to a loader's batches",
            "replace": "the batches of this loop leave out rows for those that are rehearsed",
        }
        raise InvalidTraining(
            f"run {name!r} was made with injection_mode {config['injection_mode']!r}, but "
            f"{how[injection_mode]}; make a run with injection_mode {injection_mode!r}"
        )
    if global_batch_size not in (None, config["global_batch_size"]):
        raise InvalidTraining(
            f"run {name!r} was made with global_batch_size {config['global_batch_size']}, but a step of this "
            f"loop takes {global_batch_size} fine-tuning rows; make a run with that global_batch_size"
        )


def check_distilled(corpus: CorpusInfo, teacher: Teacher | Literal["stored"] | None) -> None:
    """Raises CorpusMismatch when rehearsed rows of a corpus cannot learn from this teacher."""
    if corpus.kind != "language" and teacher == "stored":
        raise CorpusMismatch(
            f"corpus {corpus.corpus!r} holds samples to classify, of which nothing is stored to learn from; give "
            "teacher=Teacher.of(model)"
        )
    if teacher == "stored" and not corpus.topk:
        raise CorpusMismatch(
            f"corpus {corpus.corpus!r} does not store the base model's likeliest tokens; give "
            "teacher=Teacher.of(model), or ingest it with --store-topk 8"
        )


def check_tokenizer(tokenizer: Any, corpus: CorpusInfo) -> None:
    """Raises CorpusMismatch when a tokenizer, None for an unknown one, is not that of a corpus."""
    if tokenizer is not None and not is_known_as(tokenizer, corpus.tokenizer_fingerprint):
        raise CorpusMismatch(
            f"the tokenizer is not the one that corpus {corpus.corpus!r} was made with; ingest the pretraining "
            "shards with this model, or tune the model that the corpus was made for"
        )


def check_vocabulary(model: Any, corpus: CorpusInfo) -> None:
    """Raises CorpusMismatch when a model lacks tokens of a corpus.

    Nothing is checked of a model whose inputs are no tokens, nor of a corpus that names no tokenizer.
    """
    embedding = model.get_input_embeddings() if hasattr(model, "get_input_embeddings") else None
    num_known = getattr(embedding, "num_embeddings", None)
    is_known = corpus.kind == "language" or bool(corpus.tokenizer_fingerprint)
    if num_known is not None and is_known and corpus.vocab_size > num_known:
        raise CorpusMismatch(
            f"corpus {corpus.corpus!r} has token ids up to {corpus.vocab_size - 1}, but the model knows only "
            f"{num_known} tokens; tune the model that the corpus was made for, or ingest the pretraining shards "
            "with this model"
        )


def check_classes(model: Any, corpus: CorpusInfo) -> None:
    """Raises CorpusMismatch when a model has fewer classes than a corpus.

    A model that does not say how many it has is checked later, by its first logits of rehearsed samples.
    """
    num_known = getattr(getattr(model, "config", None), "num_labels", None)
    if corpus.classes is not None and num_known is not None and num_known < corpus.classes["num_classes"]:
        raise CorpusMismatch(
            f"samples of corpus {corpus.corpus!r} are of {corpus.classes['num_classes']} classes, but the model has "
            f"{num_known}; keep the classes of the base model, and put new ones after them"
        )


def check_base_model(base_model: nn.Module | None, corpus: CorpusInfo) -> None:
    """Raises CorpusMismatch when another model has scored a corpus to classify, or the corpus is of language."""
    if base_model is None:
        return
    if corpus.classes is None:
        raise CorpusMismatch(
            f"corpus {corpus.corpus!r} is of language, which is told by its tokenizer; leave base_model out"
        )
    if model_fingerprint(base_model) != corpus.classes["model_fingerprint"]:
        raise CorpusMismatch(
            f"the base model has other weights than the one that scored corpus {corpus.corpus!r}; give the model "
            "as it is before fine-tuning, or ingest the samples with this one"
        )
