"""Settings of a plan."""

from dataclasses import dataclass, field

from replay_service.sampling.bounds import check_bounds


@dataclass(frozen=True, slots=True)
class PlanSettings:
    """What to plan for.

    Raises:
        ValueError: names what is out of range.
    """

    budget_nats: float = field(
        metadata={"description": "The most forgetting, nats per token.", "gt": 0, "le": 1e9},
    )
    num_parameters: float | None = field(
        default=None,
        metadata={
            "description": "Parameters of the model to plan for. By default those of the largest model of the runs.",
            "gt": 0,
            "le": 1e18,
        },
    )
    target_tokens: float | None = field(
        default=None,
        metadata={
            "description": "Unique fine-tuning tokens to plan for. By default those of the longest run.",
            "gt": 0,
            "le": 1e18,
        },
    )
    rehearsal_weight: float = field(
        default=1.0,
        metadata={"description": "Weight of a rehearsed row in the loss of the job to plan for.", "gt": 0, "le": 1e6},
    )
    num_resamples: int = field(
        default=400, metadata={"description": "Resamples of the bootstrap over runs.", "ge": 20, "le": 100_000}
    )
    seed: int = field(default=0, metadata={"description": "Seed of the bootstrap.", "ge": 0, "le": 2**63 - 1})

    def __post_init__(self) -> None:
        check_bounds(self)
