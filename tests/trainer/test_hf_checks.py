"""Trainers whose batches or loss rehearsed rows cannot join: they are refused when they are made."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from torch import nn
from transformers import AutoModelForCausalLM, Trainer, TrainingArguments

from replay_service.testing import replay_service
from replay_trainer.client import ReplayClient
from replay_trainer.errors import InvalidTraining
from replay_trainer.hf import RehearsalMixin, RehearsalTrainer
from tests.trainer.hf_worlds import SEQ_LEN, a_run, arguments, dataset


@pytest.fixture(scope="module")
def client() -> Iterator[ReplayClient]:
    with replay_service(seq_len=SEQ_LEN, vocab_size=100) as service, service.client() as found:
        yield found


@pytest.fixture
def model(tiny_model: Path) -> nn.Module:
    found: nn.Module = AutoModelForCausalLM.from_pretrained(tiny_model)
    return found


def test_what_would_count_differently_is_refused(client: ReplayClient, model: nn.Module, tmp_path: Path) -> None:
    rehearsal = a_run(client, "refused")
    smoothed = arguments(tmp_path, label_smoothing_factor=0.1)
    with pytest.raises(InvalidTraining, match="label_smoothing_factor is set"):
        RehearsalTrainer(rehearsal=rehearsal, model=model, args=smoothed, train_dataset=dataset())
    with pytest.raises(InvalidTraining, match="compute_loss_func is set"):
        RehearsalTrainer(
            rehearsal=rehearsal, model=model, args=arguments(tmp_path), compute_loss_func=lambda *_, **__: None
        )
    named = arguments(tmp_path, label_names=["label"])
    with pytest.raises(InvalidTraining, match="label_names is"):
        RehearsalTrainer(rehearsal=rehearsal, model=model, args=named, train_dataset=dataset())


class Loss(TrainingArguments):  # type: ignore[misc]
    """Arguments with a kind of loss, as those of trl's SFTTrainer."""

    loss_type: str = "nll"


@pytest.mark.parametrize(("loss_type", "is_taken"), [("nll", True), ("chunked_nll", True), ("dft", False)])
def test_a_loss_that_is_not_cross_entropy_is_refused(
    client: ReplayClient, model: nn.Module, tmp_path: Path, loss_type: str, is_taken: bool
) -> None:
    rehearsal, args = a_run(client, "refused"), Loss(str(tmp_path), report_to="none", use_cpu=True)
    args.loss_type = loss_type
    if is_taken:
        RehearsalTrainer(rehearsal=rehearsal, model=model, args=args, train_dataset=dataset())
    else:
        with pytest.raises(InvalidTraining, match="loss_type 'dft' is set"):
            RehearsalTrainer(rehearsal=rehearsal, model=model, args=args, train_dataset=dataset())


@pytest.mark.parametrize(
    ("columns", "is_taken"),
    [
        (["prompt_ids", "chosen_ids", "rejected_ids", "ref_chosen_logps"], False),
        (["chosen_ids", "rejected_ids", "margin"], False),
        (["prompt_ids", "completion_ids", "KL_completion_ids", "label"], False),
        (["prompt", "chosen", "rejected", "image", "images"], False),
        (["prompt", "image", "images"], False),
        (["input_ids", "labels", "seq_lengths"], True),
        (["messages", "prompt", "completion", "image", "images"], True),
    ],
)
def test_trainers_of_preferences_and_policies_are_refused_by_the_columns_that_they_train_on(
    client: ReplayClient, model: nn.Module, tmp_path: Path, columns: list[str], is_taken: bool
) -> None:
    class OtherTrainer(Trainer):  # type: ignore[misc]
        def _set_signature_columns_if_needed(self) -> None:
            self._signature_columns = columns

    class RehearsalOtherTrainer(RehearsalMixin, OtherTrainer):  # type: ignore[misc]
        pass

    options = {"rehearsal": a_run(client, "refused"), "model": model, "args": arguments(tmp_path)}
    if is_taken:
        RehearsalOtherTrainer(**options)
    else:
        with pytest.raises(InvalidTraining, match=r"RehearsalOtherTrainer trains on .*, not on rows with labels"):
            RehearsalOtherTrainer(**options)
