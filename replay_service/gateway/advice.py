"""Advice to operators: a pure function of a run's statistics. Each rule says what it sees, and what to do about it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from replay_service.ledger.lifecycle import Lifecycle
from replay_service.ledger.owners import Ownership
from replay_service.sampling.forgetting import LEAST_COVERED, Forgetting
from replay_service.sampling.lines import LEAST_REPORTS
from replay_service.sampling.predicted_gain import PredictedGain
from replay_service.sampling.run_config import RunConfig

APART: Final = 1.5
"""A domain stands out when it is forgotten so many times as much as the corpus, and the intervals do not meet."""
SEEN: Final = 0.5
"""The corpus counts as seen when this share of the draws are repeats."""
IN_TURN: Final = 3
"""Two services answer for a run in turn when one has taken it back so often within ten minutes."""


@dataclass(frozen=True, slots=True)
class Advice:
    """One thing to do.

    Attributes:
        id: names the rule; the same rule gives at most one advice for a run.
        text: what is seen.
        remedy: what to do about it.
    """

    id: str
    text: str
    remedy: str


@dataclass(frozen=True, slots=True)
class DomainFigures:
    """A domain: its forgetting, its share of the draws now, and its share of the corpus."""

    name: str
    forgetting: Forgetting
    draw_share: float
    size_share: float


@dataclass(frozen=True, slots=True)
class Situation:
    """The statistics that advice follows from.

    Attributes:
        lifecycle: the state of the run, whatever is damaged: a damaged run goes on, or is stale.
        problem: what is damaged; None if nothing is known to be.
        ownership: whether another process answers for the run too.
        silent_s: for how long nothing was heard of the job, seconds; None if that is not known.
        late_steps: steps that have waited too long for a report.
        config: as it is now.
        ratio: the injection ratio of the next step.
        next_step: the first step that has no plan yet.
        corpus: the forgetting of the whole corpus.
        domains: at least one.
        gain: what drawing by damage is worth.
        repeat_share: the share of the draws now that are repeats.
    """

    lifecycle: Lifecycle
    problem: str | None
    ownership: Ownership
    silent_s: float | None
    late_steps: int
    config: RunConfig
    ratio: float
    next_step: int
    corpus: Forgetting
    domains: Sequence[DomainFigures]
    gain: PredictedGain
    repeat_share: float

    def worst(self) -> DomainFigures | None:
        """The domain that has surely forgotten most: that of the greatest lower end of its interval."""
        known = [each for each in self.domains if each.forgetting.low is not None]
        return max(known, key=lambda each: each.forgetting.low or 0.0) if known else None


def advice_on(situation: Situation) -> list[Advice]:
    """What to do about a run, the most urgent first. Of a run that is over, only that something is damaged."""
    is_over = situation.lifecycle in ("closed", "finished")
    found = [rule(situation) for rule in (RULES[:1] if is_over else RULES)]
    return [each for each in found if each is not None]


def damaged(situation: Situation) -> Advice | None:
    if situation.problem is None:
        return None
    return Advice(
        "damaged", situation.problem, "bring the damaged files back from a copy; the run then goes on as it is"
    )


def another_owner(situation: Situation) -> Advice | None:
    found = situation.ownership
    if found.times_taken_back < IN_TURN and not found.is_elsewhere:
        return None
    seen = "another service on the same journal has taken the run; this one takes it back when a job asks it"
    if found.times_taken_back >= IN_TURN:
        seen = f"two services take the run from each other, this one {found.times_taken_back} times in ten minutes"
    return Advice(
        "another-owner",
        seen,
        "let one service run on this journal, or several replicas of one cluster, and send all ranks of the job to it",
    )


def stale(situation: Situation) -> Advice | None:
    if situation.lifecycle != "stale":
        return None
    silent = "long" if situation.silent_s is None else _span(situation.silent_s)
    return Advice(
        "stale",
        f"nothing was heard of the job for {silent}",
        "see whether the job still runs; start it again from its last checkpoint, or close the run",
    )


def _span(seconds: float) -> str:
    unit, length = next((each for each in (("h", 3600), ("min", 60)) if seconds >= 2 * each[1]), ("s", 1))
    return f"{seconds / length:.0f} {unit}"


def reports_stopped(situation: Situation) -> Advice | None:
    if situation.lifecycle != "running" or not situation.late_steps:
        return None
    steps = "step has" if situation.late_steps == 1 else "steps have"
    return Advice(
        "reports-stopped",
        f"{situation.late_steps} {steps} waited unusually long for reports, while the job goes on",
        "look into the job's log for reports that fail; a loop of your own must report the losses of every batch",
    )


def over_budget(situation: Situation) -> Advice | None:
    config, low = situation.config, situation.corpus.low
    if not config.is_auto or low is None or low <= config.budget.nats or situation.ratio < float(config.most_ratio()):
        return None
    return Advice(
        "over-budget",
        f"forgetting is above {low:.3g} nats and the budget is {config.budget.nats:g}, at the greatest ratio that it "
        f"allows ({config.budget.most_ratio})",
        "raise budget.most_ratio or budget.nats, or tune with a lower learning rate",
    )


def domain_forgotten(situation: Situation) -> Advice | None:
    worst, corpus = situation.worst(), situation.corpus
    if worst is None or corpus.nats is None or corpus.high is None:
        return None
    nats, low = worst.forgetting.nats, worst.forgetting.low
    if nats is None or low is None or not (low > corpus.high > 0.0 and nats >= APART * corpus.nats):
        return None
    times = f" {nats / corpus.nats:.1f} times as much as the corpus" if corpus.nats > 0.0 else " more than the corpus"
    return Advice(
        "domain-forgotten",
        f"domain {worst.name!r} is forgotten{times}: {nats:+.3f} nats, and the corpus {corpus.nats:+.3f}",
        _draw_more_of(worst, situation.config),
    )


def _draw_more_of(domain: DomainFigures, config: RunConfig) -> str:
    if config.policy not in ("mix_cd", "permuted_mix_cd"):
        return "set policy to mix_cd, which draws more of what is damaged, or raise injection_ratio"
    if domain.draw_share < domain.size_share and config.floor < 1.0:
        return f"it is drawn less than its size: raise floor above {config.floor:g}, or raise injection_ratio"
    return "it is drawn more than its size already: raise sharpness, or raise injection_ratio"


def corpus_seen(situation: Situation) -> Advice | None:
    if situation.repeat_share < SEEN or not situation.next_step:
        return None
    return Advice(
        "corpus-seen",
        f"{situation.repeat_share:.0%} of the draws are repeats: the run has seen most of what it draws from",
        "ingest more pretraining text, and let the run adopt the new generation (POST .../adopt)",
    )


def blind(situation: Situation) -> Advice | None:
    """Only after a half-life: before that, there are too few reports whatever the ratio is."""
    corpus, config = situation.corpus, situation.config
    if corpus.nats is not None or situation.next_step < config.half_life_steps:
        return None
    if situation.ratio < config.seeing_ratio:
        return Advice(
            "blind",
            f"forgetting is not known: {corpus.num_effective:.1f} effective reports, and an estimate takes "
            f"{LEAST_REPORTS:g}",
            f"raise injection_ratio to {min(1.0, config.seeing_ratio):.3g} or more, or raise half_life_steps",
        )
    if corpus.step is not None and corpus.share_covered < LEAST_COVERED:
        more_text = "ingest more text and adopt it"
        has_more = situation.repeat_share < SEEN
        return Advice(
            "blind",
            f"forgetting is not known: the reports tell of {corpus.share_covered:.0%} of the corpus, and an estimate "
            f"takes {LEAST_COVERED:.0%}",
            f"raise floor above {config.floor:g}, or {more_text}"
            if has_more
            else f"{more_text}: the rest has been seen",
        )
    return None


def damage_even(situation: Situation) -> Advice | None:
    if not situation.gain.is_even:
        return None
    return Advice(
        "damage-even",
        "damage is even over the strata: drawing by damage saves next to nothing here",
        "set policy to uniform if you like; a greater rehearsal_weight or injection_ratio helps more",
    )


RULES: Final[tuple[Callable[[Situation], Advice | None], ...]] = (
    damaged,
    another_owner,
    stale,
    reports_stopped,
    over_budget,
    domain_forgotten,
    corpus_seen,
    blind,
    damage_even,
)
"""The most urgent first."""
