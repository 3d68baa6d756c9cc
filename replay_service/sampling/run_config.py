"""What a run is told when it is created."""

import json
import math
from dataclasses import asdict, dataclass, field
from fractions import Fraction
from functools import cached_property
from typing import Any, Final, Literal, get_args

from replay_service.sampling.controller import ForgettingBudget, ForgettingLaw
from replay_service.sampling.damage import SIGNALS, Signal
from replay_service.sampling.forgetting import LEAST_REPORTS
from replay_service.sampling.injection import INJECTION_MODES, InjectionMode, decimal_of, exact_ratio, rows_due
from replay_service.sampling.policies import POLICY_NAMES, MixCd, Policy, PolicyName, Uniform
from replay_service.sampling.schedule import Schedule

FeedbackMode = Literal["latest", "fenced"]
FEEDBACK_MODES: tuple[str, ...] = get_args(FeedbackMode)

AUTO: Final = "auto"
"""The injection ratio of a run whose controller chooses it."""

FIXED = frozenset(
    {
        "global_batch_size",
        "injection_mode",
        "injection_fixed",
        "seed",
        "report_window_steps",
        "feedback",
        "held_back",
    }
)
"""What stays as it was when the run was created."""

INJECTION = frozenset({"injection_ratio", "schedule", "budget"})
"""What stays likewise where `injection_fixed` promises it."""


@dataclass(frozen=True, slots=True)
class Feedback:
    """When a plan takes reports into account.

    `latest`: those that have come. `fenced`: exactly those of the steps up to `lag` before the planned one, in the
    order of the steps and whatever the order they came in; the plan waits for them. So two executions of a job get the
    same plans, however their requests were timed.

    Raises:
        ValueError: names what is out of range.
    """

    mode: FeedbackMode = "latest"
    lag: int = 8

    def __post_init__(self) -> None:
        _require(self.mode in FEEDBACK_MODES, "feedback.mode", self.mode, f"one of {', '.join(FEEDBACK_MODES)}")
        _require(1 <= self.lag <= 1 << 20, "feedback.lag", self.lag, "in [1, 2**20]")


@dataclass(frozen=True)
class RunConfig:
    """One run's configuration.

    Attributes:
        global_batch_size: sequences in one step of the whole job: with those rehearsed when they `replace` others,
            without them when they are `add`ed.
        injection_ratio: the share of all sequences that is rehearsal, as a decimal string ("0.05"); or "auto": what
            holds forgetting within `budget`.
        injection_mode: `replace` or `add`.
        schedule: how a written ratio runs over the steps.
        budget: what an `auto` ratio holds.
        injection_fixed: a promise that a constant ratio never changes, so that clients know without asking how many
            rows each step rehearses.
        seed: every draw of the run is keyed by it; 0 to 2**63 - 1.
        policy: `uniform` or `mix_cd`.
        sharpness: exponent of the damage rate in `mix_cd`.
        floor: share of the draws that stays uniform in `mix_cd`.
        signal: what counts as damage: `token_flip`, `excess_loss` or `threshold`.
        learnable_nats, delta_nats: the two bounds of the `threshold` signal, nats per token.
        prior_weight: how many reported samples the pooled prior of a damage rate is worth.
        half_life_steps: after how many steps a report counts half.
        report_window_steps: how many steps a plan waits for its reports before they come too late.
        feedback: when a plan takes reports into account.
        adopt_every_steps: look for a later generation of the corpus so many steps after the last one was adopted, and
            see it from then on; 0 means only when asked to. Not with fenced feedback: when an ingest ends would decide.
        held_back: the share of each stratum that its first epoch leaves out, in whole 64ths. Later epochs take it in
            little by little, so that forgetting can be estimated on samples that the run has not trained on.

    Raises:
        ValueError: names the first attribute that is out of range.
    """

    global_batch_size: int
    injection_ratio: str
    injection_mode: InjectionMode = "replace"
    schedule: Schedule = field(default_factory=Schedule)
    budget: ForgettingBudget = field(default_factory=ForgettingBudget)
    injection_fixed: bool = False
    seed: int = 0
    policy: PolicyName = "mix_cd"
    sharpness: float = 1.0
    floor: float = 0.1
    signal: Signal = "token_flip"
    learnable_nats: float = 3.0
    delta_nats: float = 0.1
    prior_weight: float = 8.0
    half_life_steps: float = 500.0
    report_window_steps: int = 1024
    feedback: Feedback = field(default_factory=Feedback)
    adopt_every_steps: int = 0
    held_back: float = 0.25

    def __post_init__(self) -> None:
        _require(self.injection_mode in INJECTION_MODES, "injection_mode", self.injection_mode, "replace or add")
        _require(0 <= self.ratio <= 1, "injection_ratio", self.injection_ratio, "in [0, 1]")
        if self.is_auto and self.schedule.curve != "constant":
            raise ValueError("an auto injection_ratio follows its budget; leave the schedule out")
        if self.injection_fixed and (self.is_auto or self.schedule.curve != "constant"):
            raise ValueError(
                "injection_fixed promises the same injection ratio in all steps; write injection_ratio as a number and "
                "leave the schedule out, or leave injection_fixed out"
            )
        if self.injection_mode == "add" and self.most_ratio() == 1:
            raise ValueError("injection_mode add goes with injection ratios below 1; with 1 there is nothing to add to")
        _require(self.global_batch_size >= 1, "global_batch_size", self.global_batch_size, "at least 1")
        _require(0 <= self.seed < 2**63, "seed", self.seed, "in [0, 2**63)")
        _require(self.policy in POLICY_NAMES, "policy", self.policy, f"one of {', '.join(POLICY_NAMES)}")
        _require(self.signal in SIGNALS, "signal", self.signal, f"one of {', '.join(SIGNALS)}")
        _require(0.0 <= self.sharpness <= 16.0, "sharpness", self.sharpness, "in [0, 16]")
        _require(0.0 <= self.floor <= 1.0, "floor", self.floor, "in [0, 1]")
        _require(math.isfinite(self.learnable_nats), "learnable_nats", self.learnable_nats, "finite")
        _require(math.isfinite(self.delta_nats), "delta_nats", self.delta_nats, "finite")
        _require(0.0 < self.prior_weight < math.inf, "prior_weight", self.prior_weight, "positive and finite")
        _require(self.half_life_steps > 0.0, "half_life_steps", self.half_life_steps, "positive")
        _require(0 <= self.adopt_every_steps < 2**62, "adopt_every_steps", self.adopt_every_steps, "in [0, 2**62)")
        if self.adopt_every_steps and self.fence is not None:
            raise ValueError(
                "adopt_every_steps does not go with fenced feedback: the plans would depend on when an "
                "ingest ends; leave it 0 and adopt generations at steps of your choice"
            )
        _require(0.0 <= self.held_back <= 0.5, "held_back", self.held_back, "in [0, 0.5]")
        _require(self.report_window_steps >= 1, "report_window_steps", self.report_window_steps, "at least 1")

    @property
    def fence(self) -> int | None:
        """By how many steps reports lag behind plans in fenced mode, else None."""
        return self.feedback.lag if self.feedback.mode == "fenced" else None

    @property
    def is_auto(self) -> bool:
        return self.injection_ratio == AUTO

    @cached_property
    def ratio(self) -> Fraction:
        """The injection ratio that is written, or that an `auto` run begins with."""
        return exact_ratio(self.budget.start() if self.is_auto else self.injection_ratio)

    def most_ratio(self) -> Fraction:
        """The greatest injection ratio that any step can have."""
        return exact_ratio(self.budget.most_ratio) if self.is_auto else self.schedule.most(self.ratio)

    def most_rows(self) -> int:
        """The most rows that a step can rehearse."""
        return math.ceil(rows_due(self.most_ratio(), self.injection_mode, self.global_batch_size))

    @property
    def decision_steps(self) -> int:
        """Steps between two decisions of the controller."""
        return self.budget.every_steps or max(1, round(self.half_life_steps))

    @property
    def seeing_ratio(self) -> float:
        """The injection ratio that gives twice as many reports in a half-life as an estimate takes."""
        return 2.0 * LEAST_REPORTS / (self.global_batch_size * self.half_life_steps)

    def make_policy(self) -> Policy:
        return MixCd(self.sharpness, self.floor) if self.policy == "mix_cd" else Uniform()

    def changed(self, **changes: object) -> "RunConfig":
        """This configuration with some attributes changed.

        Raises:
            ValueError: when an attribute is unknown, fixed for the life of a run, or out of range.
        """
        for name in changes:
            if name in FIXED or name not in RunConfig.__dataclass_fields__:
                raise ValueError(f"{name} cannot be changed while a run goes on")
            if self.injection_fixed and name in INJECTION:
                raise ValueError(
                    f"{name} cannot be changed: the run was created with injection_fixed, and its clients rely on it; "
                    "to rehearse more or less, create a run without it"
                )
        return RunConfig.from_dict({**asdict(self), **changes})

    def to_json(self) -> str:
        return json.dumps(asdict(self), sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> "RunConfig":
        """From what `to_json` gives, in this release or an earlier one."""
        return cls.from_journal(json.loads(text))

    @classmethod
    def from_journal(cls, values: dict[str, Any]) -> "RunConfig":
        """From what `dataclasses.asdict` gave, in this release or an earlier one, whose ratios need be no decimals."""
        schedule, budget = dict(values.get("schedule", {})), dict(values.get("budget", {}))
        schedule["points"] = [(step, decimal_of(str(ratio))) for step, ratio in schedule.get("points", ())]
        for part in (schedule, budget):
            part |= {name: decimal_of(part[name]) for name in part if name.endswith("_ratio")}
        ratio = values["injection_ratio"]
        written = ratio if ratio == AUTO else decimal_of(ratio)
        held_back = values.get("held_back", 0.0)
        return cls.from_dict(
            {**values, "injection_ratio": written, "schedule": schedule, "budget": budget, "held_back": held_back}
        )

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "RunConfig":
        """From what `dataclasses.asdict` gives."""
        schedule, budget = dict(values.get("schedule", {})), dict(values.get("budget", {}))
        if "points" in schedule:
            schedule["points"] = tuple((int(step), str(ratio)) for step, ratio in schedule["points"])
        if budget.get("law") is not None:
            budget["law"] = ForgettingLaw(**budget["law"])
        parts = {"feedback": Feedback(**values.get("feedback", {}))}
        return cls(**{**values, **parts, "schedule": Schedule(**schedule), "budget": ForgettingBudget(**budget)})


def _require(holds: bool, name: str, value: object, range_: str) -> None:
    if not holds:
        raise ValueError(f"{name} must be {range_}, not {value}")
