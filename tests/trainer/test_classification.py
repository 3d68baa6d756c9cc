"""Samples to classify in a loop of one's own and in transformers.Trainer."""

import re
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.functional import cross_entropy

from replay_service.classification.model import fingerprint
from replay_service.testing import LabelledSamples, replay_service
from replay_trainer.batches.added import IGNORED
from replay_trainer.batches.distilled import RehearsalLoss
from replay_trainer.batches.samples import MixedSamples, add_samples
from replay_trainer.client import ReplayClient
from replay_trainer.errors import CorpusMismatch, InvalidTraining
from replay_trainer.plain import Rehearsal
from tests.classification.worlds import NUM_CLASSES, SHAPE, images, make_tiny_bert, make_tiny_vit, tiny_net
from tests.trainer.labelled_worlds import SETTINGS, a_run, batch_of, service_of_images

PAGE = Path(__file__).parents[2] / "docs" / "how-to" / "classification.md"
NUM_TOKENS = 9


@pytest.fixture(scope="module")
def client() -> Iterator[ReplayClient]:
    with service_of_images() as found:
        yield found


@pytest.fixture(scope="module")
def texts() -> Iterator[ReplayClient]:
    rng = np.random.default_rng(0)
    ids = rng.integers(1, 50, (40, NUM_TOKENS)).astype(np.uint16)
    samples = LabelledSamples(
        ids, rng.integers(0, NUM_CLASSES, 40), rng.integers(1, NUM_TOKENS + 1, 40), num_classes=NUM_CLASSES
    )
    with replay_service(samples=samples) as service, service.client() as found:
        yield found


def test_rehearsed_samples_come_after_the_loaders_as_the_corpus_holds_them(client: ReplayClient) -> None:
    with a_run(client, "mixed").open(num_steps=4) as loop:
        for step in range(4):
            ours = batch_of(seed=step)
            mixed = loop.mix(step, ours)
            rehearsed = mixed.rehearsed
            assert len(mixed.inputs["images"]) == 4 + mixed.num_rehearsed == 8 == mixed.num_predictions
            assert torch.equal(mixed.inputs["images"][:4], ours["images"])
            np.testing.assert_array_equal(mixed.inputs["images"][4:].numpy(), rehearsed.inputs)
            assert mixed.inputs["labels"].tolist() == [*ours["labels"].tolist(), *rehearsed.label.tolist()]


def test_the_model_as_it_was_reports_the_base_losses_and_no_flip(client: ReplayClient) -> None:
    model = tiny_net().eval()
    rehearsal = a_run(client, "unchanged")
    with rehearsal.open(num_steps=10) as loop:
        for step in range(10):
            mixed = loop.mix(step, batch_of())
            losses = mixed.losses(model(mixed.inputs["images"]))
            np.testing.assert_allclose(losses.nll_B.detach(), mixed.rehearsed.base_loss, rtol=1e-4)
            rows = mixed.loss_rows(losses, 0)
            assert rows["num_tokens"].tolist() == [1] * 4 and not rows["num_flips"].any()
            loop.report(mixed, losses)
    stats = client.stats("unchanged")
    assert (stats["num_reported"], stats["num_pending"], stats["flip_rate"]) == (40, 0, 0.0)
    assert stats["forgetting"]["nats"] == pytest.approx(0, abs=1e-5)


def test_a_sample_flips_when_the_base_model_was_right_and_the_model_is_wrong(client: ReplayClient) -> None:
    with a_run(client, "flips").open(num_steps=5) as loop:
        for step in range(5):
            mixed = loop.mix(step, batch_of())
            logits = torch.randn(8, NUM_CLASSES, generator=torch.Generator().manual_seed(step))
            losses = mixed.losses(logits)
            label = torch.from_numpy(mixed.rehearsed.label.astype(np.int64))
            rows = mixed.loss_rows(losses, 0)
            is_wrong = (logits[4:].argmax(dim=1) != label).numpy()
            np.testing.assert_array_equal(rows["num_flips"] == 1, is_wrong & (mixed.rehearsed.base_correct[:, 0] == 1))
            np.testing.assert_array_equal(rows["num_gains"] == 1, ~is_wrong & (mixed.rehearsed.base_correct[:, 0] == 0))
            np.testing.assert_allclose(rows["loss_nats"], cross_entropy(logits[4:], label, reduction="none"), rtol=1e-5)


def test_a_sample_whose_loss_is_not_finite_is_reported_as_not_measured(client: ReplayClient) -> None:
    with a_run(client, "broken").open(num_steps=1) as loop:
        mixed = loop.mix(0, batch_of())
    logits = torch.randn(8, NUM_CLASSES)
    logits[5] = torch.nan
    rows = mixed.loss_rows(mixed.losses(logits), 0)
    assert rows["sample_id"].tolist() == mixed.rehearsed.sample_id.tolist()
    assert (rows["num_tokens"] == 0).tolist() == [False, True, False, False]
    assert (rows["loss_nats"][1], rows["num_flips"][1]) == (0, 0)


@given(weight=st.floats(0, 4), num_parts=st.integers(1, 2))
def test_weighing_gives_the_mean_with_rehearsed_samples_at_their_weight(
    client: ReplayClient, weight: float, num_parts: int
) -> None:
    a_run(client, "weights")
    rehearsal = Rehearsal(client, "weights", rehearsal_weight=weight, prepare=torch.Tensor.float)
    with rehearsal.open(num_steps=1, on_existing="rewind") as loop:
        parts = loop.spread(0, [batch_of(4 // num_parts, seed) for seed in range(num_parts)])
    for part in parts:
        logits = torch.randn(len(part.inputs["labels"]), NUM_CLASSES)
        nll = cross_entropy(logits, part.inputs["labels"], reduction="none")
        first = len(nll) - part.num_rehearsed
        expected = (nll[:first].sum() + weight * nll[first:].sum()) / len(nll)
        found = part.weigh(nll.mean(), part.losses(logits))
        assert float(found) == pytest.approx(float(expected), rel=1e-4)
        assert isinstance(part, MixedSamples)
        assert float(part.share_in(nll.sum() / 7, logits)) == pytest.approx(1 / 7, rel=1e-4)


def test_texts_are_padded_to_the_wider_and_padding_is_masked(texts: ReplayClient) -> None:
    for width in (3, NUM_TOKENS, 20):
        ids = torch.randint(1, 50, (4, width))
        with a_run(texts, "texts").open(num_steps=1, on_existing="rewind") as loop:
            mixed = loop.mix(0, {"input_ids": ids, "labels": torch.zeros(4, dtype=torch.long)})
        rehearsed = mixed.rehearsed
        assert torch.equal(mixed.inputs["input_ids"][:4, :width], ids)
        assert mixed.inputs["attention_mask"][:4].sum() == 4 * width
        assert mixed.inputs["attention_mask"][4:].sum(dim=1).tolist() == rehearsed.length.tolist()
        for row, (wanted, length) in enumerate(zip(rehearsed.input_ids, rehearsed.length, strict=True)):
            assert mixed.inputs["input_ids"][4 + row, :length].tolist() == wanted[:length].tolist()
            assert not mixed.inputs["input_ids"][4 + row, length:].any()


def test_a_sample_that_could_not_be_read_counts_nowhere_and_is_told_of(client: ReplayClient) -> None:
    with a_run(client, "damaged").open(num_steps=1) as loop:
        mixed = loop.mix(0, batch_of())
    assert isinstance(mixed, MixedSamples)
    batch = mixed.rehearsed
    damaged = batch.rows(slice(None))
    for name in ("length", "label", "inputs", "base_loss", "base_correct"):
        column = getattr(damaged, name).copy()
        column[0] = 0
        object.__setattr__(damaged, name, column)
    mixed = add_samples(batch_of(), damaged, prepare=torch.Tensor.float)
    assert mixed.inputs["labels"][4] == IGNORED and mixed.num_predictions == 7
    rows = mixed.loss_rows(mixed.losses(torch.randn(8, NUM_CLASSES)), 0)
    assert rows["num_tokens"].tolist() == [0, 1, 1, 1] and rows["loss_nats"][0] == 0


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        ({"images": torch.zeros(4, *SHAPE)}, "one tensor and labels, not images"),
        ({**batch_of(), "masks": torch.zeros(4)}, "one tensor and labels"),
        ({**batch_of(), "labels": torch.zeros(4, 3, dtype=torch.long)}, r"int64 \[4\], not torch.int64 \[4, 3\]"),
        ({**batch_of(), "labels": torch.zeros(4)}, "not torch.float32"),
        ({**batch_of(), "images": torch.zeros(4, 3, 8, 8)}, r"\[3, 8, 8\] a sample, and rehearsed samples are"),
        ({**batch_of(), "images": torch.zeros(4, *SHAPE, dtype=torch.uint8)}, "torch.uint8"),
    ],
)
def test_a_batch_that_cannot_be_mixed_is_refused(client: ReplayClient, batch: dict[str, Any], message: str) -> None:
    loop = a_run(client, "refused").open(num_steps=1, on_existing="rewind")
    with loop, pytest.raises(InvalidTraining, match=message):
        loop.mix(0, batch)


def test_samples_that_cannot_be_mixed_are_refused_before_any_is_rehearsed(client: ReplayClient) -> None:
    rehearsal = a_run(client, "rare", injection_ratio="0.01")
    for changes, message in (
        ({"images": torch.zeros(4, *SHAPE, dtype=torch.uint8)}, "torch.uint8"),
        ({"images": torch.zeros(4, 3, 8, 8)}, "a sample, and rehearsed samples are"),
    ):
        with rehearsal.open(on_existing="rewind") as loop, pytest.raises(InvalidTraining, match=message):
            loop.mix(0, {**batch_of(), **changes})
    with rehearsal.open(on_existing="rewind") as loop:
        assert loop.mix(0, batch_of()).num_rehearsed == 0


def test_a_model_with_fewer_classes_than_the_corpus_is_refused_when_the_loop_is_opened(client: ReplayClient) -> None:
    model = tiny_net()
    for num_labels, is_taken in ((NUM_CLASSES, True), (NUM_CLASSES - 1, False)):
        model.config = SimpleNamespace(num_labels=num_labels)  # type: ignore[assignment]
        if is_taken:
            a_run(client, "classes").open(model=model).close()
        else:
            with pytest.raises(CorpusMismatch, match=f"the model has {num_labels}; keep the classes"):
                a_run(client, "classes").open(model=model)


def test_logits_of_something_else_or_without_a_rehearsed_class_are_refused(client: ReplayClient) -> None:
    with a_run(client, "logits").open(num_steps=1) as loop:
        mixed = loop.mix(0, batch_of())
    with pytest.raises(InvalidTraining, match="those of every sample of the mixed batch"):
        mixed.losses(torch.zeros(4, NUM_CLASSES))
    with pytest.raises(InvalidTraining, match="keep the classes of the base model"):
        mixed.losses(torch.zeros(8, int(mixed.rehearsed.label.max())))


def test_language_and_classification_are_not_taken_for_each_other(client: ReplayClient, texts: ReplayClient) -> None:
    rows = {"input_ids": torch.ones(4, 5, dtype=torch.long), "labels": torch.ones(4, 5, dtype=torch.long)}
    for to_classify, message in ((client, "holds tensors to classify"), (texts, "holds texts to classify")):
        with a_run(to_classify, "language").open(num_steps=1) as loop, pytest.raises(InvalidTraining, match=message):
            loop.mix(0, rows)
    with replay_service() as service, service.client() as language:
        rehearsal = a_run(language, "classification")
        with rehearsal.open(num_steps=1) as loop, pytest.raises(InvalidTraining, match="is of language"):
            loop.mix(0, batch_of())
        with pytest.raises(CorpusMismatch, match="is of language"):
            Rehearsal(language, "classification", base_model=tiny_net()).open()


def test_a_base_model_that_has_not_scored_the_corpus_is_refused(client: ReplayClient) -> None:
    a_run(client, "base")
    Rehearsal(client, "base", base_model=tiny_net()).open().close()
    other = tiny_net()
    torch.nn.init.zeros_(other.head.weight)  # type: ignore[union-attr,arg-type]
    with pytest.raises(CorpusMismatch, match="other weights than the one that scored"):
        Rehearsal(client, "base", base_model=other).open()


@pytest.mark.parametrize("number", [0, 1], ids=["labels", "distilled"])
def test_the_documentation_shows_a_loop_that_classifies(number: int) -> None:
    example = re.findall(r"```python\n([^`]*cross_entropy[^`]*)```", PAGE.read_text())[number]
    model = tiny_net().eval()
    inputs, label = (torch.from_numpy(each) for each in images(32, 5))
    before = model.head.weight.detach().clone()  # type: ignore[union-attr]
    samples = LabelledSamples(
        images(40)[0].astype(np.float32), images(40)[1], num_classes=NUM_CLASSES, model_fingerprint=fingerprint(model)
    )
    names: dict[str, Any] = {
        "model": model,
        "optimizer": torch.optim.SGD(model.parameters(), lr=1e-3),
        "loader": [(inputs[first : first + 8].float(), label[first : first + 8]) for first in (0, 8, 16, 24)],
    }
    with replay_service(samples=samples, corpus="images", serve=True) as service:
        if number:  # it goes on from the first one
            names |= {"Rehearsal": Rehearsal, "cross_entropy": cross_entropy, "client": service.client()}
            names["client"].ensure_run("my-run", "images", {**SETTINGS, "global_batch_size": 8})
        exec(compile(example.replace("http://127.0.0.1:8400", service.url), str(PAGE), "exec"), names)
        names["client"].close()
        with service.client() as client:
            stats = client.stats("my-run")
    assert stats["num_reported"] == stats["rows_rehearsed"] > 0
    assert not torch.equal(before, model.head.weight)  # type: ignore[union-attr,arg-type]


@pytest.mark.parametrize("num_accumulated", [1, 2])
@pytest.mark.parametrize("kind", ["images", "texts"])
def test_the_trainer_of_transformers_rehearses_samples(
    kind: str,
    num_accumulated: int,
    client: ReplayClient,
    texts: ReplayClient,
    tiny_model: Path,
    tmp_path: Path,
) -> None:
    from transformers import AutoModelForImageClassification, AutoModelForSequenceClassification

    from replay_trainer.hf import RehearsalTrainer
    from tests.trainer.test_hf import arguments

    service = client if kind == "images" else texts
    run = f"trainer-{kind}-{num_accumulated}"
    a_run(service, run, global_batch_size=4 * num_accumulated)
    learns: RehearsalLoss = "cross_entropy" if num_accumulated == 1 else "distill"
    rehearsal = Rehearsal(service, run, rehearsal_weight=0.5, rehearsal_loss=learns, prepare=torch.Tensor.float)
    if kind == "images":
        model = AutoModelForImageClassification.from_pretrained(make_tiny_vit(tmp_path / "vit"))
        inputs, label = images(24)
        rows = [{"pixel_values": x.astype(np.float32), "labels": int(y)} for x, y in zip(inputs, label, strict=True)]
    else:
        model = AutoModelForSequenceClassification.from_pretrained(make_tiny_bert(tmp_path / "bert", tiny_model))
        rows = [{"input_ids": [1 + i, 2, 3], "labels": i % NUM_CLASSES} for i in range(24)]
    args = arguments(tmp_path, gradient_accumulation_steps=num_accumulated, max_steps=4)
    trainer = RehearsalTrainer(rehearsal=rehearsal, model=model, args=args, train_dataset=rows)
    trainer.train()
    stats = service.stats(run)
    assert stats["num_reported"] == stats["rows_rehearsed"] == 16 * num_accumulated
