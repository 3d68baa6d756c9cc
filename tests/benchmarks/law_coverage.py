"""How often the intervals of a plan hold the truth: `python -m tests.benchmarks.law_coverage`.

Simulated runs of which the law is known, `tests.planning.worlds`.
"""

import argparse
from typing import Any, Final

import numpy as np

from replay_service.planning.bootstrap import Interval, draws_of, resamples
from replay_service.planning.identified import forgetting_runs
from replay_service.planning.plan import ForgettingFit
from replay_service.planning.runs import Runs
from tests.benchmarks.ratios import as_table
from tests.planning.worlds import LENGTHS, SIZES, World, with_outliers

DESIGNS: Final[dict[str, dict[str, Any]]] = {
    "3 sizes, 3 lengths, 5 ratios": {},
    "1 size, 1 length, 5 ratios, 3 times": {"sizes": SIZES[-1:], "lengths": LENGTHS[-1:], "times": 3},
    "2 sizes, 1 length, 3 ratios, twice": {
        "sizes": SIZES[1:],
        "lengths": LENGTHS[-1:],
        "ratios": (0.0, 0.01, 0.05),
        "times": 2,
    },
}
RATIO: Final = 0.02
"""The truth of the planned ratio: the budget is what the law has there."""


def fitted(runs: Runs, num_resamples: int, seed: int) -> ForgettingFit:
    law = forgetting_runs(runs)
    return ForgettingFit(law, draws_of(law, list(resamples(runs, num_resamples, seed)), lambda: None))


def row_of(name: str, num_runs: int, num_resamples: int, outliers: int) -> list[str]:
    world = World(noise=0.1)
    budget = float(world.forgetting(SIZES[-1], LENGTHS[-1], RATIO))
    found: dict[str, list[Interval]] = {"ratio": [], "B": [], "alpha": [], "beta": []}
    for seed in range(num_runs):
        runs = world.runs(seed, **DESIGNS[name])
        places = np.random.default_rng(seed).choice(len(runs), outliers, replace=False).tolist()
        fit = fitted(with_outliers(runs, places, 3.0), num_resamples, seed)
        found["ratio"].append(Interval.of(fit.least_ratio(SIZES[-1], LENGTHS[-1], budget)))
        for each in ("B", "alpha", *(["beta"] if fit.law.free[3] else [])):
            found[each].append(fit.coefficients()[each])
    truths = {"ratio": RATIO, "B": world.B, "alpha": world.alpha, "beta": world.beta}
    errors = [abs(each.value / RATIO - 1) for each in found["ratio"]]
    cells = [_held(each, truths[key]) for key, each in found.items()]
    return [name, str(outliers), *cells, f"{np.median(errors):.0%}"]


def _held(found: list[Interval], truth: float) -> str:
    return f"{np.mean([each.low <= truth <= each.high for each in found]):.0%}" if found else "-"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=100, help="sets of runs of each design")
    parser.add_argument("--resamples", type=int, default=100, help="of each set's bootstrap")
    args = parser.parse_args()
    rows = [row_of(name, args.runs, args.resamples, outliers) for name in DESIGNS for outliers in (0, 1)]
    head = ("design", "outliers", "ratio: held", "B", "alpha", "beta", "median error of the ratio")
    print(as_table(head, rows))


if __name__ == "__main__":
    main()
