"""Tokenizers: loading one, telling two apart, and the token that ends a document."""

import hashlib
import json
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from replay_service.errors import CorpusError
from replay_service.language.pieces import encode_in_pieces

_SEPARATORS = ("<|endoftext|>", "<|end_of_text|>", "</s>")


def load_tokenizer(name_or_path: str) -> Any:
    """The tokenizer of a model, from a local folder or by its hub name.

    Raises:
        CorpusError: when there is none, or it is not one of the fast kind.
    """
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(name_or_path)
    except (OSError, ValueError) as error:
        raise CorpusError(f"no tokenizer could be loaded from {name_or_path!r}: {error}") from error
    if not tokenizer.is_fast:
        raise CorpusError(f"the tokenizer of {name_or_path!r} has no fast (Rust) form, which is needed here")
    return tokenizer


def fingerprint(tokenizer: Any) -> str:
    """Equal for tokenizers that give equal ids: a hash of vocabulary, merges and normalisation, 16 hex digits."""
    return hashlib.sha256(rules_of(tokenizer).encode()).hexdigest()[:16]


def rules_of(tokenizer: Any) -> str:
    """Vocabulary, merges and normalisation in the form of a tokenizer.json, without what differs from call to call."""
    rules = json.loads(tokenizer.backend_tokenizer.to_str())
    for runtime in ("truncation", "padding"):
        rules.pop(runtime, None)
    return json.dumps(rules, sort_keys=True)


def separator_id(tokenizer: Any) -> int:
    """The token that ends a document: the usual end-of-text token if the vocabulary has it, else the tokenizer's eos.

    Raises:
        CorpusError: when there is neither.
    """
    vocabulary = tokenizer.get_vocab()
    for token in _SEPARATORS:
        if token in vocabulary:
            return int(vocabulary[token])
    if tokenizer.eos_token_id is None:
        raise CorpusError("the tokenizer has neither an end-of-text nor an eos token to end documents with")
    return int(tokenizer.eos_token_id)


def encode(
    tokenizer: Any, texts: Sequence[str], goes_on: Sequence[bool] | None = None, most: int | None = None
) -> list[list[int]]:
    """Token ids of each text. Nothing is added, and text that spells a special token stays text.

    Long texts are encoded in pieces (`encode_in_pieces`, also for `goes_on` and `most`). It asks the tokenizer's Rust
    form: the Python around it would make columns that nobody looks at.
    """
    rust = tokenizer.backend_tokenizer
    rust.encode_special_tokens = True
    rust.no_truncation()
    rust.no_padding()

    def encode_batch(some: list[str]) -> list[list[int]]:
        return [encoding.ids for encoding in rust.encode_batch_fast(some, add_special_tokens=False)]

    return encode_in_pieces(encode_batch, texts, goes_on, most)


def ids_of(
    tokenizer: Any, documents: Sequence[str | NDArray[np.int64]], goes_on: Sequence[bool] | None = None
) -> list[Sequence[int] | NDArray[np.int64]]:
    """Token ids of each document: texts are encoded, ready-made ids are taken as they are.

    Raises:
        CorpusError: when a ready-made id is beyond the vocabulary, so that another tokenizer has made it.
    """
    places = [place for place, each in enumerate(documents) if isinstance(each, str)]
    texts = [each for each in documents if isinstance(each, str)]
    encoded = iter(encode(tokenizer, texts, None if goes_on is None else [goes_on[place] for place in places]))
    return [next(encoded) if isinstance(each, str) else _known(each, len(tokenizer)) for each in documents]


def _known(ids: NDArray[np.int64], vocab_size: int) -> NDArray[np.int64]:
    if ids.max() >= vocab_size:
        raise CorpusError(
            f"there is a ready-made token id {ids.max()}, but the tokenizer has only {vocab_size} tokens; take the "
            "model whose tokenizer made these ids"
        )
    return ids
