"""Classification corpora for tests: written by the project's own code, without a model."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from replay_service.corpus.format.manifest import Classes, Manifest
from replay_service.corpus.format.records import SampleRows
from replay_service.corpus.format.strata import assign_strata
from replay_service.testing.corpus import inner_edges, summary_of, write_first_generation


@dataclass(frozen=True, slots=True)
class LabelledSamples:
    """Samples to classify, and what a base model would have made of them.

    Attributes:
        inputs: [n, ...], numbers of any type; with `length`, token ids, unsigned [n, seq_len].
        label: int [n], 0 and above.
        length: int [n], real tokens of each text; None where the inputs are no text.
        base_loss: float [n], nats; by default drawn from `seed`.
        is_right: bool [n], whether the base model's argmax was the label; by default drawn from `seed`.
        domain: the domain of each; by default one for all.
        num_classes: by default one more than the greatest label.
        model_fingerprint: of the base model that is said to have scored them.
        seed: of what is drawn.
    """

    inputs: NDArray[Any]
    label: ArrayLike
    length: ArrayLike | None = None
    base_loss: ArrayLike | None = None
    is_right: ArrayLike | None = None
    domain: ArrayLike | None = None
    num_classes: int | None = None
    model_fingerprint: str = "none"
    seed: int = 0

    @classmethod
    def random(
        cls, num_samples: int = 80, input_shape: tuple[int, ...] = (1, 8, 8), num_classes: int = 4, seed: int = 0
    ) -> "LabelledSamples":
        """Tensors of float32 numbers between 0 and 1, and labels, drawn from the seed; two domains of equal size."""
        rng = np.random.default_rng(seed)
        return cls(
            inputs=rng.random((num_samples, *input_shape), dtype=np.float32),
            label=rng.integers(0, num_classes, num_samples),
            domain=np.array(["a", "b"])[np.arange(num_samples) * 2 // num_samples],
            num_classes=num_classes,
            seed=seed,
        )

    def write(self, folder: Path, *, num_quantiles: int = 2, rows_per_segment: int = 30) -> Manifest:
        """Write the corpus down as its first generation, samples in the order of their strata.

        Raises:
            ValueError: when there is no sample, or what is given of them is not of as many.
        """
        label = np.asarray(self.label)
        num = len(label)
        rng = np.random.default_rng(self.seed)
        drawn = rng.gamma(1.0, 1.0, num)
        base_loss = (drawn if self.base_loss is None else np.asarray(self.base_loss)).astype(np.float32)
        is_right = rng.random(num) < 0.7 if self.is_right is None else np.asarray(self.is_right)
        names, domain = np.unique(
            ["all"] * num if self.domain is None else np.asarray(self.domain), return_inverse=True
        )
        length = np.ones(num) if self.length is None else np.asarray(self.length)
        if not num or {len(each) for each in (self.inputs, base_loss, is_right, domain, length)} != {num}:
            raise ValueError("samples must have as many inputs, labels and all else that is given, at least one")
        if label.min() < 0 or self._num_classes(label) <= label.max():
            raise ValueError(f"labels must be classes, from 0 to {self._num_classes(label) - 1}")
        edges = inner_edges(base_loss, domain, len(names), num_quantiles)
        stratum = assign_strata(base_loss, domain, edges)
        rows = SampleRows.of_columns(
            **{"inputs" if self.length is None else "input_ids": self.inputs},
            length=length.astype(np.int32),
            label=label.astype(np.int32),
            base_loss=base_loss,
            base_correct=is_right.astype(np.uint8)[:, None],
            stratum=stratum.astype(np.int32),
        ).take(np.argsort(stratum, kind="stable"))
        summaries = [
            summary_of(str(name), base_loss[domain == i], int(length[domain == i].sum()))
            for i, name in enumerate(names)
        ]
        nothing = self._nothing(folder.name, num_quantiles, label)
        return write_first_generation(folder, nothing, rows, summaries, edges, rows_per_segment)

    def _num_classes(self, label: NDArray[Any]) -> int:
        return int(label.max()) + 1 if self.num_classes is None else self.num_classes

    def _nothing(self, name: str, num_quantiles: int, label: NDArray[Any]) -> Manifest:
        is_text = self.length is not None
        return Manifest.of_nothing(
            name=name,
            model="none",
            tokenizer_fingerprint="",
            vocab_size=int(self.inputs.max()) + 1 if is_text else 0,
            separator_id=0,
            seq_len=self.inputs.shape[1] if is_text else 0,
            precision="float32",
            num_quantiles=num_quantiles,
            partition_by="domain",
            topk=0,
            recipe="none",
            classes=Classes(
                num_classes=self._num_classes(label),
                model_fingerprint=self.model_fingerprint,
                input_shape=[] if is_text else list(self.inputs.shape[1:]),
                input_type="" if is_text else self.inputs.dtype.name,
            ),
        )
