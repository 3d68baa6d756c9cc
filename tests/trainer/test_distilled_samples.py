"""Samples to classify that learn what the base model said of them."""

import re
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy

from replay_trainer.batches.distilled import Distillation
from replay_trainer.batches.samples import add_samples
from replay_trainer.client import ReplayClient
from replay_trainer.errors import CorpusMismatch, InvalidTraining
from replay_trainer.methods.teacher import Teacher
from replay_trainer.new_run import new_rehearsal
from tests.classification.worlds import NUM_CLASSES, tiny_net
from tests.trainer.labelled_worlds import a_run, batch_of, service_of_images

NEW_RUN = {"global_batch_size": 4, "injection_ratio": "0.5"}


@pytest.fixture(scope="module")
def client() -> Iterator[ReplayClient]:
    with service_of_images() as found:
        yield found


@pytest.mark.parametrize("num_classes", [NUM_CLASSES, NUM_CLASSES + 2], ids=["same-classes", "new-classes"])
def test_distilled_samples_learn_what_the_base_model_said(client: ReplayClient, num_classes: int) -> None:
    base = tiny_net().eval()
    rehearsal = replace(
        a_run(client, f"distilled-{num_classes}"),
        rehearsal_loss="mixed",
        rehearsal_weight=3.0,
        teacher=Teacher(base, base=base),
    )
    with rehearsal.open(num_steps=1) as loop:
        mixed = loop.mix(0, batch_of())
        logits = torch.randn(8, num_classes, generator=torch.Generator().manual_seed(1), requires_grad=True)
        losses = mixed.losses(logits)
        loop.report(mixed, losses)
        loss = mixed.weigh(cross_entropy(logits, mixed.inputs["labels"]), losses)
    (gradient,) = torch.autograd.grad(loss, logits)

    again = logits.detach().double().requires_grad_()
    log_q = again.log_softmax(dim=1)
    with torch.no_grad():
        p = base(mixed.inputs["images"][4:]).double().softmax(dim=1)
    nll = -log_q[torch.arange(8), mixed.inputs["labels"]]
    divergence = (p * (p.log() - log_q[4:, :NUM_CLASSES])).sum(dim=1)
    expected = (nll[:4].sum() + 3.0 * (0.5 * nll[4:] + 0.5 * divergence).sum()) / 8
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    (expected_gradient,) = torch.autograd.grad(expected, again)
    torch.testing.assert_close(gradient.double(), expected_gradient, rtol=1e-4, atol=1e-6)
    assert mixed.loss_rows(losses, 0)["loss_nats"].tolist() == pytest.approx(nll[4:].tolist(), rel=1e-5)


def test_a_distilled_sample_that_could_not_be_read_teaches_nothing(client: ReplayClient) -> None:
    base = tiny_net().eval()
    with a_run(client, "distilled-damaged").open(num_steps=1) as loop:
        damaged = loop.mix(0, batch_of()).rehearsed
    object.__setattr__(damaged, "length", np.array([0, 1, 1, 1], dtype=np.int32))
    distillation = Distillation(1.0, Teacher(base, base=base))
    mixed = add_samples(batch_of(), damaged, 3.0, torch.Tensor.float, distillation)
    losses = mixed.losses(torch.randn(8, NUM_CLASSES, requires_grad=True))
    assert distillation.learned(losses)[0] == 0 and (distillation.learned(losses)[1:] > 0).all()


def test_samples_are_distilled_from_a_model_alone(client: ReplayClient) -> None:
    rehearsal = replace(a_run(client, "teacherless"), rehearsal_loss="distill")
    with pytest.raises(InvalidTraining, match=re.escape("there is no teacher; give teacher=Teacher.of")):
        rehearsal.open(num_steps=1)
    with pytest.raises(CorpusMismatch, match=re.escape("to learn from; give teacher=Teacher.of")):
        replace(rehearsal, teacher="stored").open(num_steps=1)


def test_a_model_with_fewer_classes_than_its_teacher_is_refused(client: ReplayClient) -> None:
    teacher = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.LazyLinear(NUM_CLASSES + 1))
    rehearsal = replace(
        a_run(client, "few-classes"), rehearsal_loss="distill", teacher=Teacher(tiny_net(), base=teacher)
    )
    with rehearsal.open(num_steps=1) as loop:
        mixed = loop.mix(0, batch_of())
    with pytest.raises(InvalidTraining, match=f"has {NUM_CLASSES} classes, and its teacher has {NUM_CLASSES + 1}"):
        mixed.losses(torch.zeros(8, NUM_CLASSES))


def test_the_recipe_takes_a_corpus_to_classify(client: ReplayClient) -> None:
    model = tiny_net()
    teacher = Teacher(model, base=tiny_net())
    rehearsal = new_rehearsal(client, "recipe", "pretraining", teacher=teacher, recipe="recommended", **NEW_RUN)
    with replace(rehearsal, prepare=torch.Tensor.float).open(num_steps=2) as loop:
        for step in range(2):
            mixed = loop.mix(step, batch_of())
            loop.report(mixed, mixed.losses(model(mixed.inputs["images"])))
    assert (rehearsal.rehearsal_loss, rehearsal.rehearsal_weight) == ("distill", 3.0)
    assert client.run("recipe")["config"]["policy"] == "mix_cd"
