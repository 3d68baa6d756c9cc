"""Images to classify, a service that holds them, and batches of a loader beside them."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from replay_service.classification.model import fingerprint
from replay_service.classification.scoring import ClassScorer
from replay_service.testing import LabelledSamples, replay_service
from replay_trainer.client import ReplayClient
from replay_trainer.plain import Rehearsal
from tests.classification.worlds import NUM_CLASSES, images, tiny_net

SETTINGS = {"global_batch_size": 4, "injection_ratio": "0.5", "injection_mode": "add", "policy": "uniform"}


@contextmanager
def service_of_images() -> Iterator[ReplayClient]:
    """Images as bytes, scored by the tiny net."""
    inputs, label = images(60)
    model = tiny_net()
    scores = ClassScorer(model, "float32", batch_size=60).score(inputs, label)
    samples = LabelledSamples(
        inputs,
        label,
        base_loss=scores.base_loss,
        is_right=scores.correct,
        num_classes=NUM_CLASSES,
        model_fingerprint=fingerprint(model),
    )
    with replay_service(samples=samples) as service, service.client() as client:
        yield client


def a_run(client: ReplayClient, run: str, **changes: Any) -> Rehearsal:
    client.ensure_run(run, "pretraining", {**SETTINGS, **changes})
    return Rehearsal(client, run, prepare=torch.Tensor.float)


def batch_of(num: int = 4, seed: int = 1) -> dict[str, torch.Tensor]:
    inputs, label = images(num, seed)
    return {"images": torch.from_numpy(inputs).float(), "labels": torch.from_numpy(label)}
