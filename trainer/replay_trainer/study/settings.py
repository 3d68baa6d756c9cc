"""The section `[study]` of a job's file: which jobs a study compares."""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Final

from pydantic import ConfigDict, Field, ValidationError, field_validator, model_validator

from replay_trainer.config import read_toml
from replay_trainer.errors import InvalidTraining
from replay_trainer.keys import Section, problems_of, unknown_key

SET_BY_STUDY: Final = frozenset(
    {
        "checkpoint_every",
        "data",
        "evaluate_every",
        "max_failures",
        "min_workers",
        "model",
        "output",
        "num_workers",
        "precision",
        "save_model",
        "seed",
        "trackers",
        "use_gpu",
    }
)
"""Keys of a job that are alike in all arms, or that a study chooses for each cell."""
SET_BY_STUDY_IN_REHEARSAL: Final = frozenset({"run", "service_url"})

OF_A_TARGET: Final = frozenset({"heldout_target", "layout", "prompt_column", "response_column", "target"})
"""Keys of `[data]` in which targets may differ."""

_Positive = Annotated[float, Field(gt=0)]
_Seed = Annotated[int, Field(ge=0)]


class _Overriding(Section):
    """A section whose further keys are those of a job."""

    model_config = ConfigDict(extra="allow", frozen=True, hide_input_in_errors=True)

    @property
    def overrides(self) -> dict[str, Any]:
        """Keys and sections of the job, as they are written."""
        return dict(self.model_extra or {})


class ArmConfig(_Overriding):
    """A method to compare: a name, and the keys of the job in which it differs.

    `rehearsal = false` leaves that section out.
    """

    name: str = Field(min_length=1, description="What tables and pictures call the arm.")
    interpolates: str | None = Field(
        None, description="Name of another arm, whose tuned weights are interpolated with the base model's."
    )
    tuned_share: float | None = Field(
        None, gt=0, lt=1, description="With `interpolates`: share of the tuned weights; the rest are the base model's."
    )

    @model_validator(mode="after")
    def _is_one_or_the_other(self) -> "ArmConfig":
        if (self.interpolates is None) != (self.tuned_share is None):
            raise ValueError("interpolates and tuned_share go together; name both, or neither")
        if self.interpolates is not None and self.overrides:
            raise ValueError(f"an arm that interpolates trains nothing, so leave out {', '.join(self.overrides)}")
        taken = [*(SET_BY_STUDY & self.overrides.keys())]
        rehearsal = self.overrides.get("rehearsal")
        if isinstance(rehearsal, Mapping):
            taken += [f"rehearsal.{name}" for name in SET_BY_STUDY_IN_REHEARSAL & rehearsal.keys()]
        if taken:
            raise ValueError(f"{', '.join(sorted(taken))} must be alike in all arms; put it before [study]")
        return self


class TargetConfig(_Overriding):
    """A fine-tuning target: a name, and the keys of `[data]` in which it differs."""

    name: str = Field(min_length=1, description="What tables and pictures call the target.")
    tuning: bool = Field(
        False,
        description="Choose the best arm on such targets, and report it on the others. With none of them, or no "
        "others, all serve for both.",
    )

    @model_validator(mode="after")
    def _differs_in_the_target(self) -> "TargetConfig":
        for name in self.overrides.keys() - OF_A_TARGET:
            raise ValueError(f"{name}: {unknown_key(name, sorted(OF_A_TARGET))}")
        return self


class StudyConfig(Section):
    """A study: arms to compare, on targets, with seeds."""

    arms: tuple[ArmConfig, ...] = Field(min_length=1, description="The methods to compare.")
    targets: tuple[TargetConfig, ...] = Field(
        (), description="The fine-tuning targets. Without any, the job's own `[data]` is the only one."
    )
    seeds: tuple[_Seed, ...] = Field(
        (0, 1, 2), min_length=1, description="Seeds. One seed means the same order of target rows in all arms."
    )
    learning_rates: tuple[_Positive, ...] = Field(
        (), description="Learning rates that each arm is trained at, unless it names its own. Empty: the job's."
    )
    heldout_rows: int = Field(
        1024, ge=2, description="Most held-out rows of each domain, and of each target, that are measured."
    )
    choices: str | None = Field(
        None,
        description="Multiple-choice questions that every model is asked: a `.parquet` or `.jsonl` file, or a folder "
        "of them, with the columns `prompt`, `choices`, `answer` and, if wanted, `task`.",
    )
    target_loss_margin: float = Field(
        0.01, ge=0, description="Rise of the target loss that counts as none in the recommendation, nats per token."
    )
    num_cpus: float = Field(1.0, gt=0, description="CPUs of Ray for one cell.")
    cells_at_once: int = Field(0, ge=0, description="Most cells at once. 0: as many as Ray has CPUs, or GPUs, for.")
    max_retries: int = Field(2, ge=0, description="How often a cell is repeated whose process died.")

    @field_validator("arms", "targets")
    @classmethod
    def _names_differ(cls, parts: tuple[Any, ...]) -> tuple[Any, ...]:
        check_differ("name", (each.name for each in parts))
        return parts

    @field_validator("seeds", "learning_rates")
    @classmethod
    def _values_differ(cls, values: tuple[Any, ...]) -> tuple[Any, ...]:
        check_differ("value", map(str, values))
        return values

    @model_validator(mode="after")
    def _interpolates_what_is_trained(self) -> "StudyConfig":
        trained = [each.name for each in self.arms if each.interpolates is None]
        for arm in self.arms:
            if arm.interpolates is not None and arm.interpolates not in trained:
                raise ValueError(
                    f"arm {arm.name!r} interpolates {arm.interpolates!r}, which is no arm that trains; there are "
                    f"{', '.join(trained) or 'none'}"
                )
        return self


def check_differ(kind: str, values: Iterable[str]) -> None:
    """Raises ValueError, for pydantic, when a value is there twice."""
    twice = [value for value, count in Counter(values).items() if count > 1]
    if twice:
        raise ValueError(f"the {kind} {twice[0]!r} is there twice; each must differ from the others")


@dataclass(frozen=True, slots=True)
class StudySettings:
    """A study's file.

    Attributes:
        path: the file; relative paths in it count from its folder.
        job: the keys and sections of the job, without `[study]`.
        study: that section.
    """

    path: Path
    job: dict[str, Any]
    study: StudyConfig

    @classmethod
    def read(cls, path: Path) -> "StudySettings":
        """Raises InvalidTraining when the file cannot be read, or `[study]` is missing or not valid."""
        return cls.of(read_toml(path), path)

    @classmethod
    def of(cls, content: Mapping[str, Any], path: Path) -> "StudySettings":
        """From what `tomllib` reads; raises InvalidTraining."""
        job = dict(content)
        section = job.pop("study", None)
        if section is None:
            raise InvalidTraining(
                f"{path} has no section [study], which says what to compare; see the how-to on studies"
            )
        try:
            return cls(path, job, StudyConfig.model_validate(section))
        except ValidationError as error:
            raise InvalidTraining(f"configuration {path}: [study] {problems_of(error, StudyConfig)}") from error
