"""What each method keeps of a vision model: `python -m tests.benchmarks.vision`.

README.md in this folder says what is measured.
"""

import argparse
import re
import statistics
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from replay_service.classification.losses import ClassLosses, class_losses
from replay_service.classification.model import load_classifier
from replay_service.classification.scoring import ClassScorer
from replay_service.language.model import evaluating
from replay_service.ray_session import start_ray
from replay_trainer.client import ReplayClient, RetryPolicy
from replay_trainer.methods.flow import FlowWeights
from replay_trainer.methods.ldifs import VISION, FeatureDrift
from replay_trainer.methods.teacher import Teacher, frozen_copy
from replay_trainer.plain import Rehearsal, RehearsalLoop
from replay_trainer.recipe import OBJECTIVES, RECIPES
from tests.benchmarks.digits import Images, Task, descend, letters, make_corpus, pretrained, tasks
from tests.benchmarks.ratios import as_table
from tests.support import running_service

BATCH: Final = 16
DISTILLED: Final = {name: RECIPES["recommended"][name] for name in ("rehearsal_loss", "rehearsal_weight")}
IMPATIENT: Final = RetryPolicy(first_wait_s=0.02, longest_wait_s=0.1)
"""A step takes some milliseconds, and its plan waits for the reports of earlier ones."""


@dataclass(frozen=True, slots=True)
class Method:
    """One way to fine-tune.

    Attributes:
        ratio: share of the rows that is rehearsal; 0 for none.
        policy: how strata are drawn.
        weight: of LDIFS; 0 for none.
        rehearsal: what rehearsed images teach and weigh, attributes of `Rehearsal`; by default their labels.
        signal: of the damage by which they are drawn, settings of a run.
    """

    name: str
    ratio: str = "0"
    policy: str = "uniform"
    flow: bool = False
    weight: float = 0.0
    rehearsal: Mapping[str, Any] = field(default_factory=dict)
    signal: Mapping[str, Any] = field(default_factory=dict)


@dataclass(slots=True)
class Kept:
    """What a tuned model knows, one number a seed: shares of images but for the loss.

    Attributes:
        probed: of the old task, what a linear probe of the model's features gets right.
        letters: of printed letters, which no model has learned, what a linear probe gets right.
        hardest: of the tenth of the new images on which the base model's loss is greatest, what the model gets right.
    """

    old: list[float] = field(default_factory=list)
    probed: list[float] = field(default_factory=list)
    letters: list[float] = field(default_factory=list)
    hardest: list[float] = field(default_factory=list)
    turned_wrong: list[float] = field(default_factory=list)
    turned_right: list[float] = field(default_factory=list)
    old_nats: list[float] = field(default_factory=list)
    new: list[float] = field(default_factory=list)
    worst: list[float] = field(default_factory=list)

    def row(self) -> list[str]:
        turned = (self.turned_wrong, self.turned_right)
        shares = (self.old, self.worst, *turned, self.probed, self.letters, self.new, self.hardest)
        return [*(_spread(each, 100) for each in shares), _spread(self.old_nats, 1)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--learning-rate", type=float, default=3e-4)
    parser.add_argument("--ratios", nargs="*", default=["0.02", "0.06"])
    options = parser.parse_args()
    torch.set_num_threads(1)
    start_ray()
    kept = {each.name: Kept() for each in [Method("base model"), *methods(options.ratios)]}
    for seed in range(options.seeds):
        with tempfile.TemporaryDirectory(prefix="vision-") as folder:
            _run_seed(seed, Path(folder), options, kept)
    print(
        f"\n{options.seeds} seeds, {options.steps} steps of {BATCH} images, learning rate {options.learning_rate:g}\n"
    )
    shares = [
        "old task",
        "worst digit",
        "turned wrong",
        "turned right",
        "old by a probe",
        "letters by a probe",
        "new task",
        "hardest tenth",
    ]
    head = ["method", *(f"{each}, %" for each in shares), "old, nats"]
    print(as_table(head, [[name, *each.row()] for name, each in kept.items()]))


def methods(ratios: Sequence[str]) -> list[Method]:
    rehearsing = [
        method
        for ratio in ratios
        for method in (
            Method(f"uniform, {ratio}", ratio),
            Method(f"mix_cd, {ratio}", ratio, "mix_cd"),
            Method(f"mix_cd, {ratio}, and LDIFS", ratio, "mix_cd", weight=VISION.weight),
            Method(f"uniform, {ratio}, distilled", ratio, rehearsal=DISTILLED),
            Method(f"recipe, {ratio}", ratio, "mix_cd", rehearsal=DISTILLED, signal=OBJECTIVES["mean"]),
            Method(f"recipe, {ratio}, worst", ratio, "mix_cd", rehearsal=DISTILLED, signal=OBJECTIVES["worst"]),
        )
    ]
    return [Method("plain"), Method("FLOW", flow=True), Method("LDIFS", weight=VISION.weight), *rehearsing]


def _run_seed(seed: int, root: Path, options: Any, kept: Mapping[str, Kept]) -> None:
    old, new = tasks(seed)
    pretrained(old.train, seed).save_pretrained(root / "base")
    make_corpus(old.train, root)
    base = load_classifier(str(root / "base"), is_text=False)
    judge, how = Judge.of(base, old, new, letters(seed)), How(seed, options.steps, options.learning_rate)
    judge.note(kept["base model"], base)
    with running_service(root) as (url, _), ReplayClient(url, retry=IMPATIENT) as client:
        for method in methods(options.ratios):
            tuned = load_classifier(str(root / "base"), is_text=False)
            tune(method, tuned, base, new.train, client, run_name(method.name, seed), how)
            judge.note(kept[method.name], tuned)
            print(
                f"seed {seed}: {method.name}: {kept[method.name].old[-1]:.3f} old, {kept[method.name].new[-1]:.3f} new"
            )


@dataclass(frozen=True, slots=True)
class How:
    """How a model is fine-tuned, whatever the method."""

    seed: int
    steps: int
    learning_rate: float


def tune(method: Method, model: Any, first: Any, images: Images, client: ReplayClient, run: str, how: How) -> None:
    """Fine-tunes a model by a method.

    Args:
        model: what is tuned; LDIFS refers to it as it is now.
        first: the model that scored the corpus; distilled images learn from it.
        run: its name; one that was stopped begins anew.
    """
    scores = ClassScorer(model, "float32", batch_size=100).score(images.pixels.numpy(), images.digit.numpy())
    weight = FlowWeights.fit(scores.base_loss).of(scores.base_loss) if method.flow else np.ones(len(images.digit))
    drift = FeatureDrift(model, base=frozen_copy(model), form=VISION) if method.weight else None
    settings = {"global_batch_size": BATCH, "injection_mode": "add", "injection_ratio": method.ratio}
    feedback = {"mode": "fenced", "lag": 8}
    client.ensure_run(
        run, "mnist", {**settings, "policy": method.policy, "feedback": feedback, **method.signal, "seed": how.seed}
    )
    teacher = Teacher(model, base=frozen_copy(first)) if method.rehearsal else None
    model.train()
    rehearsal = Rehearsal(client, run, base_model=first, teacher=teacher, **method.rehearsal)
    with rehearsal.open(num_steps=how.steps, on_existing="rewind") as loop:
        step = _Step(
            model, images, torch.from_numpy(weight).float(), loop, drift, torch.Generator().manual_seed(how.seed)
        )
        descend(model, step.loss, how.steps, how.learning_rate)


def run_name(*parts: object) -> str:
    """Parts as the name of a run."""
    return re.sub(r"[^a-z0-9.]+", "-", " ".join(map(str, parts)).lower()).strip("-")


@dataclass(frozen=True, slots=True)
class _Step:
    """The loss of a step: mean cross-entropy of all rows, with FLOW's weights, and LDIFS of the new ones."""

    model: Any
    images: Images
    weight: Tensor
    loop: RehearsalLoop
    drift: FeatureDrift | None
    generator: torch.Generator

    def loss(self, step: int) -> Tensor:
        pixels, index = self.images.batch(self.generator, BATCH)
        batch = self.loop.mix(step, {"pixel_values": pixels, "labels": self.images.digit[index]})
        if self.drift is None:
            logits, penalty = self.model(pixel_values=batch.inputs["pixel_values"]).logits, torch.zeros(())
        else:
            with self.drift.recording():
                logits = self.model(pixel_values=batch.inputs["pixel_values"]).logits
            moved = self.drift.of(None, lambda base: base(pixel_values=pixels), rows=slice(BATCH))
            penalty = self.drift.penalty(moved)
        losses = batch.losses(logits)
        self.loop.report(batch, losses)
        weight = torch.cat([self.weight[index], torch.ones(batch.num_rehearsed)])
        loss = (weight * class_losses(logits, batch.inputs["labels"]).nll_B).mean()
        return batch.weigh(loss, losses) + penalty


@dataclass(frozen=True, slots=True)
class Judge:
    """Notes what models know of two tasks, beside what the base model knew.

    Attributes:
        was_right: bool, the old images that the base model is right about.
        is_hardest: bool, the tenth of the new images on which its loss is greatest.
    """

    old: Task
    new: Task
    letters: Task
    was_right: Tensor
    is_hardest: Tensor

    @classmethod
    def of(cls, base: Any, old: Task, new: Task, letters: Task) -> "Judge":
        nll = losses_of(base, new.test).nll_B
        return cls(old, new, letters, losses_of(base, old.test).correct_B, nll >= nll.quantile(0.9))

    def note(self, kept: Kept, model: Any) -> None:
        losses, of_new = losses_of(model, self.old.test), losses_of(model, self.new.test).correct_B
        is_right, digit = losses.correct_B, self.old.test.digit
        kept.old.append(share(is_right))
        kept.worst.append(min(share(is_right[digit == each]) for each in range(10)))
        kept.turned_wrong.append(share(self.was_right & ~is_right))
        kept.turned_right.append(share(~self.was_right & is_right))
        kept.old_nats.append(losses.nll_B.mean().item())
        kept.probed.append(probed(model, self.old))
        kept.letters.append(probed(model, self.letters))
        kept.new.append(share(of_new))
        kept.hardest.append(share(of_new[self.is_hardest]))


def probed(model: Any, task: Task) -> float:
    """What a linear probe makes of a model's features: logistic regression, fitted to a task's training images."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    probe = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
    probe.fit(features_of(model, task.train), task.train.digit.numpy())
    return float(probe.score(features_of(model, task.test), task.test.digit.numpy()))


def losses_of(model: Any, images: Images) -> ClassLosses:
    with evaluating(model), torch.inference_mode():
        return class_losses(model(pixel_values=images.pixels).logits, images.digit)


def features_of(model: Any, images: Images) -> NDArray[np.float32]:
    """What the head of the model classifies, [n, 64]."""
    with evaluating(model), torch.inference_mode():
        features: NDArray[np.float32] = model.base_model(pixel_values=images.pixels).last_hidden_state[:, 0].numpy()
    return features


def share(of: Tensor) -> float:
    return of.float().mean().item()


def _spread(values: Sequence[float], scale: float) -> str:
    """Mean over the seeds, and their standard deviation."""
    digits = 1 if scale > 1 else 2
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{scale * statistics.mean(values):.{digits}f} ± {scale * deviation:.{digits}f}"


if __name__ == "__main__":
    main()
