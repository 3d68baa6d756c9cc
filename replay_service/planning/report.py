"""A plan in words, and the section of a job to paste."""

from collections.abc import Iterable
from dataclasses import fields
from typing import Final

import numpy as np

from replay_service.planning.bootstrap import Interval
from replay_service.planning.holdout import Foretold
from replay_service.planning.identified import Levels, remarks
from replay_service.planning.laws import ForgettingRuns
from replay_service.planning.plan import Plan
from replay_service.planning.runs import Float64Array, Runs
from replay_service.sampling.controller import ForgettingBudget

_WIDE: Final = 10.0
"""An interval with a larger ratio of its ends is called wide."""
_MOST_RATIO: Final = float(ForgettingBudget().most_ratio)


def report(plan: Plan, foretold: Foretold | None = None) -> str:
    """The text of a plan."""
    runs = plan.forgetting.law.runs
    parts = [
        _runs(runs),
        _forgetting(plan),
        *([_target(plan)] if plan.target is not None else []),
        *([_foretold(foretold)] if foretold is not None else []),
        _doubts(plan),
        _advice(plan),
        *(["Section of the job:\n\n" + section(plan)] if plan.ratio.value < 1 else []),
    ]
    return "\n\n".join(part for part in parts if part)


def section(plan: Plan) -> str:
    """TOML of a job in which the controller begins with the planned ratio."""
    law = plan.forgetting.for_controller(plan.num_parameters, plan.target_tokens, plan.settings.rehearsal_weight)
    weight = plan.settings.rehearsal_weight
    lines = ["[rehearsal]", 'injection_ratio = "auto"']
    lines += [f"rehearsal_weight = {weight:g}"] if weight != 1 else []
    lines += ["", "[rehearsal.budget]", f"nats = {plan.settings.budget_nats:g}"]
    if _MOST_RATIO < plan.ratio.value < 1:
        lines.append(f'most_ratio = "{min(1.0, np.ceil(plan.ratio.value * 120) / 100):g}"')
    lines += ["", "[rehearsal.budget.law]"]
    return "\n".join([*lines, *(f"{each.name} = {float(getattr(law, each.name)):.6g}" for each in fields(law))])


def _runs(runs: Runs) -> str:
    levels = Levels.of(runs)
    return (
        f"{len(runs)} runs: {_counted(levels.num_sizes, 'model size')} ({_range(runs.num_parameters)} parameters), "
        f"{_counted(levels.num_lengths, 'length')} ({_range(runs.target_tokens)} target tokens), "
        f"{_counted(levels.num_ratios, 'ratio')} ({_range(runs.weighted_ratio)}, times the rehearsal weight)."
    )


def _forgetting(plan: Plan) -> str:
    of_forgetting, of_loss = plan.forgetting.relative_errors()
    free = dict(zip(plan.forgetting.coefficients(), plan.forgetting.law.free, strict=True))
    rows = [
        (name, each if free[name] else f"{each.value:.4g} (fixed)")
        for name, each in plan.forgetting.coefficients().items()
    ]
    return _law("Forgetting: L_pt - L0_pt = A D_ft^beta / ((1 + B x) N)^alpha, x the weight times the ratio", rows) + (
        f"\n  mean relative error: {of_forgetting:.1%} of the forgetting, {of_loss:.2%} of the pretraining loss"
    )


def _target(plan: Plan) -> str:
    assert plan.target is not None
    return (
        _law("Target loss: L_ft = A' / (N^alpha' D_ft^beta') + E + C x", plan.target.coefficients().items())
        + f"\n  mean relative error: {plan.target.relative_error():.2%} of the target loss"
    )


def _law(title: str, rows: Iterable[tuple[str, Interval | str]]) -> str:
    return "\n".join([title, *(f"  {name:<7}{_interval(each)}" for name, each in rows)])


def _foretold(foretold: Foretold) -> str:
    runs, (of_forgetting, of_loss) = foretold.runs, foretold.errors
    head = (
        f"Prediction of the largest: {_counted(len(runs), 'run')} with {_range(runs.num_parameters)} parameters and "
        f"{_range(runs.target_tokens)} target tokens, from {foretold.num_fitted} smaller and shorter ones"
    )
    rows = [
        f"  x = {ratio:.4g}: foretold {said:.4g}, measured {measured:.4g} nats, {said / measured - 1:+.1%}"
        for ratio, said, measured in zip(runs.weighted_ratio, foretold.forgetting, runs.forgetting, strict=True)
    ]
    mean = f"  mean relative error: {of_forgetting:.1%} of the forgetting, {of_loss:.2%} of the pretraining loss"
    return "\n".join([head, *rows, mean])


def _doubts(plan: Plan) -> str:
    found = [*remarks(plan.forgetting.law), *_at_bounds(plan), *_target_doubts(plan)]
    return "\n".join(["The runs cannot tell everything:", *(f"  - {each}" for each in found)]) if found else ""


def _at_bounds(plan: Plan) -> list[str]:
    law, known = plan.forgetting.law, plan.forgetting.draws[0]
    span = law.upper() - law.lower()
    free = np.array(law.free)
    low = free & (known - law.lower() < 1e-3 * span)
    high = free & (law.upper() - known < 1e-3 * span)
    names = ("A", "B", "alpha", "beta")
    return [
        f"{name} is at the {'least' if low[place] else 'greatest'} value that is searched, so the runs do not follow "
        "the law there."
        for place, name in enumerate(names)
        if low[place] or high[place]
    ]


def _target_doubts(plan: Plan) -> list[str]:
    runs, target = plan.forgetting.law.runs, plan.target
    if target is None:
        reason = "has no column target_loss" if runs.target_loss is None else "has too few runs for the target loss"
        return [f"The data {reason}, so the price on the target loss is not known."]
    names = [name for name, free in zip(("alpha'", "beta'", "E"), target.law.free[1:4], strict=True) if not free]
    if not names:
        return []
    return [f"The target loss is fitted without {', '.join(names)}: for that there are too few sizes and lengths."]


def _advice(plan: Plan) -> str:
    settings, ratio = plan.settings, plan.ratio
    weight = "" if settings.rehearsal_weight == 1 else f" at rehearsal weight {settings.rehearsal_weight:g}"
    lines = [
        f"Plan for {plan.num_parameters:,.0f} parameters and {plan.target_tokens:,.0f} target tokens:",
        f"  forgetting without rehearsal: {_interval(plan.forgotten)} nats per token",
    ]
    if ratio.value == 0:
        lines.append(f"  no rehearsal is needed for {settings.budget_nats:g} nats (ratio 0, at most {ratio.high:.4g})")
    elif ratio.value >= 1:
        lines.append(
            f"  no injection ratio keeps forgetting within {settings.budget_nats:g} nats{weight}: allow more, or raise "
            "the rehearsal weight"
        )
    else:
        lines.append(f"  injection ratio for {settings.budget_nats:g} nats{weight}: {_ratio(ratio)}")
    return "\n".join([*lines, *(f"  {each}" for each in _consequences(plan))])


def _consequences(plan: Plan) -> list[str]:
    ratio, runs = plan.ratio, plan.forgetting.law.runs
    if not 0 < ratio.value < 1:
        return []
    found = [f"tokens in all, for as many target tokens: {1 / (1 - ratio.value):.3f} times as many"]
    if plan.price is not None:
        found.append(f"target loss, for as many target tokens: {_signed(plan.price)} nats per token")
    if plan.price_of_tokens is not None:
        found.append(f"target loss, for as many tokens in all: {_signed(plan.price_of_tokens)} nats per token")
    weighted, tried = ratio.value * plan.settings.rehearsal_weight, _positive(runs)
    if not tried.min() <= weighted <= tried.max():
        found.append(f"that is outside the ratios of the runs ({_range(tried)}); try it before you rely on it")
    found += _outside(plan, plan.forgetting.law)
    if ratio.high > _WIDE * max(ratio.low, 1e-12):
        found.append("the interval is wide; add runs at ratios near it")
    return found


def _outside(plan: Plan, law: ForgettingRuns) -> list[str]:
    asked = (
        ("size", plan.num_parameters, law.runs.num_parameters),
        ("length", plan.target_tokens, law.runs.target_tokens),
    )
    return [
        f"that {name} is outside the runs' ({_range(values)}): the law is extrapolated"
        for name, value, values in asked
        if not values.min() <= value <= values.max()
    ]


def _positive(runs: Runs) -> Float64Array:
    return runs.weighted_ratio[runs.weighted_ratio > 0]


def _interval(each: Interval | str) -> str:
    return each if isinstance(each, str) else f"{each.value:.4g} ({each.low:.4g} to {each.high:.4g})"


def _ratio(each: Interval) -> str:
    return f"{each.value:.4g} ({each.low:.4g} to {'more than 1' if each.high > 1 else format(each.high, '.4g')})"


def _signed(each: Interval) -> str:
    return f"{each.value:+.4f} ({each.low:+.4f} to {each.high:+.4f})"


def _range(values: Float64Array) -> str:
    low, high = float(np.min(values)), float(np.max(values))
    return _short(low) if low == high else f"{_short(low)} to {_short(high)}"


def _short(value: float) -> str:
    return f"{value:,.0f}" if value >= 1000 else f"{value:.4g}"


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"
