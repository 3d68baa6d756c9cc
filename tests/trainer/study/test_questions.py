"""Multiple-choice questions: how they are read, and how a model answers them."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from replay_service.language.model import load_model
from replay_service.language.tokenizer import load_tokenizer
from replay_trainer.config import DataConfig
from replay_trainer.errors import InvalidTraining
from replay_trainer.study.questions import Question, choice_scores, encoded, read_questions, right_answers

DOG = {"prompt": "the dog of number 3 saw", "choices": [" 9 birds", " a very long story", " x"], "answer": 0}
CAT = {"prompt": "the cat", "choices": [" sat", " the the the the the"], "answer": 1, "task": "cats"}


def write(path: Path, *rows: dict[str, Any]) -> Path:
    path.write_text("".join(json.dumps(each) + "\n" for each in rows))
    return path


def data_of(seq_len: int = 64) -> DataConfig:
    return DataConfig(target="text", seq_len=seq_len)


def test_questions_are_read_from_json_lines_parquet_and_folders_of_both(tmp_path: Path) -> None:
    (one,) = read_questions(write(tmp_path / "a.jsonl", DOG))
    assert one == Question("the dog of number 3 saw", (" 9 birds", " a very long story", " x"), 0, "all")
    pq.write_table(pa.Table.from_pylist([CAT]), tmp_path / "b.parquet")
    (tmp_path / "notes.txt").write_text("no questions")
    assert [each.task for each in read_questions(tmp_path)] == ["all", "cats"]


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"prompt": ""}, "prompt is no text"),
        ({"choices": [" 9 birds"]}, "choices are no list of two texts or more"),
        ({"choices": [" 9 birds", ""]}, "a choice is no text, or an empty one"),
        ({"answer": 3}, "answer is 3, not the place of one of 3 choices, from 0 on"),
        ({"answer": "0"}, "answer is '0'"),
        ({"task": 5}, "task is 5, and no text"),
    ],
)
def test_a_question_that_is_not_valid_is_named(tmp_path: Path, changed: dict[str, Any], said: str) -> None:
    with pytest.raises(InvalidTraining, match=f"question 0 of .*a.jsonl: {said}"):
        read_questions(write(tmp_path / "a.jsonl", {**DOG, **changed}))


@pytest.mark.parametrize("name", ["a.csv", "nothing.parquet", "."])
def test_what_is_no_table_of_questions_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "a.csv").write_text("prompt,choices,answer")
    with pytest.raises(InvalidTraining, match=r"is no \.parquet or \.jsonl file, and no folder of such files"):
        read_questions(tmp_path / name)


def test_a_file_that_is_damaged_or_empty_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.parquet").write_bytes(b"PAR1 and nothing")
    with pytest.raises(InvalidTraining, match=r"a\.parquet cannot be read"):
        read_questions(tmp_path / "a.parquet")
    pq.write_table(pa.table({"prompt": pa.array([], pa.string())}), tmp_path / "b.parquet")
    with pytest.raises(InvalidTraining, match="holds no questions"):
        read_questions(tmp_path / "b.parquet")


def test_a_choice_that_does_not_fit_is_refused(tiny_model: Path) -> None:
    with pytest.raises(InvalidTraining, match="tokens, and 1 to 3 fit behind a token of its prompt"):
        encoded((Question.of(DOG),), load_tokenizer(str(tiny_model)), data_of(seq_len=4))


def test_a_prompt_that_does_not_fit_loses_its_beginning(tiny_model: Path) -> None:
    tokenizer = load_tokenizer(str(tiny_model))
    whole, cut = (encoded((Question.of(CAT),), tokenizer, data_of(seq_len)) for seq_len in (64, 8))
    for place in range(2):
        ids, length = (each.rows.input_ids[place].tolist() for each in (whole, cut)), whole.rows.length[place]
        long, short = ids
        assert short[: cut.rows.length[place]] == long[max(0, length - 8) : length]


def test_a_choice_scores_its_log_probability_by_the_byte_and_the_best_one_is_the_answer(tiny_model: Path) -> None:
    """Each choice by itself, in float64 and without padding, is the reference."""
    questions = tuple(Question.of({**each, "answer": answer}) for each in (DOG, CAT) for answer in (0, 1))
    model, tokenizer = load_model(str(tiny_model)), load_tokenizer(str(tiny_model))
    asked, device = encoded(questions, tokenizer, data_of()), torch.device("cpu")
    scores, answers = (each(model, asked, "float32", device) for each in (choice_scores, right_answers))
    exact = load_model(str(tiny_model)).double()

    @torch.no_grad()
    def per_byte(prompt: str, choice: str) -> float:
        ids, own = (tokenizer(text, add_special_tokens=False)["input_ids"] for text in (prompt, choice))
        logits = exact(input_ids=torch.tensor([[*ids, *own]])).logits[0]
        logprobs = logits.log_softmax(dim=-1)[len(ids) - 1 : -1]
        return float(logprobs[torch.arange(len(own)), own].sum()) / len(choice.encode())

    wanted = [[per_byte(each.prompt, choice) for choice in each.choices] for each in questions]
    assert scores.tolist() == pytest.approx([each for some in wanted for each in some], rel=1e-5)
    best = [int(np.argmax(each)) for each in wanted]
    assert answers.tolist() == [answer == each.answer for answer, each in zip(best, questions, strict=True)]
