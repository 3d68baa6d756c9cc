"""Examples: rows of a table as tokens, of which a prompt's are read and a response's are learned.

Scoring and training make examples by this one code, so that a base loss is of the tokens that are trained on.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import pyarrow as pa

from replay_service.language.tokenizer import encode
from replay_trainer.batches.tables import Tables, texts_of
from replay_trainer.errors import InvalidTraining

_MEASURED: Final = b"base_loss"
"""Key of a table's metadata."""


@dataclass(frozen=True, slots=True)
class Example:
    """Tokens of one row of a table.

    Attributes:
        ids: prompt and response, tokenized apart, without special tokens but a bos token, if there is one.
        first: the tokens from here on are the response's; without a prompt and a bos token, those after the first one.
        truncated: whether there were more than fit.
    """

    ids: list[int]
    first: int
    truncated: bool

    @property
    def num_counted(self) -> int:
        """How many of its tokens count."""
        return max(0, len(self.ids) - self.first)


def examples_of(
    tokenizer: Any,
    batch: pa.RecordBatch,
    prompt_column: str | None,
    response_column: str,
    seq_len: int,
    bos_id: int | None = None,
) -> list[Example]:
    """The rows of a batch of a table, cut at the right to `seq_len` tokens; each begins with `bos_id`, if any."""
    before = [] if bos_id is None else [bos_id]
    prompts = _texts(batch, prompt_column) if prompt_column else [""] * len(batch)
    # Blank text says nothing, as in the shards of a corpus.
    responses = [text if text.strip() else "" for text in _texts(batch, response_column)]
    most = seq_len + 1
    pairs = zip(encode(tokenizer, prompts, most=most), encode(tokenizer, responses, most=most), strict=True)
    return [_joined(before + prompt, response, seq_len) for prompt, response in pairs]


def check_text_columns(tables: Tables, source: object, names: Sequence[str]) -> None:
    """Raises InvalidTraining when a table lacks one of these columns, or it holds no text."""
    for name in names:
        if tables.schema.names.count(name) != 1:
            raise InvalidTraining(f"{source} has no column {name!r}; its columns: {', '.join(tables.schema.names)}")
        if name in tables.as_json:
            raise InvalidTraining(f"column {name!r} of {source} holds values of several types, not text")
        kind = tables.schema.field(name).type
        if not _is_text(kind):
            raise InvalidTraining(
                f"column {name!r} of {source} holds {kind}, not text; chats (lists of messages) are written as strings "
                "first, with the model's tokenizer.apply_chat_template(messages, tokenize=False)"
            )


def scored_with(model: str, precision: str, seq_len: int, bos_id: int | None) -> dict[bytes, bytes]:
    """The metadata of a table about the base losses in it."""
    measured = {"model": model, "precision": precision, "seq_len": seq_len, "bos_id": bos_id}
    return {_MEASURED: json.dumps(measured).encode()}


def check_scored_with(schema: pa.Schema, bos_id: int | None, source: str) -> None:
    """Raises InvalidTraining when a table says that its base losses are of rows with another bos token, or without."""
    measured = json.loads((schema.metadata or {}).get(_MEASURED, b"null"))
    if measured is not None and measured.get("bos_id") != bos_id:
        raise InvalidTraining(
            f"the base losses in {source} are of rows that begin with {_named(measured.get('bos_id'))}, but the rows "
            f"of this job begin with {_named(bos_id)}; score it again with --bos "
            f"{'never' if bos_id is None else 'always'}"
        )


def _named(bos_id: int | None) -> str:
    return "no bos token" if bos_id is None else f"the bos token {bos_id}"


def _texts(batch: pa.RecordBatch, column: str) -> list[str]:
    return [text or "" for text in texts_of(batch.column(column))]


def _joined(prompt: list[int], response: list[int], seq_len: int) -> Example:
    """Of what is read, the bos token among it, and what is learned."""
    ids = prompt + response
    return Example(ids[:seq_len], max(1, len(prompt)), len(ids) > seq_len)


def _is_text(kind: pa.DataType) -> bool:
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    return any(is_kind(kind) for is_kind in (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view))
