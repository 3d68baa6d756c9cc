"""How well the predicted gain meets what prioritizing gains: `python -m tests.benchmarks.predicted_gain`.

Runs of `tests.sampling.gain_worlds` through the real planner and the real fold, with draws by damage and uniformly.
"""

import re
from typing import Final

import numpy as np

from tests.benchmarks.worlds_table import run_worlds
from tests.sampling.gain_worlds import GAIN_WORLDS, compared

HEAD: Final = (
    "world",
    "s",
    "held",
    "s said",
    "half-width",
    "mean falls by, said",
    "simulated",
    "signs agree",
    "worst falls by, said",
    "simulated",
    "rows saved, said",
)
PLACE: Final = re.compile("(?<=<!-- gain -->\n).*?(?=<!-- end of gain -->)", re.DOTALL)
"""Where in a page the table stands."""
_EVEN: Final = 1e-6
"""Below such a spread no domain is the worst."""


def row_of(index: int, seeds: range) -> list[str]:
    world = GAIN_WORLDS[index]
    found = compared(world, seeds)
    truth, estimate, half = np.mean(found.spreads, axis=0)
    mean, worst = (np.mean(each, axis=0) for each in (found.means, found.worsts))
    saved, low, high = np.mean(found.saved, axis=0)
    is_even = truth < _EVEN
    return [
        world.name,
        f"{truth:.2f}",
        f"{np.mean(found.held):.0%}",
        f"{estimate:.2f}",
        f"{half:.2f}",
        f"{mean[0]:.1%}",
        f"{mean[1]:.1%}",
        "-" if is_even else f"{found.agree(found.means):.0%}",
        "-" if is_even else f"{worst[0]:.0%}",
        "-" if is_even else f"{worst[1]:.0%}",
        f"{saved:.1%} ({low:.1%} to {high:.1%})",
    ]


def main() -> None:
    run_worlds(__doc__, [world.name for world in GAIN_WORLDS], HEAD, row_of, PLACE)


if __name__ == "__main__":
    main()
