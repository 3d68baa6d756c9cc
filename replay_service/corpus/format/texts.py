"""Texts: what the token ids of a corpus say, by the tokenizer that lies in its folder."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from replay_service.errors import CorpusError

TOKENIZER_FILE: Final = "tokenizer.json"
"""Beside the manifest: the rules of the corpus's tokenizer, as the library `tokenizers` writes them down."""


class Texts:
    """Reads token ids of one corpus.

    Raises:
        CorpusError: when the rules are damaged, or the library `tokenizers` is not there.
    """

    def __init__(self, rules: bytes) -> None:
        try:
            from tokenizers import Tokenizer
        except ImportError:
            raise CorpusError("to read texts, install tokenizers: pip install 'replay-service[text]'") from None
        try:
            self._tokenizer: Any = Tokenizer.from_buffer(rules)
        except ValueError as error:
            raise CorpusError(f"the corpus's {TOKENIZER_FILE} is damaged: {error}; put it back") from error

    def of(self, input_ids: NDArray[np.unsignedinteger], length: Sequence[int] | NDArray[np.int32]) -> list[str]:
        """The text of each row of `input_ids` ([n, seq_len]) up to its length, special tokens included."""
        ids = [row[:num].tolist() for row, num in zip(input_ids, length, strict=True)]
        texts: list[str] = self._tokenizer.decode_batch(ids, skip_special_tokens=False)
        return texts


def write_tokenizer(corpus: Path, rules: str) -> None:
    """Put a tokenizer into the folder of a corpus, whole or not at all."""
    path = corpus / TOKENIZER_FILE
    if not path.is_file() or path.read_text(encoding="utf-8") != rules:
        temporary = path.with_name(f".{path.name}.{os.getpid()}")
        temporary.write_text(rules, encoding="utf-8")
        temporary.replace(path)


def no_tokenizer(corpus: str) -> CorpusError:
    return CorpusError(
        f"corpus {corpus!r} has no {TOKENIZER_FILE}, so its samples cannot be shown as text; it gets one when text is "
        "ingested"
    )
