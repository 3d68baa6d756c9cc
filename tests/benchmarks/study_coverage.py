"""How often the intervals of a study hold the truth: `python -m tests.benchmarks.study_coverage`.

Simulated studies of which the truth is known, `tests.trainer.study.worlds`.
"""

import argparse
from collections.abc import Sequence
from typing import Final

import numpy as np

from replay_trainer.study.analysis import ArmSummary, analyzed
from replay_trainer.study.bootstrap import Interval
from tests.benchmarks.ratios import as_table
from tests.trainer.study.worlds import NEAR_AND_FAR, SimulatedArm

ARMS: Final = {
    "twice the rows": SimulatedArm(0.0125, times=2.0),
    "three times": SimulatedArm(0.0125, times=3.0, extra=0.02),
    "the same": SimulatedArm(0.05),
    "half": SimulatedArm(0.05, times=0.5),
    "without rows": SimulatedArm(0.0),
}
HEAD: Final = ("as uniform with", "kept: held", "bias", "rows equal to its: held", "bias", "called different")


def row_of(name: str, found: Sequence[ArmSummary]) -> list[str]:
    arm = ARMS[name]
    equal = [each.equivalence.ratio for each in found if each.equivalence is not None]
    ratios = [each for each in equal if each is not None]
    different = np.mean([each.p_adjusted < 0.05 for each in found])
    cells = [*_cells([each.kept for each in found], NEAR_AND_FAR.kept(arm))]
    return [name, *cells, *(_cells(ratios, arm.times) if ratios else ("-", "-")), f"{different:.0%}"]


def _cells(found: Sequence[Interval], truth: float) -> tuple[str, str]:
    held = np.mean([each.low <= truth <= each.high for each in found])
    return f"{held:.0%}", f"{np.mean([each.value for each in found]) - truth:+.3f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--studies", type=int, default=400)
    parser.add_argument("--resamples", type=int, default=400, help="of each study's bootstrap")
    args = parser.parse_args()
    found: dict[str, list[ArmSummary]] = {name: [] for name in ARMS}
    for seed in range(args.studies):
        for each in analyzed(NEAR_AND_FAR.study(ARMS, seed), args.resamples).arms:
            if each.arm in found:
                found[each.arm].append(each)
    print(as_table(HEAD, [row_of(name, arms) for name, arms in found.items()]))


if __name__ == "__main__":
    main()
