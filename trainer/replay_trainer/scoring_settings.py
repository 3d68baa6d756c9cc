"""Settings of the scoring of a fine-tuning set."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from replay_service.language.packing import MIN_LENGTH, Bos
from replay_service.language.precision import Precision
from replay_service.sampling.bounds import check_bounds
from replay_trainer.errors import InvalidTraining


@dataclass(frozen=True, slots=True)
class ScoringSettings:
    """The scoring of a fine-tuning set: rows, model, arithmetic.

    Raises:
        InvalidTraining: names what is out of range.
    """

    source: Path = field(metadata={"description": "A .parquet, .jsonl or .jsonl.gz file, or a folder of them."})
    output: Path = field(metadata={"description": "Parquet file to write; one that is there is replaced."})
    model: str = field(metadata={"description": "The base model: a local folder or a Hugging Face hub name."})
    response_column: str = field(
        default="text", metadata={"description": "Column that holds the response, whose tokens count."}
    )
    prompt_column: str | None = field(
        default=None,
        metadata={
            "description": "Column that holds the prompt, whose tokens do not count. Without a prompt the first token "
            "of the text does not count, since nothing comes before it."
        },
    )
    seq_len: int = field(
        default=512,
        metadata={"description": "Most tokens of a row; a longer row is cut at the right.", "ge": MIN_LENGTH},
    )
    precision: Precision | Literal["auto"] = field(
        default="auto",
        metadata={"description": "Arithmetic of the scoring. `auto`: bfloat16 where this machine is faster in it."},
    )
    batch_size: int = field(default=8, metadata={"description": "Rows that the base model scores at once.", "ge": 1})
    bos: Bos = field(
        default="auto",
        metadata={
            "description": "Begin rows with the tokenizer's bos token. `auto`: if the tokenizer puts it before a text."
        },
    )

    def __post_init__(self) -> None:
        try:
            check_bounds(self)
        except ValueError as error:
            raise InvalidTraining(str(error)) from None

    def columns(self) -> list[str]:
        return [name for name in (self.prompt_column, self.response_column) if name is not None]
