import numpy as np
import pytest
import torch

from replay_service.classification.losses import class_losses
from replay_service.classification.model import load_classifier
from replay_service.classification.scoring import ClassScorer, model_inputs
from tests.classification.worlds import NUM_CLASSES, images, tiny_net, tiny_reader


def test_scores_are_the_losses_of_the_model_as_it_is_evaluated() -> None:
    model = tiny_net().train()
    inputs, label = images(10)
    scores = ClassScorer(model, "float32", batch_size=4).score(inputs, label)
    assert model.training and model.features[2].training  # type: ignore[index, union-attr]
    with torch.no_grad():
        expected = class_losses(model.eval()(torch.from_numpy(inputs).float()), torch.from_numpy(label))
    np.testing.assert_allclose(scores.base_loss, expected.nll_B.numpy(), rtol=1e-5)
    np.testing.assert_array_equal(scores.correct, expected.correct_B.numpy())


def test_bytes_and_the_same_numbers_as_floats_score_alike() -> None:
    inputs, label = images(10)
    scorer = ClassScorer(tiny_net(), "float32", batch_size=10)
    for dtype in (np.float16, np.float32, np.int32):
        np.testing.assert_array_equal(
            scorer.score(inputs.astype(dtype), label).base_loss, scorer.score(inputs, label).base_loss
        )


def test_what_pads_a_text_means_nothing() -> None:
    rng = np.random.default_rng(0)
    ids, length, label = rng.integers(0, 50, (6, 9)), np.array([9, 1, 4, 4, 2, 7]), rng.integers(0, NUM_CLASSES, 6)
    scorer = ClassScorer(tiny_reader(), "float32", batch_size=3)
    other = np.where(np.arange(9) < length[:, None], ids, 1_000_000)
    np.testing.assert_array_equal(
        scorer.score(ids, label, length).base_loss, scorer.score(other, label, length).base_loss
    )
    assert model_inputs(ids[1:2], length[1:2])["input_ids"].shape == (1, 1)


def test_a_label_that_is_no_class_is_told() -> None:
    inputs, label = images(3)
    with pytest.raises(ValueError, match="0 to 3"):
        ClassScorer(tiny_net(), "float32", batch_size=2).score(inputs, label + 4)


def test_a_model_is_scored_alike_however_it_was_loaded() -> None:
    inputs, label = images(5)
    loaded = load_classifier("tests.classification.worlds:tiny_net", is_text=False)
    mine, theirs = (ClassScorer(each, "bf16", batch_size=5).score(inputs, label) for each in (loaded, tiny_net()))
    np.testing.assert_array_equal(mine.base_loss, theirs.base_loss)
