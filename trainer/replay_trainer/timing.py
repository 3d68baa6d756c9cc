"""When a job rehearses: at one ratio all along, or most of its rows where their effect lasts.

What is learned from a rehearsed row is forgotten again by the steps that follow, so a late row keeps more than an early
one. And a step teaches only as much as its learning rate lets it. With a constant rate the last steps are the best. A
rate that falls to nothing leaves them without effect: there the best steps are those at which the rate, times the sum
of the rates before, is greatest. For a cosine that is at 37 % of the steps, for a line at 42 %.

The shares are ours, chosen by measurement (`docs/evidence.md`).
"""

import math
from fractions import Fraction
from typing import Any, Final, Literal

from replay_service.sampling.injection import as_decimal, exact_ratio
from replay_trainer.errors import InvalidTraining

Timing = Literal["even", "lasting"]
Decay = Literal["constant", "linear", "cosine"]

_LOW: Final = Fraction(1, 5)
"""Of the ratio, outside the part of the job that most rows come in; so damage can be estimated all along."""
_PARTS: Final[dict[Decay, tuple[Fraction, Fraction]]] = {
    "constant": (Fraction(3, 4), Fraction(1)),
    "linear": (Fraction(1, 4), Fraction(3, 4)),
    "cosine": (Fraction(1, 4), Fraction(3, 4)),
}
"""The part of a job that most rows come in, by how its learning rate falls."""
_LEAST_STEPS: Final = 4

_SCHEDULERS: Final[dict[str, Decay]] = {
    "constant": "constant",
    "constant_with_warmup": "constant",
    "linear": "linear",
    "polynomial": "linear",
    "cosine": "cosine",
}
"""Of transformers, by the names in its `SchedulerType`."""


def most_often(timing: Timing) -> Fraction:
    """The greatest ratio of any step, as a multiple of the job's, whatever its learning rate does."""
    return max(map(_high, _PARTS)) if timing == "lasting" else Fraction(1)


def decay_of(scheduler: str) -> Decay:
    """How a learning rate falls by a scheduler of transformers; raises InvalidTraining for one that is not known."""
    if scheduler not in _SCHEDULERS:
        raise InvalidTraining(
            f"timing lasting knows the learning rates {', '.join(_SCHEDULERS)}, and not {scheduler}; leave timing out, "
            "or write a schedule of the injection ratio"
        )
    return _SCHEDULERS[scheduler]


def lasting(ratio: str, num_steps: int, decay: Decay) -> dict[str, Any]:
    """The ratio and schedule of a run that rehearses as many rows as at a constant ratio, most of them where they last.

    Args:
        ratio: of the whole job, as a decimal.
        num_steps: of the job.
        decay: how its learning rate falls.
    """
    if num_steps < _LEAST_STEPS:
        return {"injection_ratio": ratio}
    whole, (begin, end) = exact_ratio(ratio), _PARTS[decay]
    low, high = as_decimal(whole * _LOW), as_decimal(whole * _high(decay))
    points = [[math.ceil(begin * num_steps), high]]
    if end < 1:
        points.append([math.ceil(end * num_steps), low])
    return {"injection_ratio": low, "schedule": {"curve": "steps", "points": points}}


def _high(decay: Decay) -> Fraction:
    begin, end = _PARTS[decay]
    share = end - begin
    return (1 - (1 - share) * _LOW) / share
