"""Samples to classify: what of a row may stand in a corpus, and tables of it."""

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from replay_service.corpus.format.manifest import Classes
from replay_service.corpus.shards.documents import Labelled, SetAside, set_aside
from replay_service.language.packing import id_dtype
from replay_service.language.pieces import cut_place
from replay_service.wire.columns import wide_list

NO_CLASS: Final = "the label is no class of the base model"
OTHER_SHAPE: Final = "the inputs are of another shape or type than the corpus"
OTHER_TOKENS: Final = "the token ids are beyond the vocabulary"


def judged(sample: Labelled, classes: Classes, vocab_size: int) -> Labelled | SetAside:
    """The sample with its tensor in the corpus's type, or why it cannot stand in the corpus."""
    if not 0 <= sample.label < classes.num_classes:
        return set_aside(sample.row, NO_CLASS, f"{sample.label}, of {classes.num_classes} classes")
    content = sample.content
    if isinstance(content, str):
        return sample
    if not classes.input_shape:
        return sample if content.max() < vocab_size else set_aside(sample.row, OTHER_TOKENS, int(content.max()))
    tensor = _cast(content, np.dtype(classes.input_type))
    if tensor is None or list(tensor.shape) != classes.input_shape:
        return set_aside(sample.row, OTHER_SHAPE, f"{content.dtype}{list(content.shape)}")
    return sample._replace(content=tensor)


def _cast(numbers: NDArray[Any], dtype: np.dtype[Any]) -> NDArray[Any] | None:
    """None where whole numbers would not stay the same, or fractions would have to become whole."""
    if numbers.dtype.kind == "f" and dtype.kind != "f":
        return None
    cast = numbers.astype(dtype)
    is_same = (dtype.kind == "f" and bool(np.isfinite(cast).all())) or np.array_equal(cast, numbers)
    return cast if is_same else None


def labelled_table(samples: Sequence[Labelled], tokenizer: Any, seq_len: int, vocab_size: int) -> pa.Table:
    """A row a sample: domain, group, label, length, and `inputs` or `input_ids`.

    Args:
        samples: one at least.
        tokenizer: for texts, which get its special tokens and are cut at the right to `seq_len` tokens.
        seq_len: width of `input_ids`; 0 for tensors.
        vocab_size: token ids lie below it.
    """
    if seq_len:
        content, length = _padded(_ids_of(samples, tokenizer, seq_len), seq_len, vocab_size)
    else:
        content, length = np.stack([each.content for each in samples]), np.ones(len(samples), dtype=np.int32)
    return pa.table(
        {
            "domain": pa.array([each.domain for each in samples], pa.string()),
            "group": pa.array([each.group for each in samples], pa.string()),
            "input_ids" if seq_len else "inputs": wide_list(content),
            "length": length,
            "label": pa.array([each.label for each in samples], pa.int32()),
        }
    )


def _ids_of(samples: Sequence[Labelled], tokenizer: Any, seq_len: int) -> list[Any]:
    contents = [each.content for each in samples]
    if not isinstance(contents[0], str):
        return [each[:seq_len] for each in contents]
    contents = [each[: cut_place(str(each))] for each in contents]  # what lies beyond would be cut off anyway
    found: list[Any] = tokenizer(contents, truncation=True, max_length=seq_len)["input_ids"]
    return found


def _padded(ids: list[Any], seq_len: int, vocab_size: int) -> tuple[NDArray[Any], NDArray[np.int32]]:
    rows = np.zeros((len(ids), seq_len), dtype=id_dtype(vocab_size))
    for row, each in zip(rows, ids, strict=True):
        row[: len(each)] = each
    # A text of which a tokenizer leaves nothing is one token of padding: length 0 says that it could not be read.
    return rows, np.array([max(1, len(each)) for each in ids], dtype=np.int32)
