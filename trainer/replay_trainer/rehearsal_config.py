"""The section `[rehearsal]` of a job's file: which rows are rehearsed, how many, and from which corpus."""

from dataclasses import fields
from typing import Annotated, Any, Final, Literal

from pydantic import BeforeValidator, Field, field_validator, model_validator

from replay_service.names import NAME_PATTERN
from replay_service.sampling.controller import ForgettingBudget, ForgettingLaw
from replay_service.sampling.injection import Ratio
from replay_service.sampling.run_config import Feedback, RunConfig
from replay_service.sampling.schedule import Schedule
from replay_service.setting_models import fields_of
from replay_trainer.errors import ServiceError
from replay_trainer.keys import Section
from replay_trainer.recipe import OBJECTIVES, RECIPES, Aim, Recipe, with_recipe
from replay_trainer.service_urls import service_urls
from replay_trainer.timing import MOST_TIMES, Timing, lasting
from replay_trainer.windows import Auto


def _as_decimal(value: object) -> object:
    """A ratio that the file gives as a number, as the decimal string that was written."""
    return str(value) if isinstance(value, int | float) and not isinstance(value, bool) else value


TOML_TYPES: Final[dict[Any, Any]] = {Ratio: Annotated[str, BeforeValidator(_as_decimal)]}
"""Types of settings that TOML files write in other ways: a ratio may be a number."""


@fields_of(Schedule, types=TOML_TYPES)
class ScheduleConfig(Section):
    """How a written injection ratio changes over the steps of the run."""


@fields_of(ForgettingLaw, types=TOML_TYPES)
class LawConfig(Section):
    """The forgetting law, fitted: A * D_ft ** beta / ((1 + B * p) * N) ** alpha nats per token are forgotten."""


@fields_of(ForgettingBudget, types=TOML_TYPES | {ForgettingLaw: LawConfig})
class BudgetConfig(Section):
    """How much forgetting an `auto` injection ratio allows."""


OF_THE_JOB: Final = frozenset({"global_batch_size", "seed"})
"""Settings of a run that are keys of the whole job, outside this section."""


@fields_of(
    RunConfig,
    types=TOML_TYPES | {Schedule: ScheduleConfig, ForgettingBudget: BudgetConfig},
    leave_out=OF_THE_JOB | {"feedback"},
)
@fields_of(Feedback, types=TOML_TYPES, names={"mode": "feedback", "lag": "feedback_lag"})
class RehearsalConfig(Section):
    """The rehearsal: which rows, how many, and from which corpus.

    A token has no place in a job's file, which is kept and shown around; `replay_trainer.client` takes it from the
    environment.
    """

    service_url: str | tuple[str, ...] = Field(
        "http://127.0.0.1:8400",
        description="URL of the replay service. Several URLs of one service are a list, or have commas between them.",
    )
    corpus: str = Field(pattern=NAME_PATTERN, description="Corpus to rehearse from.")
    run: str = Field(pattern=NAME_PATTERN, description="Name of this job's run at the service.")
    recipe: Recipe | None = Field(
        None,
        description="Sets other keys of this section, where they are not written. `recommended`: what the evidence "
        "supports. `papers`: what the papers of the methods chose.",
    )
    objective: Aim | None = Field(
        None,
        description="With recipe `recommended`: what to keep low, forgetting on average (`mean`, the default) or of "
        "the domain that forgets most (`worst`). Chooses `signal` and `sharpness`.",
    )
    rehearsal_weight: float = Field(1.0, gt=0, description="Weight of a rehearsed row in the loss.")
    rehearsal_loss: Literal["cross_entropy", "distill", "mixed"] = Field(
        "cross_entropy",
        description="`distill`: towards the base model's distribution, see `teacher`. `mixed`: half of each.",
    )
    teacher: Literal["auto", "stored", "base"] = Field(
        "auto",
        description="Whom distilled rehearsal learns from. `stored`: the likeliest tokens, which the corpus must "
        "store. `base`: the base model itself, run on the rehearsed rows; with [lora] it takes no memory. `auto`: "
        "`stored` where the corpus stores them and chunked_head is off, else `base`.",
    )
    timing: Timing = Field(
        "even",
        description="When rows are rehearsed. `even`: at one ratio, or by the schedule. `lasting`: as many in all, "
        "most of them where their effect lasts: in the last quarter of a job with a constant learning rate, in the "
        "middle half of one whose rate falls.",
    )
    window_steps: Annotated[int, Field(ge=1)] | Auto = Field(
        "auto",
        description="Steps in one request; the next request is sent ahead. `auto`: by rows, memory and freshness.",
    )

    @property
    def is_distilled(self) -> bool:
        """Whether rehearsed rows learn from the base model."""
        return self.rehearsal_loss != "cross_entropy"

    @property
    def needs_topk(self) -> bool:
        """Whether they learn from the likeliest tokens that the corpus stores; False while `teacher` is `auto`."""
        return self.is_distilled and self.teacher == "stored"

    @property
    def needs_base_model(self) -> bool:
        """Whether they learn from the base model itself; False while `teacher` is `auto`."""
        return self.is_distilled and self.teacher == "base"

    def in_words(self) -> str:
        """The recipe and the values of its keys: those that it set, and those that were written instead."""
        names = {name: None for each in (*RECIPES.values(), *OBJECTIVES.values()) for name in each}
        chosen = (f"{name} {getattr(self, name)}" for name in names)
        return f"recipe {self.recipe}: {', '.join(chosen)}"

    @model_validator(mode="before")
    @classmethod
    def _holds_no_token(cls, content: object) -> object:
        if isinstance(content, dict) and "token" in content:
            raise ValueError("a token has no place in a job's file; put it into the environment variable REPLAY_TOKEN")
        return content

    @field_validator("service_url")
    @classmethod
    def _are_urls(cls, named: str | tuple[str, ...]) -> str | tuple[str, ...]:
        try:
            service_urls(named)
        except ServiceError as error:
            raise ValueError(str(error)) from None
        return named

    @model_validator(mode="before")
    @classmethod
    def _with_recipe(cls, content: object) -> object:
        return with_recipe(content) if isinstance(content, dict) else content

    @model_validator(mode="after")
    def _is_valid_run(self) -> "RehearsalConfig":
        """Check the values together, as the service does too, before any worker starts."""
        run = RunConfig.from_dict({"global_batch_size": 1, **self.run_settings()})
        if self.timing == "lasting":
            _check_timed(run)
        return self

    @model_validator(mode="after")
    def _fits_fence(self) -> "RehearsalConfig":
        feedback = Feedback(**self.run_settings()["feedback"])
        if feedback.mode == "fenced" and self.window_steps != "auto" and self.window_steps > feedback.lag:
            raise ValueError(
                f"window_steps {self.window_steps} is more than feedback_lag {feedback.lag}: a window would wait "
                "for its own reports"
            )
        return self

    def run_settings(self) -> dict[str, Any]:
        """The settings of the run at the service, without those of the whole job."""
        values = self.model_dump()
        feedback = {"mode": values.pop("feedback"), "lag": values.pop("feedback_lag")}
        names = {each.name for each in fields(RunConfig)}
        return {**{name: value for name, value in values.items() if name in names}, "feedback": feedback}

    def timed_settings(self, num_steps: int, scheduler: str) -> dict[str, Any]:
        """Those settings for a training of so many steps, with this schedule of its learning rate.

        Raises InvalidTraining when the rehearsal is timed, and nobody knows when by this schedule.
        """
        settings = self.run_settings()
        if self.timing == "even":
            return settings
        ratio, mode = settings["injection_ratio"], settings["injection_mode"]
        return settings | lasting(ratio, num_steps=num_steps, scheduler=scheduler, injection_mode=mode)


def _check_timed(run: RunConfig) -> None:
    """Raises ValueError when the ratio of a run cannot be timed."""
    if run.is_auto or run.injection_fixed or run.schedule.curve != "constant":
        raise ValueError(
            "timing lasting makes a schedule of its own; leave out the schedule, injection_fixed and the ratio auto, "
            "or leave timing out"
        )
    if run.injection_mode == "replace" and run.ratio * MOST_TIMES > 1:
        raise ValueError(
            f"timing lasting takes up to {float(MOST_TIMES):g} times the injection ratio, and {run.injection_ratio} "
            "would come to more than 1; write a lower one"
        )
