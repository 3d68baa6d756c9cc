"""The images of the benchmarks of vision."""

import torch

from tests.benchmarks.digits import letters


def test_every_printed_letter_can_be_seen_and_is_there_for_training_and_for_the_test() -> None:
    task = letters(0)
    for images in (task.train, task.test):
        assert images.pixels.shape[1:] == (1, 28, 28) and images.pixels.dtype == torch.float32
        assert images.pixels.min() >= 0 and images.pixels.max() <= 1 and (images.pixels.amax((1, 2, 3)) > 0.5).all()
        assert (images.digit.bincount(minlength=26) > 0).all()
    assert torch.equal(letters(0).test.pixels, task.test.pixels)
