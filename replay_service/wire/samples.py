"""The fields of a sample: the one table that batches, segment files and JSON follow."""

from collections.abc import Mapping
from dataclasses import MISSING, dataclass
from typing import Annotated, Any, Final, Literal, Self

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from replay_service.wire.columns import (
    Column,
    columns_of,
    is_ids,
    is_nested_float16,
    is_nested_ids,
    is_tensor,
    wide_binary,
    wide_list,
)

Kind = Literal["language", "classification"]
"""What the samples of a corpus are: tokens, of which each is predicted from those before it; or a text or a tensor with
a label, of which the label is predicted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SampleColumns:
    """Samples of a corpus, an array a field, each with one row a sample.

    Attributes:
        input_ids: [n, seq_len], the narrowest unsigned type; padding beyond `length` means nothing. [n, 0] where there
            are `inputs`, which are no text.
        length: int32 [n], real tokens, or 1 where there are `inputs`; 0 for a sample that could not be read, whose
            other fields are 0 too.
        base_loss: float32 [n], nats per prediction.
        base_correct: uint8 [n, ceil(seq_len / 8)], packed bits, least significant first: bit t says that the base
            model's argmax predicted token t; bit 0 is never set. With a label uint8 [n, 1]: bit 0 says that it
            predicted the label.
        stratum: int32 [n].
        topk_ids: [n, seq_len - 1, k], the narrowest unsigned type: the base model's k likeliest tokens for each
            prediction, if they were stored.
        topk_logprobs: float16, the same shape: their log-probabilities, nats.
        inputs: [n, ...], numbers of any type: the input of a model that classifies, if it is no text.
        label: int32 [n], the class of each sample, in a classification corpus.
    """

    input_ids: Annotated[NDArray[np.unsignedinteger], Column(is_ids, wide_list)]
    length: Annotated[NDArray[np.int32], Column(pa.types.is_int32)]
    base_loss: Annotated[NDArray[np.float32], Column(pa.types.is_float32)]
    base_correct: Annotated[NDArray[np.uint8], Column(pa.types.is_fixed_size_binary, wide_binary)]
    stratum: Annotated[NDArray[np.int32], Column(pa.types.is_int32)]
    topk_ids: Annotated[NDArray[np.unsignedinteger] | None, Column(is_nested_ids, wide_list)] = None
    topk_logprobs: Annotated[NDArray[np.float16] | None, Column(is_nested_float16, wide_list)] = None
    inputs: Annotated[NDArray[Any] | None, Column(is_tensor, wide_list)] = None
    label: Annotated[NDArray[np.int32] | None, Column(pa.types.is_int32)] = None

    @classmethod
    def of(cls, columns: Mapping[str, Any], **more: Any) -> Self:
        """The samples of columns by name; `input_ids` may be missing where there are `inputs`."""
        if "input_ids" not in columns:
            columns = {**columns, "input_ids": np.empty((len(columns["length"]), 0), dtype=np.uint8)}
        return cls(**columns, **more)

    def __len__(self) -> int:
        return len(self.length)

    def columns(self) -> dict[str, NDArray[Any]]:
        """The arrays that there are, by name; `input_ids` only where the samples are text."""
        arrays = {name: getattr(self, name) for name in self.column_names()}
        left_out = None if self.inputs is None else "input_ids"
        return {name: each for name, each in arrays.items() if each is not None and name != left_out}

    @classmethod
    def column_names(cls) -> tuple[str, ...]:
        """The names of all columns, in their order."""
        return SAMPLE_FIELDS


SAMPLE_FIELDS: Final = tuple(columns_of(SampleColumns))

REQUIRED_FIELDS: Final = tuple(
    name for name in SAMPLE_FIELDS if SampleColumns.__dataclass_fields__[name].default is MISSING
)
"""The columns that every batch has, but for `input_ids`, which only text has."""
