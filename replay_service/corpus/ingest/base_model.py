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
from replay_service.errors import EmptyCorpus
from replay_service.language.model import check_seq_len, load_config
from replay_service.language.tokenizer import fingerprint, load_tokenizer, rules_of, separator_id

_ANY_ID: Final = 1 << 31
"""How many token ids there may be where nobody tells."""


@dataclass(frozen=True, slots=True)
class BaseModel:
    """What the base model takes, and how to tell it from others."""

    tokenizer_fingerprint: str
    """Empty where no text is tokenized."""
    separator_id: int
    vocab_size: int
    seq_len: int
    """0 for tensors."""
    classes: Classes | None = None
    tokenizer_rules: str = ""
    """As they stand in a tokenizer.json."""

    @property
    def identity(self) -> str:
        """Equal for base models, and inputs of them, whose samples may stand in one corpus."""
        if self.classes is None:
            return self.tokenizer_fingerprint
        shape = "x".join(map(str, self.classes.input_shape))
        return f"{self.tokenizer_fingerprint} {self.classes.model_fingerprint} {self.classes.input_type}[{shape}]"


def base_model_of(settings: IngestSettings, standing: Manifest | None, shards: Iterable[Shard]) -> BaseModel:
    """The base model of an ingest.

    Tensors are of the shape and type that stand in the corpus, or that the first usable row of the shards has.

    Raises:
        CorpusError: when the model cannot be used; EmptyCorpus when no row can.
        UnusableSource: when a shard that must be looked into cannot be read.
    """
    if settings.kind == "language":
        check_seq_len(load_config(settings.model), settings.seq_len)
        tokenizer = load_tokenizer(settings.model)
        ids = fingerprint(tokenizer), separator_id(tokenizer), len(tokenizer)
        return BaseModel(*ids, settings.seq_len, tokenizer_rules=rules_of(tokenizer))
    if settings.columns.inputs is None:
        return _of_texts(settings)
    if standing is not None and standing.classes is not None:
        shape, type_ = standing.classes.input_shape, standing.classes.input_type
    else:
        first = _first_tensor(settings, shards)
        shape, type_ = list(first.shape), first.dtype.name
    num_classes, weights = _described(settings.model, tuple(shape))
    return BaseModel("", 0, 0, 0, Classes(num_classes, weights, shape, type_))


def _of_texts(settings: IngestSettings) -> BaseModel:
    num_classes, weights = _described(settings.model, None)
    if is_factory(settings.model):
        return BaseModel("", 0, _ANY_ID, settings.seq_len, Classes(num_classes, weights))
    check_seq_len(load_config(settings.model), settings.seq_len)
    tokenizer = load_tokenizer(settings.model)
    ids, classes = (fingerprint(tokenizer), 0, len(tokenizer)), Classes(num_classes, weights)
    return BaseModel(*ids, settings.seq_len, classes, rules_of(tokenizer))


def _first_tensor(settings: IngestSettings, shards: Iterable[Shard]) -> NDArray[Any]:
    for shard in shards:
        for each in read_documents(shard, settings.columns):
            if isinstance(each, Labelled) and isinstance(each.content, np.ndarray):
                return each.content
    raise EmptyCorpus(f"no row of the shards has numbers in the column {settings.columns.inputs!r}, and a label")


@lru_cache(maxsize=1)
def _described(name: str, shape: tuple[int, ...] | None) -> tuple[int, str]:
    """How many classes a model knows, and the fingerprint of its weights; it is loaded once for all looks at shards."""
    from replay_service.classification.scoring import described

    return described(name, shape)
