"""What the outcomes of a study say of its arms: pure, numpy alone.

Every arm is compared with uniform rehearsal with cross-entropy (the frontier) at as many rows, at equal target loss and
at equal forgetting. A study without two ratios of that compares with its first arm.

Shapes: A arms, P pairs of a target and a seed, T targets, D domains, 2 halves of the held-out rows, B resamples with
the sample itself at index 0.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from replay_trainer.study.bootstrap import (
    NUM_RESAMPLES,
    Interval,
    by_target,
    has_intervals,
    holm,
    interval,
    p_value,
    resamples,
)
from replay_trainer.study.frontier import Frontier
from replay_trainer.study.outcomes import Paired

Float64Array = NDArray[np.float64]

Outside = Literal["inside", "beyond", "none needed"]

_OUTSIDE_SHARE = 0.025
"""An interval whose end lies outside the frontier in more resamples than this is open there."""


@dataclass(frozen=True, slots=True)
class Equivalence:
    """How many rows uniform cross-entropy would need for as little forgetting.

    Attributes:
        rows: that number.
        ratio: divided by the arm's rows (token equivalence); None where the arm rehearses nothing.
        outside: `beyond` where the most rows of the frontier forget more on some target, so that the numbers are lower
            bounds; `none needed` where the arm forgets more than without rehearsal on some target.
        is_open: whether the upper end of the interval is that of the frontier, so that it may be higher.
        target_loss: that of the arm minus that of the frontier there, nats per token: the price of the equivalence.
    """

    rows: Interval
    ratio: Interval | None
    outside: Outside
    is_open: bool
    target_loss: Interval


@dataclass(frozen=True, slots=True)
class ArmSummary:
    """An arm, averaged over targets. Forgetting and losses are in nats per token.

    Attributes:
        forgetting: mean over domains.
        worst: of the domain that is worst on one half of its held-out rows, on the other half; both ways, averaged.
        kept: 1 minus forgetting over that of the reference with as many rows: what is not forgotten beyond it.
        extra_loss: target loss minus that of the reference with as many rows.
        kept_at_equal_loss: `kept`, with the frontier at equal target loss; None where that is outside the frontier.
        p_adjusted: that `kept` is zero, by Holm over the arms; NaN for the reference itself.
        num_better: targets on which it forgets less than the reference.
        equivalence: None without a frontier.
    """

    arm: str
    is_reference: bool
    rows: float
    forgetting: Interval
    target_loss: Interval
    worst: Interval
    kept: Interval
    extra_loss: Interval
    kept_at_equal_loss: Interval | None
    p_adjusted: float
    num_better: int
    equivalence: Equivalence | None


@dataclass(frozen=True, slots=True)
class Analysis:
    """The arms, in the order of the study, and what they were compared with.

    Attributes:
        has_frontier: whether arms were compared with uniform cross-entropy, or with the first arm.
        has_intervals: whether every target has two seeds.
    """

    arms: tuple[ArmSummary, ...]
    has_frontier: bool
    has_intervals: bool
    num_targets: int
    num_pairs: int


@dataclass(frozen=True, slots=True)
class _Means:
    """Means over the pairs of each target, under each resample."""

    forgetting: Float64Array
    """[B, T, A]"""
    target_loss: Float64Array
    """[B, T, A]"""


def analyzed(paired: Paired, num_resamples: int = NUM_RESAMPLES) -> Analysis:
    """Compare all arms of a study."""
    weights = resamples(paired.target_of_pair, num_resamples)
    known = has_intervals(paired.target_of_pair)
    forgetting_AP = np.nanmean(paired.forgetting, axis=(2, 3))

    def mean(values: Float64Array) -> Float64Array:
        """[A, P, ...] to [B, T, A, ...]."""
        return by_target(weights, paired.target_of_pair, np.moveaxis(values, 0, 1))

    means = _Means(mean(forgetting_AP), mean(paired.target_loss))
    rows = paired.rows.mean(axis=1)
    frontiers = _frontiers(means, rows, paired.is_frontier)
    is_reference = paired.is_frontier if frontiers else np.arange(len(paired.arms)) == 0
    summaries = [
        _Arm(means, frontiers, index, rows[index], worst_domain(mean(paired.forgetting[index][None])[:, :, 0]), known)
        for index in range(len(paired.arms))
    ]
    p_values = np.array(
        [np.nan if is_reference[i] or not known else p_value(each.advantage()) for i, each in enumerate(summaries)]
    )
    adjusted = holm(p_values)
    arms = tuple(
        each.summary(name, bool(is_reference[i]), float(adjusted[i]))
        for i, (name, each) in enumerate(zip(paired.arms, summaries, strict=True))
    )
    return Analysis(arms, bool(frontiers), known, len(paired.targets), len(paired.target_of_pair))


def _frontiers(means: _Means, rows: Float64Array, is_frontier: NDArray[np.bool_]) -> list[Frontier]:
    """One for each target; none where there are no two ratios of uniform cross-entropy, one of them above zero."""
    places = np.flatnonzero(is_frontier)
    # Of two arms with as many rows, such as two learning rates, the first counts.
    _, firsts = np.unique(rows[places], return_index=True)
    chosen = places[firsts]
    if len(chosen) < 2:
        return []
    return [
        Frontier(rows[chosen], means.forgetting[:, target][:, chosen], means.target_loss[:, target][:, chosen])
        for target in range(means.forgetting.shape[1])
    ]


@dataclass(frozen=True, slots=True)
class _Arm:
    """One arm under each resample."""

    means: _Means
    frontiers: list[Frontier]
    index: int
    rows: float
    worst: Float64Array
    """[B, T]"""
    known: bool

    @property
    def forgetting(self) -> Float64Array:
        """[B, T]"""
        return self.means.forgetting[:, :, self.index]

    @property
    def target_loss(self) -> Float64Array:
        """[B, T]"""
        return self.means.target_loss[:, :, self.index]

    def reference(self) -> tuple[Float64Array, Float64Array]:
        """Forgetting and target loss of the reference with as many rows, [B, T] each."""
        if not self.frontiers:
            return self.means.forgetting[:, :, 0], self.means.target_loss[:, :, 0]
        rows = np.full(len(self.forgetting), self.rows)
        found = [each.at_rows(rows) for each in self.frontiers]
        return np.stack([each for each, _ in found], axis=1), np.stack([each for _, each in found], axis=1)

    def advantage(self) -> Float64Array:
        """How much less it forgets than the reference, mean over targets, [B]."""
        advantage: Float64Array = (self.reference()[0] - self.forgetting).mean(axis=1)
        return advantage

    def summary(self, name: str, is_reference: bool, p_adjusted: float) -> ArmSummary:
        forgetting, target_loss = self.reference()
        return ArmSummary(
            arm=name,
            is_reference=is_reference,
            rows=self.rows,
            forgetting=self._interval(self.forgetting.mean(axis=1)),
            target_loss=self._interval(self.target_loss.mean(axis=1)),
            worst=self._interval(self.worst.mean(axis=1)),
            kept=self._interval(_kept(self.forgetting, forgetting)),
            extra_loss=self._interval((self.target_loss - target_loss).mean(axis=1)),
            kept_at_equal_loss=self._kept_at_equal_loss(),
            p_adjusted=p_adjusted,
            num_better=int((self.forgetting[0] < forgetting[0]).sum()),
            equivalence=self._equivalence() if self.frontiers else None,
        )

    def _interval(self, values: Float64Array) -> Interval:
        return interval(values, known=self.known)

    def _kept_at_equal_loss(self) -> Interval | None:
        found = [each.at_target_loss(self.target_loss[:, target]) for target, each in enumerate(self.frontiers)]
        if not found or not all(inside[0] for _, inside in found):
            return None
        is_within: NDArray[np.bool_] = np.all([inside for _, inside in found], axis=0)
        if (~is_within[1:]).mean() > 2 * _OUTSIDE_SHARE:
            return None
        return self._interval(_kept(self.forgetting, np.stack([each for each, _ in found], axis=1)))

    def _equivalence(self) -> Equivalence:
        found = [each.rows_for(self.forgetting[:, target]) for target, each in enumerate(self.frontiers)]
        # Targets are averaged on the scale of rows, as ratios are, so that none outweighs the others.
        rows = self.frontiers[0].unscaled(np.stack([places for places, _ in found], axis=1).mean(axis=1))
        outside = np.stack([each for _, each in found], axis=1)
        price = [
            self.target_loss[:, target] - each.at_rows(each.unscaled(found[target][0]))[1]
            for target, each in enumerate(self.frontiers)
        ]
        where: Outside = "inside"
        if outside[0].any():
            where = "beyond" if outside[0].max() > 0 else "none needed"
        return Equivalence(
            rows=self._interval(rows),
            ratio=self._interval(rows / self.rows) if self.rows else None,
            outside=where,
            is_open=bool((outside[1:] > 0).any(axis=1).mean() > _OUTSIDE_SHARE),
            target_loss=self._interval(np.stack(price, axis=1).mean(axis=1)),
        )


def _kept(forgetting: Float64Array, reference: Float64Array) -> Float64Array:
    """1 minus the ratio of the means over targets, [B]; NaN where the reference forgets nothing."""
    whole = reference.mean(axis=1)
    kept: Float64Array = np.full(len(whole), np.nan)
    np.divide(forgetting.mean(axis=1), whole, out=kept, where=whole > 0)
    return 1.0 - kept


def worst_domain(halves: Float64Array) -> Float64Array:
    """Of [B, T, D, 2]: chosen on one half and read off the other, both ways, averaged, [B, T]."""
    values = []
    for chosen_on, read_on in ((0, 1), (1, 0)):
        worst = np.nan_to_num(halves[..., chosen_on], nan=-np.inf).argmax(axis=-1)
        values.append(np.take_along_axis(halves[..., read_on], worst[..., None], axis=-1)[..., 0])
    mean: Float64Array = (values[0] + values[1]) / 2
    return mean
