"""How well the law of forgetting foretells the longest runs of the largest model, from the others."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from replay_service.errors import UnusableRuns
from replay_service.planning.identified import SIZE_FACTOR, forgetting_runs
from replay_service.planning.laws import fit
from replay_service.planning.plan import relative_errors
from replay_service.planning.runs import Float64Array, Runs, num_levels


@dataclass(frozen=True, slots=True)
class Foretold:
    """Attributes:
    runs: those that were held out.
    num_fitted: runs that the law was fitted to.
    forgetting: foretold, nats per token, float64 [R].
    """

    runs: Runs
    num_fitted: int
    forgetting: Float64Array

    @property
    def errors(self) -> tuple[float, float]:
        """Mean relative errors of forgetting and of L_pt."""
        return relative_errors(self.runs, self.forgetting)


def predict_largest(runs: Runs) -> Foretold:
    """Fit the runs of smaller models and of less length, and foretell the longest of the largest model.

    Where all runs have one size, or one length, the other alone is held out.

    Raises:
        UnusableRuns: when the runs that are left cannot tell how forgetting changes with size or length.
    """
    largest, longest = _top(runs.num_parameters), _top(runs.target_tokens)
    if np.all(largest) and np.all(longest):
        raise UnusableRuns("all runs have one size and one length, so none is larger; add runs of others to predict")
    held = largest & longest
    if not np.any(held):
        raise UnusableRuns("the largest model has no run of the greatest length; add that run, which is predicted")
    smaller = ~largest | np.all(largest)
    shorter = ~longest | np.all(longest)
    rest = runs.take(smaller & shorter)
    for values, all_values, name in (
        (rest.num_parameters, runs.num_parameters, "sizes"),
        (rest.target_tokens, runs.target_tokens, "lengths"),
    ):
        if num_levels(all_values, SIZE_FACTOR) > 1 >= num_levels(values, SIZE_FACTOR):
            raise UnusableRuns(f"to predict the largest run, the others must have two {name} or more; add such runs")
    law = forgetting_runs(rest)
    coefficients = fit(law)
    held_runs = runs.take(held)
    of_held = type(law)(held_runs, law.free, law.reference_size, law.reference_tokens)
    forgetting = np.exp(of_held.differences(coefficients)) * held_runs.forgetting
    return Foretold(held_runs, len(rest), forgetting)


def _top(values: Float64Array) -> NDArray[np.bool_]:
    """Which values belong to the highest level."""
    ordered = np.unique(values)
    gaps = (np.diff(np.log(ordered)) > np.log(SIZE_FACTOR)).nonzero()[0]
    least = ordered[gaps[-1] + 1] if len(gaps) else ordered[0]
    highest: NDArray[np.bool_] = values >= least
    return highest
