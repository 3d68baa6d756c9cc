"""What a run is told when it is created."""

import json
import math
from dataclasses import asdict, dataclass, field
from fractions import Fraction
from functools import cached_property
from typing import Any, Final, Literal

from replay_service.sampling.bounds import check_bounds
from replay_service.sampling.controller import ForgettingBudget, ForgettingLaw, decision_steps
from replay_service.sampling.damage import Signal
from replay_service.sampling.injection import InjectionMode, Ratio, decimal_of, exact_ratio, rows_due
from replay_service.sampling.lines import LEAST_REPORTS
from replay_service.sampling.policies import MixCd, PermutedMixCd, Policy, PolicyName, Stratified, Uniform
from replay_service.sampling.schedule import Schedule

FeedbackMode = Literal["latest", "fenced"]

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

    In `latest` mode a plan uses the reports that have come. In `fenced` mode it uses exactly those of the steps up to
    `lag` before the planned one, in the order of the steps, and waits for them. So two executions of a job get the same
    plans, however their requests were timed.

    Raises:
        ValueError: names what is out of range.
    """

    mode: FeedbackMode = field(
        default="latest",
        metadata={
            "description": "`latest`: plans use the reports that have come. `fenced`: plans wait for exactly the "
            "reports that are due, so that two executions of a job get the same plans."
        },
    )
    lag: int = field(
        default=8,
        metadata={
            "description": "With `fenced` feedback: by how many steps reports lag behind plans.",
            "ge": 1,
            "le": 1 << 20,
        },
    )

    def __post_init__(self) -> None:
        check_bounds(self, "feedback.")


@dataclass(frozen=True)
class RunConfig:
    """One run's configuration.

    Raises:
        ValueError: names the first field that is out of range.
    """

    global_batch_size: int = field(
        metadata={
            "description": "Sequences in one step of the whole job. With `injection_mode` `replace`, rehearsed rows "
            "are among them; with `add`, they come on top.",
            "ge": 1,
            "le": 1 << 24,
        }
    )
    injection_ratio: Ratio = field(
        metadata={
            "description": "Share of all sequences that is rehearsal, in [0, 1], taken as the decimal that is "
            'written, such as "0.05"; or "auto": the service holds forgetting within `budget`.',
            "examples": ["0.05"],
        }
    )
    injection_mode: InjectionMode = field(
        default="replace",
        metadata={
            "description": "`replace`: rehearsed rows take the place of fine-tuning rows. `add`: they come on top."
        },
    )
    schedule: Schedule = field(
        default_factory=Schedule, metadata={"description": "How a written ratio changes over the steps."}
    )
    budget: ForgettingBudget = field(
        default_factory=ForgettingBudget, metadata={"description": "How much forgetting an `auto` ratio allows."}
    )
    injection_fixed: bool = field(
        default=False,
        metadata={
            "description": "Promise that a constant ratio never changes. Workers then skip steps that hold no "
            "rehearsed row for them without asking. The service refuses changes of the ratio, its schedule and budget."
        },
    )
    seed: int = field(
        default=0, metadata={"description": "Key of every random draw of the run.", "ge": 0, "le": 2**63 - 1}
    )
    policy: PolicyName = field(
        default="mix_cd",
        metadata={
            "description": "How often each stratum is drawn. `uniform`: by its size. `stratified`: all alike. "
            "`mix_cd`: by its size and its damage rate. `permuted_mix_cd`: by its size and the damage rate of another "
            "stratum, which `seed` chooses; a control."
        },
    )
    sharpness: float = field(
        default=1.0,
        metadata={"description": "With `mix_cd` and its control: exponent of the damage rate.", "ge": 0, "le": 16},
    )
    floor: float = field(
        default=0.1,
        metadata={
            "description": "With `mix_cd` and its control: share of the draws that stays uniform.",
            "ge": 0,
            "le": 1,
        },
    )
    signal: Signal = field(
        default="token_flip",
        metadata={
            "description": "The predictions that count as damage. `token_flip`: the base model was right, and the "
            "tuned model is wrong. `net_flip`: such flips, less the gains. `excess_loss`: the rise of the loss. "
            "`threshold`: a rise beyond `delta_nats` where the base loss is at most `learnable_nats`."
        },
    )
    learnable_nats: float = field(
        default=3.0,
        metadata={
            "description": "With the `threshold` signal: base losses up to this count as learned, nats per token.",
            "allow_inf_nan": False,
        },
    )
    delta_nats: float = field(
        default=0.1,
        metadata={
            "description": "With the `threshold` signal: a loss that rises by more than this counts as damage, nats "
            "per token.",
            "allow_inf_nan": False,
        },
    )
    prior_weight: float = field(
        default=8.0,
        metadata={
            "description": "How many reported samples the pooled prior of a damage rate is worth.",
            "gt": 0,
            "le": 1e9,
        },
    )
    half_life_steps: float = field(
        default=500.0,
        metadata={"description": "After how many steps a report counts half.", "gt": 0, "le": 1e12},
    )
    report_window_steps: int = field(
        default=1024,
        metadata={
            "description": "How many steps a plan waits for its reports. Later reports are rejected.",
            "ge": 1,
            "le": 1 << 20,
        },
    )
    feedback: Feedback = field(
        default_factory=Feedback, metadata={"description": "When a plan takes reports into account."}
    )
    adopt_every_steps: int = field(
        default=0,
        metadata={
            "description": "Adopt the corpus's latest generation so many steps after the last adoption. 0: only when "
            "asked. Not with `fenced` feedback.",
            "ge": 0,
            "le": 1 << 61,
        },
    )
    held_back: float = field(
        default=0.25,
        metadata={
            "description": "Share of each stratum that its first epoch leaves out, in whole 64ths. Later epochs take "
            "it in little by little, so that forgetting can be estimated on samples that the run has not trained on.",
            "ge": 0,
            "le": 0.5,
        },
    )

    def __post_init__(self) -> None:
        check_bounds(self)
        exact_ratio(self.ratio)
        if self.is_auto and self.schedule.curve != "constant":
            raise ValueError("an auto injection_ratio follows its budget; leave the schedule out")
        if self.injection_fixed and (self.is_auto or self.schedule.curve != "constant"):
            raise ValueError(
                "injection_fixed promises the same injection ratio in all steps; write injection_ratio as a number and "
                "leave the schedule out, or leave injection_fixed out"
            )
        if self.injection_mode == "add" and self.most_ratio() == 1:
            raise ValueError("injection_mode add goes with injection ratios below 1; with 1 there is nothing to add to")
        if self.adopt_every_steps and self.fence is not None:
            raise ValueError(
                "adopt_every_steps does not go with fenced feedback: the plans would depend on when an "
                "ingest ends; leave it 0 and adopt generations at steps of your choice"
            )

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
        return decision_steps(self.budget.every_steps, self.half_life_steps)

    @property
    def seeing_ratio(self) -> float:
        """The injection ratio that gives twice as many reports in a half-life as an estimate takes."""
        return 2.0 * LEAST_REPORTS / (self.global_batch_size * self.half_life_steps)

    def make_policy(self) -> Policy:
        mix_cd = MixCd(self.sharpness, self.floor)
        policies: dict[PolicyName, Policy] = {
            "uniform": Uniform(),
            "stratified": Stratified(),
            "mix_cd": mix_cd,
            "permuted_mix_cd": PermutedMixCd(mix_cd, self.seed),
        }
        return policies[self.policy]

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
