"""The beginning of a loop whose run is ahead of it, as it is when a script is run again under the same run name.

A run serves the plans that it has made, and counts a report of a row once. So a second execution that begins at step 0
would train on the plans of the first one, and all that it reports would be dropped.
"""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

import structlog

from replay_service.sampling.controller import decision_steps
from replay_trainer.errors import InvalidTraining, ServiceUnavailable
from replay_trainer.ranks import wait_for_ranks
from replay_trainer.rehearsal import RehearsalStream

OnExisting = Literal["refuse", "rewind"]

_ASK_EVERY_S: Final = 0.2

_log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Beginning:
    """How a run was found when a loop was opened.

    Attributes:
        next_step: of the run.
        attempt: of the run; another one means that it was rewound since.
        on_existing: what to do where the run is ahead.
        sees_all_ranks: whether no rank could ask for a batch before all had looked.
    """

    next_step: int
    attempt: int
    on_existing: OnExisting
    sees_all_ranks: bool

    @classmethod
    def of_run(cls, run: Mapping[str, Any], on_existing: OnExisting, world_size: int) -> "Beginning":
        """How a run is, as `ReplayClient.run` describes it; waits until all ranks have looked, if they can be known.

        Raises:
            InvalidTraining: when `on_existing` is neither of the two.
        """
        if on_existing not in ("refuse", "rewind"):
            raise InvalidTraining(f"on_existing must be 'refuse' or 'rewind', not {on_existing!r}")
        return cls(run["next_step"], run["attempt"], on_existing, wait_for_ranks(world_size))

    def settle(self, stream: RehearsalStream) -> None:
        """Refuse or rewind a run that is ahead of its stream. Rank 0 rewinds, and the others wait until it has.

        Raises:
            InvalidTraining: when the run is ahead and is not to be rewound.
            ServiceUnavailable: when rank 0 did not rewind the run in the time that the client waits for an answer.
        """
        if self.next_step <= stream.next_step or self._is_rewound(stream):
            return
        if self.on_existing == "rewind":
            self._rewind(stream)
        elif stream.rank == 0 or self.sees_all_ranks:
            raise InvalidTraining(
                f"run {stream.run!r} is at step {self.next_step} already, but this loop begins at step "
                f"{stream.next_step}: it would train on the plans of an earlier execution, and its reports would be "
                "dropped; give the run another name, go on from a checkpoint (load_state_dict, then rewind), or open "
                f"the loop with on_existing='rewind', which forgets the run's steps from {stream.next_step} on"
            )

    def _rewind(self, stream: RehearsalStream) -> None:
        if stream.rank == 0:
            stream.client.rewind(stream.run, stream.next_step - 1)
            return
        ends_at = time.monotonic() + stream.client.retry.give_up_after_s
        while not self._is_rewound(stream):
            if time.monotonic() > ends_at:
                raise ServiceUnavailable(
                    f"rank 0 has not rewound run {stream.run!r} to step {stream.next_step}; open the loop on all "
                    "ranks, before any of them mixes its first batch"
                )
            time.sleep(_ASK_EVERY_S)

    def _is_rewound(self, stream: RehearsalStream) -> bool:
        return bool(stream.client.run(stream.run)["attempt"] != self.attempt)


def warn_if_undecided(run: Mapping[str, Any], num_steps: int | None) -> None:
    """Say so where an `auto` injection ratio is decided for the first time after the last step of a job."""
    config = run["config"]
    if config["injection_ratio"] != "auto" or num_steps is None:
        return
    budget = config["budget"]
    every_steps = decision_steps(budget["every_steps"], config["half_life_steps"])
    if every_steps >= num_steps:
        _log.warning(
            "ratio_stays_as_it_begins",
            run=run["run"],
            num_steps=num_steps,
            decided_every_steps=every_steps,
            hint="an auto injection ratio is decided after so many steps, which this job does not reach; set "
            "budget.every_steps or half_life_steps to fewer steps than the job has, or write the ratio down",
        )
