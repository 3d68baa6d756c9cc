"""Tokenizers: loading one, telling two apart, and the tokens that begin and end a document."""

import hashlib
import json
from collections.abc import Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from replay_service.errors import CorpusError
from replay_service.language.packing import Bos, Ends
from replay_service.language.pieces import encode_in_pieces
from replay_service.language.pretrained import check_has_tokenizer, loading

_SEPARATORS: Final = ("<|endoftext|>", "<|end_of_text|>", "</s>")
"""The usual end-of-text tokens, for a tokenizer that declares no eos."""

_BETWEEN_DOCUMENTS: Final = ("<|endoftext|>", "<|end_of_text|>")
"""Special tokens that pretraining puts between documents. The eos of a chat model ends a turn of a chat instead."""


_MOST_ADDED: Final = 8
"""Special tokens that fine-tuning adds, at most."""


def load_tokenizer(name_or_path: str) -> Any:
    """The tokenizer of a model, from a local folder or by its hub name.

    Raises:
        CorpusError: when there is none, or it is not one of the fast kind.
    """
    from transformers import AutoTokenizer

    with loading("tokenizer", name_or_path):
        check_has_tokenizer(name_or_path)
        try:
            tokenizer = AutoTokenizer.from_pretrained(name_or_path)
        except Exception as error:
            if type(error) is Exception:  # so the Rust library says that it cannot read a tokenizer.json
                raise CorpusError(_unreadable(name_or_path, error)) from error
            raise
    if not tokenizer.is_fast:
        raise CorpusError(f"the tokenizer of {name_or_path!r} has no fast (Rust) form, which is needed here")
    return tokenizer


def _unreadable(name: str, error: Exception) -> str:
    return (
        f"the tokenizer.json of {name!r} is damaged or of a newer version of the library tokenizers ({error}); "
        "update tokenizers and transformers, or fetch the file again"
    )


def fingerprint(tokenizer: Any) -> str:
    """Equal for tokenizers that give equal ids: a hash of vocabulary, merges and normalisation, 16 hex digits."""
    return _digest(rules_of(tokenizer))


def _digest(rules: str) -> str:
    return hashlib.sha256(rules.encode()).hexdigest()[:16]


def is_known_as(tokenizer: Any, known: str) -> bool:
    """Whether a tokenizer gives the ids that the one with the fingerprint `known` gives.

    It may have further special tokens at its end, as fine-tuning adds one for padding: they stand for no text.
    """
    rules = json.loads(rules_of(tokenizer))
    for _ in range(_MOST_ADDED + 1):
        if _digest(json.dumps(rules, sort_keys=True)) == known:
            return True
        if not rules["added_tokens"] or not rules["added_tokens"].pop()["special"]:
            return False
    return False


def rules_of(tokenizer: Any) -> str:
    """Vocabulary, merges and normalisation in the form of a tokenizer.json, without what differs from call to call."""
    rules = json.loads(tokenizer.backend_tokenizer.to_str())
    for runtime in ("truncation", "padding"):
        rules.pop(runtime, None)
    return json.dumps(rules, sort_keys=True)


def ends_of(tokenizer: Any, bos: Bos = "auto") -> Ends:
    """The tokens to put around documents; raises CorpusError as `separator_id` and `bos_id` do."""
    return Ends(separator_id(tokenizer), bos_id(tokenizer, bos))


def separator_id(tokenizer: Any) -> int:
    """The token that ends a document.

    A special token that pretraining puts between documents, else the eos that the tokenizer declares, else the usual
    end-of-text token.

    Raises:
        CorpusError: when there is neither.
    """
    vocabulary = tokenizer.get_vocab()
    for token in _BETWEEN_DOCUMENTS:
        if token in vocabulary and _is_special(tokenizer, vocabulary[token]):
            return int(vocabulary[token])
    if tokenizer.eos_token_id is not None:
        return int(tokenizer.eos_token_id)
    for token in _SEPARATORS:
        if token in vocabulary:
            return int(vocabulary[token])
    raise CorpusError(
        "the tokenizer has neither an eos nor an end-of-text token to end documents with; set eos_token in its "
        "tokenizer_config.json"
    )


def _is_special(tokenizer: Any, token_id: int) -> bool:
    """Whether no text gives a token."""
    added = getattr(tokenizer, "added_tokens_decoder", {}).get(token_id)
    return token_id in tokenizer.all_special_ids or (added is not None and added.special)


def bos_id(tokenizer: Any, bos: Bos) -> int | None:
    """The token that begins a document, or None.

    Raises:
        CorpusError: when `bos` is `always` and the tokenizer has no bos token.
    """
    found = tokenizer.bos_token_id
    if bos == "never" or (bos == "auto" and (found is None or not _adds(tokenizer, found))):
        return None
    if found is None:
        raise CorpusError(
            "the tokenizer has no bos token to begin documents with; set bos_token in its tokenizer_config.json, or "
            "leave bos out"
        )
    return int(found)


def _adds(tokenizer: Any, bos: int) -> bool:
    """Whether the tokenizer itself puts this token before a text."""
    ids = tokenizer("a")["input_ids"]
    return bool(ids) and ids[0] == bos


def vocab_size(tokenizer: Any) -> int:
    """One more than the largest token id: ids may have gaps, so it can be more than the number of tokens."""
    return int(max(tokenizer.get_vocab().values())) + 1


def largest_id(tokenizer: Any) -> int:
    """The largest id that a text or the tokens around it can have; special tokens never stand for text here."""
    special = {id_ for id_, token in tokenizer.added_tokens_decoder.items() if token.special}
    around = {tokenizer.bos_token_id, tokenizer.eos_token_id} - {None}
    return int(max({*tokenizer.get_vocab().values()} - special | around))


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
    tokenizer: Any,
    documents: Sequence[str | NDArray[np.int64]],
    num_ids: int | None = None,
    goes_on: Sequence[bool] | None = None,
) -> list[Sequence[int] | NDArray[np.int64]]:
    """Token ids of each document: texts are encoded, ready-made ids are taken as they are.

    Args:
        tokenizer: a fast one.
        documents: texts, and int64 ids of one token at least.
        num_ids: ready-made ids must lie below it; by default the size of the vocabulary.

    Raises:
        CorpusError: when a ready-made id is beyond that, so that another tokenizer has made it.
    """
    places = [place for place, each in enumerate(documents) if isinstance(each, str)]
    texts = [each for each in documents if isinstance(each, str)]
    encoded = iter(encode(tokenizer, texts, None if goes_on is None else [goes_on[place] for place in places]))
    if num_ids is None and len(texts) < len(documents):
        num_ids = vocab_size(tokenizer)
    return [next(encoded) if isinstance(each, str) else _known(each, num_ids or 0) for each in documents]


def _known(ids: NDArray[np.int64], limit: int) -> NDArray[np.int64]:
    if ids.max() >= limit:
        raise CorpusError(
            f"there is a ready-made token id {ids.max()}, but the model knows only {limit} tokens; take the model "
            "whose tokenizer made these ids"
        )
    return ids
