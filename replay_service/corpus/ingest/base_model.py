"""What an ingest must know of the base model before any sample is scored, of either kind."""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from replay_service.classification.factory import is_factory
from replay_service.corpus.format.manifest import Classes, Manifest
from replay_service.corpus.ingest.settings import IngestSettings
from replay_service.corpus.shards.documents import Labelled
from replay_service.corpus.shards.sources import Shard, read_documents
from replay_service.errors import CorpusError, EmptyCorpus
from replay_service.language.checkpoint import checkpoint_fingerprint
from replay_service.language.model import check_seq_len, load_config, outline_of
from replay_service.language.packing import Ends
from replay_service.language.tokenizer import bos_id, ends_of, fingerprint, load_tokenizer, rules_of, vocab_size

_ANY_ID: Final = 1 << 31
"""How many token ids there may be where nobody tells."""

_NO_ENDS: Final = Ends(0)
"""Of what is not packed."""


@dataclass(frozen=True, slots=True)
class BaseModel:
    """What the base model takes, and how to tell it from others."""

    tokenizer_fingerprint: str
    """Empty where no text is tokenized."""
    ends: Ends
    vocab_size: int
    seq_len: int
    """0 for tensors."""
    classes: Classes | None = None
    tokenizer_rules: str = ""
    """As they stand in a tokenizer.json."""
    num_logits: int = 0
    """Width of the head of a language model."""
    checkpoint: str = ""
    """The fingerprint of a language model's weights and configuration; empty where it is not known."""

    @property
    def identity(self) -> str:
        """Equal for base models, and inputs of them, whose samples may stand in one corpus."""
        if self.classes is None:
            bos = "" if self.ends.bos_id is None else f" bos {self.ends.bos_id}"
            return self.tokenizer_fingerprint + bos
        shape = "x".join(map(str, self.classes.input_shape))
        return f"{self.tokenizer_fingerprint} {self.classes.model_fingerprint} {self.classes.input_type}[{shape}]"


def base_model_of(settings: IngestSettings, standing: Manifest | None, shards: Iterable[Shard]) -> BaseModel:
    """The base model of an ingest.

    Documents have the tokens around them that they have in the corpus. Tensors are of the shape and type that stand in
    the corpus, or that the first usable row of the shards has.

    Raises:
        CorpusError: when the model cannot be used; EmptyCorpus when no row can.
        UnusableSource: when a shard that must be looked into cannot be read.
    """
    if settings.kind == "language":
        return _of_language(settings, standing)
    if settings.columns.inputs is None:
        return _of_texts(settings)
    if standing is not None and standing.classes is not None:
        shape, type_ = standing.classes.input_shape, standing.classes.input_type
    else:
        first = _first_tensor(settings, shards)
        shape, type_ = list(first.shape), first.dtype.name
    num_classes, weights = _described(settings.model, tuple(shape))
    return BaseModel("", _NO_ENDS, 0, 0, Classes(num_classes, weights, shape, type_))


def _of_language(settings: IngestSettings, standing: Manifest | None) -> BaseModel:
    outline = outline_of(settings.model, settings.seq_len)
    if settings.topk > outline.num_logits:
        raise CorpusError(f"topk {settings.topk} is more than the {outline.num_logits} tokens that the model predicts")
    return BaseModel(
        fingerprint(outline.tokenizer),
        _ends(settings, standing, outline.tokenizer),
        outline.vocab_size,
        settings.seq_len,
        tokenizer_rules=rules_of(outline.tokenizer),
        num_logits=outline.num_logits,
        checkpoint=checkpoint_fingerprint(settings.model),
    )


def _ends(settings: IngestSettings, standing: Manifest | None, tokenizer: Any) -> Ends:
    """Those of the corpus, whatever the tokenizer has now, but for a bos that is asked for."""
    if standing is None:
        return ends_of(tokenizer, settings.bos)
    bos = standing.bos_id if settings.bos == "auto" else bos_id(tokenizer, settings.bos)
    return Ends(standing.separator_id, bos)


def _of_texts(settings: IngestSettings) -> BaseModel:
    is_made = is_factory(settings.model)
    if not is_made:
        check_seq_len(load_config(settings.model), settings.seq_len)
    classes = Classes(*_described(settings.model, None, settings.seq_len))
    if is_made:
        return BaseModel("", _NO_ENDS, _ANY_ID, settings.seq_len, classes)
    tokenizer = load_tokenizer(settings.model)
    return BaseModel(
        fingerprint(tokenizer), _NO_ENDS, vocab_size(tokenizer), settings.seq_len, classes, rules_of(tokenizer)
    )


def _first_tensor(settings: IngestSettings, shards: Iterable[Shard]) -> NDArray[Any]:
    for shard in shards:
        for each in read_documents(shard, settings.columns):
            if isinstance(each, Labelled) and isinstance(each.content, np.ndarray):
                return each.content
    raise EmptyCorpus(f"no row of the shards has numbers in the column {settings.columns.inputs!r}, and a label")


@lru_cache(maxsize=1)
def _described(name: str, shape: tuple[int, ...] | None, seq_len: int = 1) -> tuple[int, str]:
    """How many classes a model knows, and the fingerprint of its weights; it is loaded once for all looks at shards."""
    from replay_service.classification.scoring import described

    return described(name, shape, seq_len)
