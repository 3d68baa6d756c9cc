"""The shapes of answers about what a run has learned of its corpus."""

from typing import Literal

from pydantic import Field

from replay_service.gateway.models import Model, RunMoment
from replay_service.sampling.forgetting import Forgetting
from replay_service.sampling.predicted_gain import Interval, PredictedGain


class ForgettingEstimate(Model):
    """Mean loss minus base loss over a corpus or a domain, nats per token, estimated from first visits of samples."""

    nats: float | None = Field(description="The estimate; null where nothing can be said.")
    low: float | None = Field(description="The lower end of the interval.")
    high: float | None = Field(description="The upper end of the interval.")
    level: float = Field(description="How often such intervals hold the truth.")
    num_effective: float = Field(description="Effective reports that it rests on.")
    share_covered: float = Field(description="Share of the corpus's or the domain's mass that these tell of.")
    step: int | None = Field(description="The step that it is of: the latest one that was reported.")
    window_steps: int = Field(description="It is made of reports of so many steps up to that one.")
    reason: str | None = Field(description="Why nothing can be said; null where something is.")

    @classmethod
    def of(cls, found: Forgetting) -> "ForgettingEstimate":
        return cls.model_validate({name: getattr(found, name) for name in cls.model_fields})


class EstimateWithInterval(Model):
    """A number and its 95 % interval."""

    value: float
    low: float
    high: float

    @classmethod
    def of(cls, found: Interval) -> "EstimateWithInterval":
        return cls(**found._asdict())


class GainPrediction(Model):
    """What drawing by damage (`mix_cd`, signal `excess_loss`) is worth over uniform draws of as many rows.

    Shares are negative where it costs. Where nothing can be said, all but the elasticity are null.
    """

    spread: EstimateWithInterval | None = Field(
        description="Standard deviation of the logarithm of what strata forget under uniform draws."
    )
    elasticity: EstimateWithInterval = Field(description="By which power of the rows forgetting falls.")
    elasticity_source: Literal["default"] = Field(
        description="`default`: measured on small language models, not in this run."
    )
    mean_reduction: EstimateWithInterval | None = Field(description="Share by which mean forgetting falls.")
    rows_saved: EstimateWithInterval | None = Field(description="Share of the rows saved at the same mean forgetting.")
    worst_reduction: EstimateWithInterval | None = Field(
        description="Share by which ln(worst / mean) of the domains' forgetting falls."
    )
    num_effective: float = Field(description="Effective reports that it rests on.")
    advice: str | None = Field(description="The same in one sentence.")
    reason: str | None = Field(description="Why nothing can be said; null where something is.")

    @classmethod
    def of(cls, found: PredictedGain) -> "GainPrediction":
        values = {name: getattr(found, name) for name in cls.model_fields if name != "elasticity_source"}
        estimates = {
            name: EstimateWithInterval.of(each) if isinstance(each, Interval) else each for name, each in values.items()
        }
        return cls(**estimates, elasticity_source="default")


class TrainedStats(Model):
    """The rows that all ranks together have trained on."""

    next_step: int = Field(description="All ranks that report have reported the steps before this one.")
    num_rows: int = Field(description="Rows, rehearsed ones included.")
    num_rehearsed_rows: int
    num_tokens: int = Field(description="Predictions that counted in the loss.")
    num_rehearsed_tokens: int


class DomainShares(Model):
    """How much a domain is drawn."""

    draw_share: float = Field(description="Share of the draws that falls on the domain now.")
    size_share: float = Field(description="Its share of the corpus.")


class DomainForgetting(ForgettingEstimate):
    """The forgetting of one domain."""

    name: str


class ReportDelayInfo(Model):
    """The time from the commit of a step's plan to that of its last report, of the latest steps."""

    p50_s: float | None = Field(description="Median, seconds; null where no step was reported whole.")
    p95_s: float | None = Field(description="95th percentile, seconds.")
    late_steps: int = Field(
        description="Steps that still await a report, and have waited for more than a minute and more than twice "
        "p95_s; with those that were given up since the last report came."
    )


class ChangeInfo(Model):
    """An event that changed how a run goes on."""

    seq: int = Field(description="The number of the event.")
    kind: str
    text: str = Field(description="What it changed, in one short sentence.")
    at: str | None = Field(description="ISO 8601, UTC; null if an earlier release wrote it.")


class AdviceInfo(Model):
    """One thing to do about a run."""

    id: str = Field(description="Names the rule; a rule gives at most one advice.", examples=["domain-forgotten"])
    text: str = Field(description="What is seen.")
    remedy: str = Field(description="What to do about it.")


class RunStats(RunMoment):
    """A run's statistics, over all strata."""

    run: str
    next_step: int
    policy_version: int
    injection_ratio: float = Field(description="Of the first step that has no plan yet.")
    rows_planned: int = Field(
        description="Rows of the planned steps, rehearsed ones included, as the run's global_batch_size says."
    )
    rows_due: float = Field(
        description="How many rows the planned steps were to rehearse, by the injection ratios that were in force, "
        "whatever changed them. rows_rehearsed is less than one row below."
    )
    rows_rehearsed: int = Field(description="How many rows the planned steps rehearse.")
    planned_ratio: float = Field(description="rows_rehearsed / rows_planned.")
    trained: TrainedStats | None = Field(description="As the ranks have reported it; null before any report.")
    achieved_ratio: float | None = Field(
        description="Share of the rows trained on that was rehearsed; null before any report."
    )
    num_reported: int = Field(description="Rehearsed samples whose losses were reported.")
    num_pending: int = Field(description="Rehearsed samples that still await a report.")
    num_unmeasured: int = Field(
        description="Rehearsed samples that were not measured: they could not be read, their loss was not finite, or "
        "their report did not come in time. A sample that one step draws twice counts here once."
    )
    num_tokens: int = Field(description="Predicted tokens in the reports.")
    num_flips: int = Field(description="Of those, collateral damage.")
    flip_rate: float | None = Field(description="num_flips / num_tokens.")
    num_gains: int = Field(description="Predictions that the base model got wrong and the tuned one got right.")
    gain_rate: float | None = Field(description="Of the tokens in reports that told of gains, their share.")
    mean_loss_nats: float | None = Field(description="Mean over all reports of the run, whatever their age.")
    mean_excess_nats: float | None = Field(
        description="Mean of loss minus base loss over all reports of the run: old and new ones, first and later "
        "visits. It describes what was rehearsed; `forgetting` estimates what the corpus has lost."
    )
    forgetting: ForgettingEstimate = Field(description="Of the whole corpus.")
    forgetting_by_domain: dict[str, ForgettingEstimate] = Field(description="Of each domain (group of strata).")
    shares_by_domain: dict[str, DomainShares] = Field(description="How much each domain is drawn.")
    worst_domain: DomainForgetting | None = Field(
        description="The domain that has surely forgotten most: the greatest lower end of an interval. Null where no "
        "domain has an estimate."
    )
    budget_nats: float | None = Field(description="The budget of an `auto` injection ratio; null without one.")
    predicted_gain: GainPrediction = Field(description="What drawing by damage is worth over uniform draws.")
    report_delay: ReportDelayInfo
    last_change: ChangeInfo | None = Field(
        description="The latest event that is no plan and no report; null where there was none but the creation."
    )
    advice: list[AdviceInfo] = Field(description="What to do about the run, the most urgent first.")


class StratumStats(Model):
    """One stratum's statistics."""

    stratum: int
    name: str = Field(examples=["encyclopedia_en/q0"])
    domain: str
    quantile: int = Field(description="Base-loss quantile within the domain; 0 is the easiest.")
    num_samples: int
    num_drawn: int = Field(description="Draws so far.")
    epoch: int = Field(description="How often all its samples have been drawn.")
    num_reported: int
    num_tokens: int
    num_flips: int
    num_gains: int
    mean_loss_nats: float | None = Field(description="Mean over all its reports, whatever their age.")
    mean_excess_nats: float | None = Field(
        description="Mean of loss minus base loss over all its reports, of first and later visits."
    )
    damage_rate: float | None = Field(
        description="The estimate alpha, pooled and decayed; null before any damage was reported."
    )
    reports_recent: float = Field(
        description="Reports that damage_rate rests on: each counts half after the run's half-life, and so on."
    )
    draw_share: float = Field(description="Share of the draws that falls on this stratum now.")


class StrataList(Model):
    run: str
    as_of: int = Field(description="Number of the last event of the run that the answer knows.")
    policy_version: int
    strata: list[StratumStats]
