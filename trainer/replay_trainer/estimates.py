"""The service's estimates on a run, for the figures that a training loop logs."""

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Final

from replay_trainer.client import ReplayClient, RetryPolicy
from replay_trainer.errors import TrainerError

HASTY: Final = RetryPolicy(give_up_after_s=1.0, first_contact_s=1.0)
"""For figures, which nobody waits for long."""

_TIMES: Final = 100
"""How often a job of known length asks."""
_EVERY_STEPS: Final = 100
"""How often one of unknown length does."""


@dataclass(slots=True)
class Estimates:
    """Asks for the estimates a hundred times in a job and after its last step; one rank of a job does.

    Attributes:
        client: of the service; it is asked for a second at most.
        run: its name.
        num_steps: of the job; None if nobody knows.
    """

    client: ReplayClient
    run: str
    num_steps: int | None = None
    _latest: int = field(default=-1, init=False, repr=False)
    """Which of the hundred parts of the job was asked about last."""

    def __post_init__(self) -> None:
        self.client = self.client.with_retry(HASTY)

    def after(self, step: int) -> dict[str, Any]:
        """The estimates after a step, counted from 0; nothing where none are due, or the service does not answer.

        `forgetting` with its interval, `rows_due`, `rows_rehearsed` and `late_steps`; after the last step the
        `predicted_gain` too. All are as GET /v1/runs/{run}/stats gives them.
        """
        every = _EVERY_STEPS if self.num_steps is None else max(1, self.num_steps // _TIMES)
        is_last = step + 1 == self.num_steps
        if step // every == self._latest and not is_last:
            return {}
        self._latest = step // every
        found: dict[str, Any] = {}
        with suppress(TrainerError):
            found = self.client.stats(self.run)
        names = ("forgetting", "rows_due", "rows_rehearsed", *(("predicted_gain",) if is_last else ()))
        late = {"late_steps": found["report_delay"]["late_steps"]} if "report_delay" in found else {}
        return {name: found[name] for name in names if name in found} | late


def figures(values: Mapping[str, Any]) -> dict[str, float]:
    """What a tracker draws: all values that are numbers, and forgetting with its interval, nats per token.

    Those are `forgetting_nats`, `forgetting_low` and `forgetting_high`; the rest keep their names.
    """
    found = values.get("forgetting") or {}
    flat = {**values, **{f"forgetting_{name}": found.get(name) for name in ("nats", "low", "high")}}
    return {name: each for name, each in flat.items() if isinstance(each, float | int)}
