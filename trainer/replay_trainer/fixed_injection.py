"""The steps that a client knows without asking, where a run promises that its injection never changes.

How many rows a step holds then follows from the ratio alone, by the arithmetic that the service plans by; which samples
they are, only its plan can tell.
"""

from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any

from replay_service.sampling.injection import exact_ratio, num_rehearsed, rank_positions, rehearsed_before, rows_due
from replay_service.wire.batches import Batch, StepHeader


@dataclass(frozen=True, slots=True)
class FixedInjection:
    """How many rows each step of a run rehearses, and which steps hold some for one rank.

    Attributes:
        rows_a_step: how many rows of the whole job a step rehearses on average.
        rank: in [0, world_size).
        world_size: ranks that share a step.
    """

    rows_a_step: Fraction
    rank: int
    world_size: int

    @classmethod
    def of_run(cls, run: dict[str, Any], rank: int, world_size: int) -> "FixedInjection | None":
        """What is known of a run as `ReplayClient.run` describes it; None where its injection may change."""
        config = run["config"]
        if not config.get("injection_fixed"):  # nor does an earlier release of the service know of it
            return None
        ratio = exact_ratio(config["injection_ratio"])
        return cls(rows_due(ratio, config["injection_mode"], config["global_batch_size"]), rank, world_size)

    def holds(self, step: int) -> bool:
        """Whether the step holds a row for the rank."""
        return len(rank_positions(self.counts(step)[0], step, self.rank, self.world_size)) > 0

    def window(self, steps: range) -> range:
        """These steps, of which there is one at least, up to the last that holds a row; none if the first is empty."""
        if not self.holds(steps[0]):
            return steps[:0]
        last = next(step for step in reversed(steps) if self.holds(step))
        return range(steps[0], last + 1)

    def empty(self, step: int, latest: Batch) -> Batch:
        """The batch of a step that holds nothing for the rank, like what came last.

        Its counts are those of its plan. Attempt, generation and policy version are those of `latest`: the plan itself
        may be of later ones, and nothing of it falls to this rank.
        """
        header = StepHeader(step, *self.counts(step), latest.header.steps[-1].policy_version)
        return replace(latest.rows(slice(0)), header=replace(latest.header, steps=[header]))

    def counts(self, step: int) -> tuple[int, int]:
        """How many rows the whole job rehearses in the step, and in all the steps before."""
        return num_rehearsed(step, self.rows_a_step, 1), rehearsed_before(step, self.rows_a_step, 1)
