"""When a job rehearses: at one ratio all along, or most of its rows where their effect lasts.

What is learned from a rehearsed row is forgotten again by the steps that follow, so a late row keeps more than an early
one. And a step teaches only as much as its learning rate lets it. With a constant rate the last steps are the best. A
rate that falls to nothing leaves them without effect: there the best steps are those at which the rate, times the sum
of the rates before, is greatest. For a cosine that is at 37 % of the steps, for a line at 42 %.

The shares are ours, chosen by measurement (`docs/evidence.md`).
"""

from fractions import Fraction
from typing import Any, Final, Literal

from replay_service.sampling.injection import InjectionMode, as_decimal, exact_ratio, rows_due
from replay_trainer.errors import InvalidTraining

Timing = Literal["even", "lasting"]

_LOW: Final = Fraction(1, 5)
"""Of the even share of rows, outside the part of the job that most rows come in; so damage is seen all along."""
_LAST_QUARTER: Final = (Fraction(3, 4), Fraction(1))
_MIDDLE_HALF: Final = (Fraction(1, 4), Fraction(3, 4))
_PARTS: Final = {
    "constant": _LAST_QUARTER,
    "constant_with_warmup": _LAST_QUARTER,
    "linear": _MIDDLE_HALF,
    "polynomial": _MIDDLE_HALF,
    "cosine": _MIDDLE_HALF,
}
"""The part of a job that most rows come in, by the schedule of its learning rate, as transformers calls it."""
_LEAST_STEPS: Final = 4

MOST_TIMES: Final = (1 - Fraction(3, 4) * _LOW) / Fraction(1, 4)
"""No step has more than so many times the even share of rows: that of the last quarter."""


def lasting(ratio: str, *, num_steps: int, scheduler: str, injection_mode: InjectionMode) -> dict[str, Any]:
    """Keys of a run that rehearses as many rows as at one ratio, most of them where their effect lasts.

    Args:
        ratio: the injection ratio of the whole training, as a decimal.
        num_steps: of the training. Fewer than four keep the one ratio.
        scheduler: of its learning rate, by the name that transformers gives it: `constant`, `linear`, `cosine`, ...
        injection_mode: of the run.

    Raises:
        InvalidTraining: when nobody knows where rows last with this scheduler.
        ValueError: when a step would have to rehearse more than its whole batch.
    """
    if scheduler not in _PARTS:
        raise InvalidTraining(
            f"timing lasting knows the learning rates {', '.join(_PARTS)}, and not {scheduler}; leave timing out, or "
            "write a schedule of the injection ratio"
        )
    if num_steps < _LEAST_STEPS:
        return {"injection_ratio": ratio, "injection_mode": injection_mode}
    begin, end = _PARTS[scheduler]
    first, stop = int(begin * num_steps), num_steps - int((1 - end) * num_steps)
    # In rows, since with the mode `add` they are not in proportion to the ratio.
    even = rows_due(exact_ratio(ratio), injection_mode, 1)
    often = (even * num_steps - even * _LOW * (num_steps - stop + first)) / (stop - first)
    low, high = (as_decimal(_ratio_of(share, injection_mode)) for share in (even * _LOW, often))
    points = [[first, high], *([[stop, low]] if stop < num_steps else [])]
    return {
        "injection_ratio": low,
        "injection_mode": injection_mode,
        "schedule": {"curve": "steps", "points": points},
    }


def _ratio_of(share: Fraction, injection_mode: InjectionMode) -> Fraction:
    """The injection ratio by which rows are due that are this share of the fine-tuning rows: undoes `rows_due`."""
    return exact_ratio(share if injection_mode == "replace" else share / (1 + share))
