"""A word of warning where cross-entropy probably teaches text that the model was never trained on."""

from typing import Any, Final

import structlog

from replay_trainer.corpus_info import CorpusInfo

_MOST_UNEXPECTED: Final = 0.05
"""Share of the base losses. On the text of the demo, which its instruct model was not trained on last, it is 13 %."""

_log = structlog.get_logger()


def warn_if_proxy(tokenizer: Any, rehearsal_loss: str, corpus: CorpusInfo) -> None:
    """Say so where a model learns a corpus with cross-entropy that is probably no text of its own training.

    Such text is a proxy for what must not be forgotten. Cross-entropy fits the proxy, which shows as forgetting below
    zero; the divergence from the base model does not.

    On text of its training a model's loss is what it expects: the entropy of its predictions. The ingest compares both.
    Where it did not, a chat template is taken as a sign of an instruct model. Both are rules of thumb: a model may
    be overconfident for other reasons, and some base models have a chat template.

    Args:
        tokenizer: of the library transformers; None where it is not known.
        rehearsal_loss: of the job.
        corpus: to rehearse from.
    """
    if rehearsal_loss == "distill" or corpus.kind != "language":
        return
    sign = _sign(tokenizer, corpus.share_unexpected)
    if sign is not None:
        _log.warning(
            "rehearsal_fits_proxy",
            corpus=corpus.corpus,
            rehearsal_loss=rehearsal_loss,
            hint=f"{sign}; cross-entropy would teach it that text rather than to stay as it was; set "
            'recipe = "recommended" or rehearsal_loss = "distill", which learn from the base model',
        )


def _sign(tokenizer: Any, share_unexpected: float | None) -> str | None:
    if share_unexpected is None:
        if not getattr(tokenizer, "chat_template", None):
            return None
        return "the tokenizer has a chat template, so this is probably an instruct model, and not trained on the corpus"
    if share_unexpected <= _MOST_UNEXPECTED:
        return None
    return (
        f"the base model did not expect {share_unexpected:.0%} of its loss on the corpus, so this is probably not text "
        "that it was trained on last"
    )
