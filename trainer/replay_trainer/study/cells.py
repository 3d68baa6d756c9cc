"""The cells of a study: one job for each arm, target, learning rate and seed."""

import hashlib
import json
import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from replay_trainer.config import DataConfig, TrainConfig, job_of
from replay_trainer.errors import InvalidTraining
from replay_trainer.recipe import recipe_keys
from replay_trainer.study.settings import ArmConfig, StudyConfig, StudySettings, TargetConfig

_NOT_IN_NAMES: Final = re.compile(r"[^a-z0-9]+")
_MOST_LETTERS: Final = 40


@dataclass(frozen=True, slots=True)
class Cell:
    """One job of a study.

    Attributes:
        arm: its name; with several learning rates, followed by this one.
        target: its name.
        seed: of the job.
        job: what is trained; its output is a folder of its own.
        data: where its text lies, held-out text too, which is measured before and after all cells alike and not by the
            loop.
        interpolated: the arms that interpolate its weights, each with the share of the tuned ones.
        key: a short hash of all that its results depend on, and of the study's folder.
    """

    arm: str
    target: str
    seed: int
    job: TrainConfig
    data: DataConfig
    interpolated: tuple[tuple[str, float], ...] = ()
    key: str = ""

    @property
    def name(self) -> str:
        """The name of its files."""
        return f"{short_name(self.target)}-{self.seed}-{short_name(self.arm)}-{self.key}"

    @property
    def title(self) -> str:
        """What a message calls it."""
        return f"arm {self.arm!r}, target {self.target!r}, seed {self.seed}"


@dataclass(frozen=True, slots=True)
class Study:
    """What a study consists of, resolved.

    Attributes:
        folder: where it keeps its results.
        settings: of its section.
        cells: in the order in which they are trained: one seed of all comes first.
        choices: where its multiple-choice questions are, if it has any.
    """

    folder: Path
    settings: StudyConfig
    cells: tuple[Cell, ...]
    choices: Path | None

    @classmethod
    def of(cls, settings: StudySettings) -> "Study":
        """Raises InvalidTraining when the job of an arm is not valid."""
        bare = list(_cells(settings))
        if not bare:
            raise InvalidTraining(f"configuration {settings.path}: the study has no arm that trains")
        _check_alike(bare, settings.path)
        folder = bare[0].job.output
        cells = tuple(_with_places(each, folder) for each in bare)
        asked = settings.study.choices
        choices = None if asked is None else settings.path.parent.absolute() / asked
        return cls(folder, settings.study, cells, choices)

    @property
    def arms(self) -> tuple[str, ...]:
        """The names of all arms, of those that interpolate too, in the order of the file."""
        return tuple(dict.fromkeys(arm for cell in self.cells for arm in (cell.arm, *dict(cell.interpolated))))

    @property
    def targets(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(cell.target for cell in self.cells))

    def chosen(self, arms: Collection[str] = (), seeds: Collection[int] = ()) -> tuple[Cell, ...]:
        """The cells of these arms with these seeds, in their order; of all, where none are named.

        Raises:
            InvalidTraining: when the study has no such arm or seed.
        """
        _check_known("arm", arms, [cell.arm for cell in self.cells])
        _check_known("seed", seeds, [cell.seed for cell in self.cells])
        return tuple(
            cell for cell in self.cells if (not arms or cell.arm in arms) and (not seeds or cell.seed in seeds)
        )


def _check_known(kind: str, wanted: Collection[object], known: Iterable[object]) -> None:
    there = list(dict.fromkeys(known))
    for each in wanted:
        if each not in there:
            raise InvalidTraining(f"the study trains no {kind} {each!r}; it trains {', '.join(map(repr, there))}")


def short_name(text: str) -> str:
    """A text as a part of the names of files and runs."""
    return _NOT_IN_NAMES.sub("-", text.lower()).strip("-")[:_MOST_LETTERS] or "x"


def _cells(settings: StudySettings) -> Iterator[Cell]:
    study = settings.study
    targets = study.targets or (TargetConfig(name="target"),)
    trained = [each for each in study.arms if each.interpolates is None]
    for seed in study.seeds:
        for target in targets:
            for arm in trained:
                for rate in _learning_rates(arm, study):
                    yield _cell(settings, arm, target, seed, rate)


def _learning_rates(arm: ArmConfig, study: StudyConfig) -> tuple[float | None, ...]:
    return (None,) if "learning_rate" in arm.overrides else study.learning_rates or (None,)


def _cell(settings: StudySettings, arm: ArmConfig, target: TargetConfig, seed: int, rate: float | None) -> Cell:
    study = settings.study
    content = _merged(settings.job, {"data": target.overrides})
    content = _merged(content, _with_recipe(arm.overrides)) | {"seed": seed, "save_model": False, "trackers": []}
    if rate is not None:
        content["learning_rate"] = rate
    called = f"configuration {settings.path}: arm {arm.name!r}"
    job = job_of(content, settings.path.parent.absolute(), called)
    suffix = f" @ {rate:g}" if rate is not None and len(study.learning_rates) > 1 else ""
    interpolated = tuple(
        (f"{each.name}{suffix}", each.tuned_share)
        for each in study.arms
        if each.interpolates == arm.name and each.tuned_share is not None
    )
    return Cell(f"{arm.name}{suffix}", target.name, seed, job, job.data, interpolated)


def _with_recipe(overrides: Mapping[str, Any]) -> dict[str, Any]:
    """The keys of an arm with those of the recipe that it names, so that these win over the keys of all arms."""
    rehearsal = overrides.get("rehearsal")
    if not isinstance(rehearsal, Mapping):
        return dict(overrides)
    return {**overrides, "rehearsal": {**recipe_keys(rehearsal), **rehearsal}}


def _merged(content: Mapping[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    """Keys replaced by others, sections key by key; `false` for a section leaves it out."""
    merged = dict(content)
    for name, value in overrides.items():
        before = merged.get(name)
        if isinstance(value, Mapping):
            merged[name] = _merged(before if isinstance(before, Mapping) else {}, value)
        elif value is False and isinstance(before, Mapping):
            del merged[name]
        elif not (value is False and name in _SECTIONS and before is None):
            merged[name] = value
    return merged


_SECTIONS: Final = ("rehearsal", "flow", "ldifs", "lora")


def _check_alike(cells: list[Cell], path: Path) -> None:
    for cell in cells:
        if cell.job.num_workers > 1 or cell.job.min_workers:
            raise InvalidTraining(
                f"configuration {path}: a study trains each cell in one process; leave num_workers and min_workers out"
            )
        if cell.interpolated and cell.job.lora is not None:
            raise InvalidTraining(
                f"configuration {path}: arm {cell.interpolated[0][0]!r} interpolates {cell.arm!r}, which tunes "
                "adapters ([lora]) and not the model's weights; name an arm without them"
            )
        if cell.data.heldout_pretraining is None or cell.data.heldout_target is None:
            missing = "heldout_pretraining" if cell.data.heldout_pretraining is None else "heldout_target"
            raise InvalidTraining(
                f"configuration {path}: target {cell.target!r} has no data.{missing}; a study measures forgetting and "
                "the target loss on held-out text, so name both"
            )


def _what_matters(job: TrainConfig) -> dict[str, Any]:
    """A job without what its results do not depend on, and without defaults: a release that has more keys goes on."""
    without = {"output", "checkpoint_every", "profile", "max_failures", "use_gpu"}
    of_rehearsal = {"service_url", "run", "window_steps"}
    return job.model_dump(
        mode="json", exclude_defaults=True, exclude={**dict.fromkeys(without, True), "rehearsal": of_rehearsal}
    )


def _with_places(cell: Cell, folder: Path) -> Cell:
    """The cell with an output folder and a run of its own."""
    said = json.dumps(
        [str(folder), cell.arm, cell.target, cell.seed, cell.interpolated, _what_matters(cell.job)], sort_keys=True
    )
    cell = replace(cell, key=hashlib.sha256(said.encode()).hexdigest()[:12])
    job = cell.job.model_copy(update={"output": folder / "cells" / cell.name})
    if job.rehearsal is not None:
        run = f"{job.rehearsal.run[:_MOST_LETTERS]}-{cell.key}"
        job = job.model_copy(update={"rehearsal": job.rehearsal.model_copy(update={"run": run})})
    data = job.data.model_copy(update={"heldout_target": None, "heldout_pretraining": None})
    return replace(cell, job=job.model_copy(update={"data": data}))
