"""A word of warning where a teacher is not the model that scored the corpus, as it happens in a sequence of jobs."""

import structlog

from replay_service.language.checkpoint import checkpoint_fingerprint
from replay_trainer.config import TrainConfig
from replay_trainer.corpus_info import CorpusInfo

_log = structlog.get_logger()


def warn_if_tuned_before(config: TrainConfig, corpus: CorpusInfo) -> None:
    """Say so where rehearsed rows learn from a model that has other weights than the one that scored the corpus.

    The teacher `base` is the model that the job begins with. Where an earlier job has tuned it, it has forgotten
    something already, and would teach that. Base losses and stored tokens are always of the model that scored the
    corpus.
    """
    if not corpus.checkpoint_fingerprint or not _learns_from_its_own_model(config, corpus):
        return
    found = checkpoint_fingerprint(config.model)
    if found and found != corpus.checkpoint_fingerprint:
        _log.warning(
            "teacher_is_not_the_first_model",
            model=config.model,
            corpus=corpus.corpus,
            hint="the model has other weights than the one that scored the corpus, and rehearsed rows learn from it: "
            "what it has forgotten already stays forgotten; to learn from the model that scored the corpus, ingest "
            "with --store-topk 8, and leave teacher and chunked_head out",
        )


def _learns_from_its_own_model(config: TrainConfig, corpus: CorpusInfo) -> bool:
    if config.rehearsal is not None and config.rehearsal.teacher == "auto":
        config = config.with_teacher(stores_topk=bool(corpus.topk))
    return config.rehearsal is not None and config.rehearsal.needs_base_model
