"""Micro-batches that a loop brings one at a time, with rehearsed rows in a forward pass of their own."""

import pytest
import torch

from replay_trainer.batches.apart import ApartInputs
from replay_trainer.client import ReplayClient
from replay_trainer.errors import InvalidTraining
from replay_trainer.micro_batches import MicroBatches
from tests.trainer.plain_worlds import VOCAB, a_run, rows


def test_a_missing_pass_is_refused_where_any_rank_rehearses_and_nothing_is_missed_elsewhere(
    client: ReplayClient,
) -> None:
    with a_run(client, "missing-pass", injection_ratio="0.1").open(num_steps=3) as loop:
        parts = MicroBatches(loop, lambda: 1, lambda: True, lambda values: values)
        for step in range(3):
            batch = parts.mix(rows(), apart=True)
            assert isinstance(batch, ApartInputs) and batch.is_rehearsed == (step == 2)
            loss = torch.ones((), requires_grad=True)
            if batch.is_rehearsed:
                with pytest.raises(InvalidTraining, match="call the model with rehearsed_inputs too"):
                    parts.loss(batch, loss, torch.zeros(4, 8, VOCAB))
            else:
                assert parts.loss(batch, loss, torch.zeros(4, 8, VOCAB)) is loss


def test_a_rank_that_rehearses_nothing_takes_part_in_the_gradients_of_the_pass(client: ReplayClient) -> None:
    with a_run(client, "empty-pass", injection_ratio="0.2").open(rank=0, world_size=2, num_steps=4) as loop:
        parts = MicroBatches(loop, lambda: 1, lambda: True, lambda values: values)
        found = []
        for _ in range(4):
            batch = parts.mix(rows(2), apart=True)
            assert isinstance(batch, ApartInputs)
            shape = batch.rehearsed_inputs["input_ids"].shape
            logits = torch.zeros(*shape, VOCAB, requires_grad=True)
            parts.loss(batch, torch.ones(()), torch.zeros(2, 8, VOCAB), logits).backward()
            assert logits.grad is not None
            found.append((batch.num_rehearsed, shape[0], bool(logits.grad.any())))
    assert set(found) == {(0, 1, False), (1, 1, True)}
