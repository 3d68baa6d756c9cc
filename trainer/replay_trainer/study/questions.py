"""Multiple-choice questions: what a model knows, beyond the loss of text.

Shapes: Q questions, C choices of all questions one after the other, T tokens.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.json
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray

from replay_service.language.precision import Precision
from replay_service.language.tokenizer import bos_id
from replay_trainer.batches.target import TrainingRows
from replay_trainer.config import DataConfig
from replay_trainer.errors import InvalidTraining
from replay_trainer.study.measuring import score

BoolArray = NDArray[np.bool_]
Float64Array = NDArray[np.float64]

_READERS: Final[dict[str, Callable[[Path], pa.Table]]] = {".parquet": pq.read_table, ".jsonl": pyarrow.json.read_json}
_ONE_TASK: Final = "all"
_CHOICES_AT_ONCE: Final = 256
"""They are padded to the longest of them."""


@dataclass(frozen=True, slots=True)
class Question:
    """One question; `answer` is the place of the right choice."""

    prompt: str
    choices: tuple[str, ...]
    answer: int
    task: str

    @classmethod
    def of(cls, row: Mapping[str, Any]) -> "Question":
        """From a row of a table; raises ValueError, which says what is wrong."""
        prompt, choices, answer, task = (row.get(name) for name in ("prompt", "choices", "answer", "task"))
        if not isinstance(prompt, str) or not prompt:
            raise ValueError("prompt is no text")
        if not isinstance(choices, list) or len(choices) < 2:
            raise ValueError("choices are no list of two texts or more")
        if not all(isinstance(each, str) and each for each in choices):
            raise ValueError("a choice is no text, or an empty one")
        if not isinstance(answer, int) or not 0 <= answer < len(choices):
            raise ValueError(f"answer is {answer!r}, not the place of one of {len(choices)} choices, from 0 on")
        if task is not None and not isinstance(task, str):
            raise ValueError(f"task is {task!r}, and no text")
        return cls(prompt, tuple(choices), answer, task or _ONE_TASK)


def question_files(source: Path) -> list[Path]:
    """The file, or the files of the folder, that hold questions; raises InvalidTraining where there are none."""
    files = sorted(each for each in source.glob("*") if each.suffix in _READERS) if source.is_dir() else [source]
    if not all(each.is_file() and each.suffix in _READERS for each in files) or not files:
        raise InvalidTraining(
            f"study.choices: {source} is no .parquet or .jsonl file, and no folder of such files; name one with the "
            "columns prompt, choices and answer"
        )
    return files


def read_questions(source: Path) -> tuple[Question, ...]:
    """The questions of a file, or of the files of a folder: Parquet, or JSON lines named `.jsonl`.

    Their columns are `prompt`, `choices` (two texts or more), `answer` (the place of the right one, from 0 on), and if
    wanted `task` (a name by which questions are reported).

    Raises:
        InvalidTraining: when they cannot be read, or one of them is not valid.
    """
    found = tuple(each for file in question_files(source) for each in _questions(file))
    if not found:
        raise InvalidTraining(f"study.choices: {source} holds no questions")
    return found


def _questions(file: Path) -> Iterator[Question]:
    try:
        table = _READERS[file.suffix](file)
    except (pa.ArrowException, OSError) as error:
        raise InvalidTraining(f"study.choices: {file} cannot be read: {error}") from error
    for number, row in enumerate(table.to_pylist()):
        try:
            yield Question.of(row)
        except ValueError as error:
            raise InvalidTraining(
                f"study.choices: question {number} of {file}: {error}; its columns are prompt (text), choices (list of "
                "texts), answer (integer) and, if wanted, task (text)"
            ) from error


@dataclass(frozen=True, slots=True)
class Encoded:
    """Questions as rows of tokens, one for each choice.

    Attributes:
        rows: [C, T]; predictions of a choice's tokens weigh 1, the others 0.
        num_bytes: int64 [C], of the text of each choice.
        first: int64 [Q], the place of each question's first choice.
        answer: int64 [Q], the place of the right choice among its own.
        tasks: [Q].
    """

    rows: TrainingRows
    num_bytes: NDArray[np.int64]
    first: NDArray[np.int64]
    answer: NDArray[np.int64]
    tasks: tuple[str, ...]


def encoded(questions: tuple[Question, ...], tokenizer: Any, data: DataConfig) -> Encoded:
    """Prompt and choice are encoded apart, behind the token that begins a document, if the model has one.

    A prompt that does not fit into `data.seq_len` tokens loses its beginning.

    Raises:
        InvalidTraining: when a choice does not fit, or has no token.
    """
    begin = [each for each in (bos_id(tokenizer, data.bos),) if each is not None]
    ids, num_of_choice = list[list[int]](), list[int]()
    for question in questions:
        prompt = [*begin, *_ids(tokenizer, question.prompt)]
        for choice in question.choices:
            own = _ids(tokenizer, choice)
            if not 0 < len(own) < data.seq_len:
                raise InvalidTraining(
                    f"study.choices: the choice {choice[:40]!r} has {len(own)} tokens, and 1 to {data.seq_len - 1} fit "
                    "behind a token of its prompt; raise data.seq_len, or leave the question out"
                )
            ids.append([*prompt[-(data.seq_len - len(own)) :], *own])
            num_of_choice.append(len(own))
    length = np.array([len(each) for each in ids], dtype=np.int32)
    input_ids = np.zeros((len(ids), int(length.max())), dtype=np.uint32)
    weight = np.zeros(input_ids.shape, dtype=np.float32)
    for place, (own, num) in enumerate(zip(ids, num_of_choice, strict=True)):
        input_ids[place, : len(own)] = own
        weight[place, len(own) - num : len(own)] = 1
    num_choices = np.array([len(each.choices) for each in questions])
    return Encoded(
        rows=TrainingRows(input_ids, length, weight),
        num_bytes=np.array([len(choice.encode()) for each in questions for choice in each.choices]),
        first=np.cumsum(num_choices) - num_choices,
        answer=np.array([each.answer for each in questions]),
        tasks=tuple(each.task for each in questions),
    )


def _ids(tokenizer: Any, text: str) -> list[int]:
    found: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    return found


def choice_scores(model: Any, questions: Encoded, precision: Precision, device: torch.device) -> Float64Array:
    """The log-probability of each choice after its prompt, divided by the bytes of the choice; nats, float64 [C].

    By the byte, so that long choices are not at a disadvantage.
    """
    rows, nats = questions.rows, np.empty(len(questions.rows))
    by_length = np.argsort(rows.length, kind="stable")
    for first in range(0, len(rows), _CHOICES_AT_ONCE):
        places = by_length[first : first + _CHOICES_AT_ONCE]
        some = rows.take(places)
        assert some.weight is not None
        longest = int(some.length.max())
        short = TrainingRows(some.input_ids[:, :longest], some.length, some.weight[:, :longest])
        nats[places] = score(model, short, precision, device).nats
    scores: Float64Array = -nats / questions.num_bytes
    return scores


def right_answers(model: Any, questions: Encoded, precision: Precision, device: torch.device) -> BoolArray:
    """Which questions a model answers right, bool [Q].

    Its answer is the choice of the greatest score, of equal ones the first.
    """
    scores = choice_scores(model, questions, precision, device)
    answers = np.array([each.argmax() for each in np.split(scores, questions.first[1:])])
    is_right: BoolArray = answers == questions.answer
    return is_right
