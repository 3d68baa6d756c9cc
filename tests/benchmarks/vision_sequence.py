"""What a vision model keeps that is tuned on three tasks in turn: `python -m tests.benchmarks.vision_sequence FOLDER`.

README.md in this folder says what is measured. Stopped, the same command goes on after the last finished stage.
"""

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch

from replay_service.classification.model import load_classifier
from replay_service.corpus.format.manifest import MANIFEST_NAME
from replay_service.ray_session import start_ray
from replay_trainer.client import ReplayClient
from replay_trainer.methods.ldifs import VISION
from replay_trainer.recipe import OBJECTIVES
from tests.benchmarks.digits import Task, make_corpus, new_task, old_task, pretrained
from tests.benchmarks.ratios import as_table
from tests.benchmarks.vision import (
    BATCH,
    DISTILLED,
    IMPATIENT,
    How,
    Method,
    losses_of,
    probed,
    run_name,
    share,
    tune,
)
from tests.evidence.chains import Chain, Row, follow, spread, whole_chains, write_rows
from tests.support import running_service

OLD: Final = "old"
NEW: Final = {"0-2": range(3), "3-5": range(3, 6), "6-9": range(6, 10)}
NUM_TRAIN: Final = 360
"""Images of each new task; the rest, 177 to 354, judge it."""
_RECIPE: Final[dict[str, Any]] = {
    "ratio": "0.06",
    "policy": "mix_cd",
    "rehearsal": DISTILLED,
    "signal": OBJECTIVES["mean"],
}
ARMS: Final = (
    Method("plain"),
    Method("uniform, 6 %", "0.06"),
    Method("recipe, 6 %", **_RECIPE),
    Method("LDIFS", weight=VISION.weight),
    Method("LDIFS and recipe, 6 %", weight=VISION.weight, **_RECIPE),
)


@dataclass(frozen=True, slots=True)
class Judge:
    """Measures what models know of all tasks, beside what the first model knew.

    Attributes:
        before: a row for each task, of the first model.
    """

    tasks: Mapping[str, Task]
    before: Mapping[str, Row]

    @classmethod
    def of(cls, tasks: Mapping[str, Task], first: Any) -> "Judge":
        return cls(tasks, {name: _measured(first, task) for name, task in tasks.items()})

    def rows(self, model: Any) -> list[Row]:
        """One for each task."""
        return [
            {"task": name, **_measured(model, task), **{f"{key}_before": was for key, was in self.before[name].items()}}
            for name, task in self.tasks.items()
        ]


def _measured(model: Any, task: Task) -> Row:
    """Shares of a task's images, of those of its worst digit, and the mean loss."""
    losses, digit = losses_of(model, task.test), task.test.digit
    return {
        "right": share(losses.correct_B),
        "worst": min(share(losses.correct_B[digit == each]) for each in set(digit.tolist())),
        "probed": probed(model, task),
        "nats": losses.nll_B.mean().item(),
    }


@dataclass(frozen=True, slots=True)
class Trainer:
    """Trains stages, and leaves their models in the folders of their chains."""

    judge: Judge
    client: ReplayClient
    how: How

    def __call__(self, chain: Chain, stage: int) -> list[Row]:
        method = next(each for each in ARMS if each.name == chain.arm)
        model: Any = load_classifier(str(chain.model_before(stage)), is_text=False)
        first = load_classifier(str(chain.start), is_text=False)
        name = chain.targets[stage]
        run = run_name(chain.folder.parent.name, chain.arm, chain.seed, name)
        tune(method, model, first, self.judge.tasks[name].train, self.client, run, self.how)
        model.save_pretrained(chain.model_after(stage))
        return self.judge.rows(model)


def chains_of(root: Path, arms: Sequence[str], how: How) -> list[Chain]:
    """The chains of one seed, whose model, corpus and service are in `root`."""
    settings = root / run_name(how.steps, f"{how.learning_rate:g}")
    return [Chain(arm, how.seed, settings / run_name(arm), root / "base", tuple(NEW)) for arm in arms]


def run_seed(root: Path, chains: Sequence[Chain], how: How) -> None:
    """Train the stages of one seed; one that is finished is not repeated."""
    if all(chain.is_finished(len(NEW) - 1) for chain in chains):
        return
    old = old_task(how.seed)
    prepare(old, root, how.seed)
    tasks = {OLD: old, **{name: new_task(how.seed, digits, NUM_TRAIN) for name, digits in NEW.items()}}
    judge = Judge.of(tasks, load_classifier(str(root / "base"), is_text=False))
    with running_service(root) as (url, _), ReplayClient(url, retry=IMPATIENT) as client:
        follow(chains, Trainer(judge, client, how), lambda line: print(line, flush=True))


def prepare(old: Task, root: Path, seed: int) -> None:
    """The first model and the corpus of its images, unless they are there."""
    root.mkdir(parents=True, exist_ok=True)
    if not (root / "base" / "model.safetensors").exists():
        pretrained(old.train, seed).save_pretrained(root / "base")
    if not (root / "corpora" / "mnist" / MANIFEST_NAME).exists():
        start_ray()
        make_corpus(old.train, root)


def tables(rows: Sequence[Row]) -> str:
    """What is kept of the old task and of each new one: means over seeds, in brackets the least and the greatest."""
    rows, last = whole_chains(rows, len(NEW)), len(NEW)
    if not rows:
        return "No chain is finished yet."
    arms = list(dict.fromkeys(each["arm"] for each in rows))

    def cell(arm: str, task: str, stage: int, name: str = "right") -> str:
        found = [each[name] for each in rows if (each["arm"], each["task"], each["stage"]) == (arm, task, stage)]
        return spread(found, 1, scale=100)

    def old_cells(arm: str, suffix: str = "") -> list[str]:
        right = [cell(arm, OLD, stage, f"right{suffix}") for stage in range(1, last + 1)]
        seeds = len({each["seed"] for each in rows if each["arm"] == arm})
        return [
            str(seeds),
            *right,
            cell(arm, OLD, last, f"worst{suffix}"),
            cell(arm, OLD, last, f"probed{suffix}"),
        ]

    def new_cells(arm: str, suffix: str = "") -> list[str]:
        return [
            cell(arm, task, when, f"{name}{suffix}")
            for stage, task in enumerate(NEW, start=1)
            for when, name in ((stage, "right"), (last, "right"), (last, "probed"))
        ]

    old_head = ["seeds", *(f"after {task}" for task in NEW), "worst digit at the end", "by a probe at the end"]
    new_head = [
        f"{task}: {when}" for task in NEW for when in ("after its stage", "at the end", "by a probe at the end")
    ]
    parts = []
    for what, head, cells in (("old task", old_head, old_cells), ("new tasks", new_head, new_cells)):
        table = [["first model", *cells(arms[0], "_before")], *([arm, *cells(arm)] for arm in arms)]
        parts.append(f"Right of the {what}, %:\n\n{as_table(['arm', *head], table)}")
    return "\n\n".join(parts)


def main() -> None:
    names = [each.name for each in ARMS]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=lambda given: Path(given).absolute())
    parser.add_argument("--seeds", type=int, default=5, help="how many")
    parser.add_argument("--arms", nargs="+", choices=names, default=names, metavar="ARM")
    parser.add_argument("--steps", type=int, default=200, help="of each stage")
    parser.add_argument("--learning-rate", type=float, default=3e-4)
    parser.add_argument("--report-only", action="store_true", help="show what is finished")
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows = list[Row]()
    for seed in range(options.seeds):
        root, how = options.folder / f"seed-{seed}", How(seed, options.steps, options.learning_rate)
        chains = chains_of(root, options.arms, how)
        if not options.report_only:
            run_seed(root, chains, how)
        rows += [row for chain in chains for row in chain.rows()]
    if rows:
        write_rows(options.folder / "vision_sequence.parquet", rows)
    about = f"{options.seeds} seeds, stages of {options.steps} steps of {BATCH} images"
    print(f"\n{about}, learning rate {options.learning_rate:g}\n\n{tables(rows)}")


if __name__ == "__main__":
    main()
