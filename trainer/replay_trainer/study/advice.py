"""The recommendation at the end of a study, in plain words, with how sure it is."""

import math
from typing import Final

from replay_trainer.study.analysis import Analysis, ArmSummary
from replay_trainer.study.bootstrap import Interval

_LEVEL: Final = 0.05


def best_arm(analysis: Analysis, margin: float) -> ArmSummary | None:
    """The arm that keeps the most beyond the reference, surely, at a target loss that rises by the margin at most.

    Surely is: by Holm's correction over all arms at 5 %, and by the upper end of the interval of the target loss.
    """
    sure = [
        each
        for each in analysis.arms
        if not each.is_reference
        and each.p_adjusted < _LEVEL
        and each.kept.value > 0
        and each.extra_loss.is_known
        and each.extra_loss.high <= margin
    ]
    return max(sure, key=lambda each: each.kept.value, default=None)


def advice(chosen_on: Analysis, reported_on: Analysis, margin: float) -> str:
    """What to take.

    Args:
        chosen_on: the analysis that the arm is chosen by.
        reported_on: the analysis whose figures are told; the same one, or of other targets.
        margin: rise of the target loss that counts as none, nats per token.
    """
    if not chosen_on.has_intervals:
        return (
            "No recommendation: a target has one seed alone, so that nobody knows how much of a difference is chance. "
            "Finish the study, or give it two seeds or more."
        )
    best = best_arm(chosen_on, margin)
    if best is None:
        return _none_is_better(chosen_on, margin)
    told = next((each for each in reported_on.arms if each.arm == best.arm), None)
    if told is None:
        return f"Take {best.arm!r}. It has no outcome yet on the targets that the figures are to come from."
    return " ".join(_about(told, reported_on, margin))


def _reference(analysis: Analysis) -> str:
    return "uniform rehearsal with plain cross-entropy" if analysis.has_frontier else repr(analysis.arms[0].arm)


def _none_is_better(analysis: Analysis, margin: float) -> str:
    reference = _reference(analysis)
    if not any(each.kept.value > -math.inf for each in analysis.arms):
        return (
            f"Nothing to recommend: with {reference} the model forgets nothing of the held-out pretraining text, so "
            "there is nothing to keep. Take text that the model was pretrained on, or train for longer."
        )
    return (
        f"Stay with {reference}: no arm surely forgets less than it at a target loss that rises by at most {margin:g} "
        f"nats per token ({len(analysis.arms)} arms, {analysis.num_pairs} pairs of a target and a seed, 95 % "
        "intervals, Holm's correction)."
    )


def _about(best: ArmSummary, analysis: Analysis, margin: float) -> list[str]:
    against = _reference(analysis)
    if analysis.has_frontier:
        against = f"{against} of as many rows" if best.rows else "training without rehearsal"
    told = [
        f"Take {best.arm!r}: it keeps {percent(best.kept)} of what {against} forgets.",
        _loss(best.extra_loss, margin),
        f"It forgets less on {best.num_better} of {analysis.num_targets} targets"
        + ("." if math.isnan(best.p_adjusted) else f" (p = {best.p_adjusted:.2g} by Holm)."),
    ]
    if best.equivalence is not None:
        told.append(equivalence_in_words(best))
    return told


def _loss(extra: Interval, margin: float) -> str:
    if not extra.is_known:
        return f"Its target loss differs by {extra.value:+.3f} nats per token."
    said = f"{extra.value:+.3f} ({extra.low:+.3f} to {extra.high:+.3f}) nats per token"
    if extra.high <= margin:
        return f"Its target loss is the same within {margin:g}: it differs by {said}."
    return f"Its target loss differs by {said}, which is more than {margin:g}."


def equivalence_in_words(arm: ArmSummary) -> str:
    """A sentence on the rows that the frontier takes to forget as little."""
    assert arm.equivalence is not None
    found = arm.equivalence
    if found.outside == "none needed":
        return "On some target it forgets more than without any rehearsal, so no number of rows is equal to it."
    number = found.rows if found.ratio is None else found.ratio
    unit = "rows" if found.ratio is None else "times its rows"
    amount = f"{number.value:.2g}" if unit != "rows" else f"{number.value:,.0f}"
    if found.outside == "beyond":
        return (
            f"To forget as little, plain cross-entropy needs more than {amount} {unit}: it forgets more at every ratio "
            "that was swept, on some target at least."
        )
    ends = ""
    if number.is_known:
        low, high = (f"{each:.2g}" if unit != "rows" else f"{each:,.0f}" for each in (number.low, number.high))
        ends = f" ({low} to {high}{' or more, beyond the ratios that were swept' if found.is_open else ''})"
    price = found.target_loss
    return (
        f"To forget as little, plain cross-entropy needs {amount}{ends} {unit}; the target loss of {arm.arm!r} is "
        f"{abs(price.value):.3f} nats per token {'higher' if price.value > 0 else 'lower'} than its is then."
    )


def percent(part: Interval) -> str:
    """A share with its interval, `31 % (24 to 37)`; `-` where the reference forgets nothing."""
    if math.isnan(part.value):
        return "-"
    ends = f" ({100 * part.low:.0f} to {100 * part.high:.0f})" if part.is_known else ""
    return f"{100 * part.value:.0f} %{ends}"
