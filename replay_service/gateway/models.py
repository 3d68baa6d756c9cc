"""The shapes of requests and answers. Unknown keys are refused."""

from dataclasses import asdict
from functools import lru_cache
from typing import Annotated, Any, Final, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, Strict, model_validator

from replay_service.ledger.lifecycle import Lifecycle
from replay_service.names import NAME_PATTERN, NAME_RULE
from replay_service.sampling.controller import ForgettingBudget, ForgettingLaw
from replay_service.sampling.injection import Ratio
from replay_service.sampling.run_config import FIXED, Feedback, RunConfig
from replay_service.sampling.schedule import PointStep, Schedule
from replay_service.setting_models import fields_of
from replay_service.wire.batches import Compression

MAX_INT64 = 2**63 - 1

Name = Annotated[str, Field(pattern=NAME_PATTERN, description=NAME_RULE, examples=["my-run"])]
Int = Annotated[int, Strict()]
Float = Annotated[float, Strict()]
"""Numbers that a caller sends; no strings and no truth values, which pydantic would else take for numbers."""

Count = Annotated[Int, Field(ge=0, le=1 << 48)]

Step = Annotated[Int, Field(ge=0, le=MAX_INT64, description="Global training step, from 0.")]


class Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Problem(Model):
    """An error, after RFC 9457; further members say more."""

    model_config = ConfigDict(extra="allow")

    type: str = Field(
        description="Stable name of the kind of problem.", examples=["urn:replay-service:problem:unknown-run"]
    )
    title: str = Field(description="What kind of problem it is.")
    status: int = Field(description="The HTTP status.")
    detail: str = Field(description="What was wrong this time, and what to do.")


WIRE_TYPES: Final[dict[Any, Any]] = {
    int: Int,
    float: Float,
    bool: Annotated[bool, Strict()],
    Ratio: Annotated[str | Float, AfterValidator(str)],
    PointStep: Annotated[Int, Field(ge=1, le=MAX_INT64)],
}
"""How the types of settings are sent: a number is no string, and a ratio may be a number."""


@fields_of(Feedback, types=WIRE_TYPES)
class FeedbackSettings(Model):
    """When a plan takes reports into account."""


@fields_of(Schedule, types=WIRE_TYPES)
class ScheduleSettings(Model):
    """How a written injection ratio changes over the steps of the run."""


@fields_of(ForgettingLaw, types=WIRE_TYPES)
class LawSettings(Model):
    """The forgetting law, fitted: A * D_ft ** beta / ((1 + B * p) * N) ** alpha nats per token are forgotten."""


@fields_of(ForgettingBudget, types=WIRE_TYPES | {ForgettingLaw: LawSettings})
class BudgetSettings(Model):
    """How much forgetting an `auto` injection ratio allows."""


RUN_TYPES: Final = WIRE_TYPES | {
    Feedback: FeedbackSettings,
    Schedule: ScheduleSettings,
    ForgettingBudget: BudgetSettings,
}


@fields_of(RunConfig, types=RUN_TYPES)
class RunSettings(Model):
    """How a run samples."""

    @staticmethod
    @lru_cache(maxsize=1024)
    def of(config: RunConfig) -> "RunSettings":
        """The same as it is sent; a list of runs asks for it again and again."""
        return RunSettings(**asdict(config))

    def to_config(self) -> RunConfig:
        """Raises ValueError when the values do not go together."""
        return RunConfig.from_dict(self.model_dump())


class RunCreate(RunSettings):
    """A new run."""

    run: Name
    corpus: Name


@fields_of(RunConfig, types=RUN_TYPES, leave_out=FIXED, optional=True)
class RunChange(Model):
    """Changes of a run's configuration; settings that are left out stay as they are."""

    def changes(self) -> dict[str, object]:
        """The settings that were given, by name."""
        return self.model_dump(exclude_none=True)


class AdoptRequest(Model):
    """The generation of its corpus that a run shall see."""

    generation: Int | None = Field(None, ge=1, le=MAX_INT64, description="By default the latest.")


class RewindRequest(Model):
    """The step to go back to."""

    step: Int = Field(ge=-1, le=MAX_INT64, description="The last step to keep; -1 keeps none.")


class FinishRequest(Model):
    """The end of a job."""

    num_steps: Step = Field(description="Steps of the job: its last one is the one before this number.")
    attempt: Int = Field(0, ge=0, le=1 << 30, description="That of the batches; 0 means the run's current one.")


JobName = Annotated[str, Field(min_length=1, max_length=200, description="Name of a job, the same after a restart.")]


class ClaimRequest(Model):
    """A job that uses a run."""

    job: JobName
    take_over: Annotated[bool, Strict()] = Field(False, description="Take the run from the job that uses it.")


class ReleaseRequest(Model):
    """A job that no longer uses a run."""

    job: JobName


class ClaimResult(Model):
    """What became of a claim."""

    valid_s: float = Field(description="For how long the claim stands, seconds; 0: there is none.")


class CloseRequest(Model):
    """Nothing but an object: {}."""


class RunMoment(Model):
    """The committed point of a run's journal that an answer is of."""

    as_of: int = Field(description="Number of the last event that the answer knows; events after it are to come.")
    attempt: int = Field(description="Counts the rewinds, from 1.")
    last_plan_at: str | None = Field(description="When the latest plan was committed. ISO 8601, UTC.")
    last_report_at: str | None = Field(description="When the latest report was committed. ISO 8601, UTC.")
    last_trained_at: str | None = Field(description="When a rank last reported what it has trained on. ISO 8601, UTC.")
    state: Lifecycle = Field(
        description="`waiting`: no step has a plan. `running`: something was heard of the job within the setting "
        "`stale_after_s`. `stale`: nothing was. `finished`: the job said that it has ended, and nobody has asked for a "
        "later step since. `closed`: an operator closed the run. `damaged`: a part of its corpus or of its journal "
        "cannot be read."
    )


class RunSummary(RunMoment):
    """A run and how far it is, in few words."""

    run: str
    corpus: str
    generation: int = Field(description="The generation of the corpus that the run sees.")
    created_at: str = Field(description="ISO 8601, UTC.")
    config: RunSettings = Field(description="As it is now.")
    next_step: int = Field(description="The first step that has no plan yet.")
    closed: bool = Field(description="True: the run plans no further step.")


class RunInfo(RunSummary):
    """A run and how far it is."""

    policy_version: int = Field(description="Counts the changes of the probabilities, from 1.")
    max_window_steps: int = Field(
        description="The most steps that one request for batches may ask for; of a fenced run, its lag."
    )


class RunList(Model):
    """Some runs, by name."""

    runs: list[RunSummary]
    next: str | None = Field(description="Give it as `after` to go on; null where there are no more.")


class BatchRequest(Model):
    """The samples to send: those of one rank in a window of steps."""

    step: Step
    num_steps: Int = Field(1, ge=1, description="Steps in the window, the first one included.")
    rank: Int = Field(0, ge=0, le=1 << 20, description="The rank that asks.")
    world_size: Int = Field(1, ge=1, le=1 << 20, description="Ranks in the job.")
    compression: Compression = Field("none", description="Of the buffers in an Arrow answer: zstd costs CPU time.")
    topk: bool = Field(False, description="Also send the base model's likeliest tokens, which the corpus must store.")
    text: bool = Field(False, description="With JSON: also send the samples as text, for people.")


class LossRow(Model):
    """Measurements of one rehearsed sample, from the training forward pass."""

    step: Step
    rank: Int = Field(ge=0, le=1 << 20)
    sample_id: Int = Field(ge=0, le=MAX_INT64)
    loss_nats: Float = Field(description="Mean loss over num_tokens predictions, nats per token.")
    num_tokens: Int = Field(ge=0, le=1 << 30, description="Predicted tokens; 0: the sample could not be measured.")
    attempt: Int = Field(0, ge=0, le=1 << 30, description="That of the batch; 0 means the run's current one.")
    num_flips: Int = Field(
        ge=0,
        le=1 << 30,
        description="Tokens that the base model's argmax got right and this model's gets wrong.",
    )
    num_gains: Int | None = Field(
        None,
        ge=0,
        le=1 << 30,
        description="Tokens that the base model's argmax got wrong and this model's gets right; null: not counted.",
    )


class LossReport(Model):
    rows: list[LossRow]


class TrainedReport(Model):
    """The rows that one rank has trained on in some steps, rehearsed ones included."""

    rank: Int = Field(ge=0, le=1 << 20)
    first_step: Step = Field(description="The first of the steps.")
    next_step: Step = Field(description="The step after the last of them.")
    num_rows: Count
    num_rehearsed_rows: Count = Field(description="Of those, rehearsed ones.")
    num_tokens: Count = Field(description="Predictions that counted in the loss: tokens, or labels.")
    num_rehearsed_tokens: Count = Field(description="Of those, in rehearsed rows.")
    attempt: Int = Field(0, ge=0, le=1 << 30, description="That of the batches; 0 means the run's current one.")

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.first_step >= self.next_step:
            raise ValueError("next_step must be greater than first_step")
        if self.num_rehearsed_rows > self.num_rows or self.num_rehearsed_tokens > self.num_tokens:
            raise ValueError("rehearsed rows and tokens are among all rows and tokens, so there are no more of them")
        return self


class TrainedResult(Model):
    """The effect of a report of trained rows."""

    counted: bool = Field(description="False where the steps were counted before, or are of before a rewind.")


class ReportResult(Model):
    """The effect of a report, in rows."""

    accepted: int = Field(description="Folded into the damage estimate, durably.")
    duplicate: int = Field(description="Reported before; changed nothing.")
    rejected: int = Field(description="Came too late, or from before a rewind; changed nothing.")


class Health(Model):
    status: Literal["ok"]
