"""The shapes of answers about forgetting along the steps."""

from pydantic import Field

from replay_service.gateway.models import Model


class ForgettingCurve(Model):
    """Forgetting along the steps, nats per token: lists of equal lengths, one entry a point.

    Where there are more estimates than points, a point is a bucket of neighbouring ones.
    """

    step: list[int] = Field(description="The last step of each bucket.")
    nats: list[float | None] = Field(description="The last estimate in it; null where nothing can be said.")
    low: list[float | None] = Field(description="The lower end of its interval.")
    high: list[float | None] = Field(description="The upper end of its interval.")
    least_nats: list[float | None] = Field(description="The least estimate in the bucket.")
    most_nats: list[float | None] = Field(description="The greatest one, so that no peak is hidden.")


class DomainCurve(ForgettingCurve):
    """The curve of one domain."""

    name: str


class CurveMoment(Model):
    """The point of a run's journal that a curve knows."""

    as_of: int = Field(description="Number of the last event that the curve knows.")
    attempt: int = Field(description="Counts the rewinds, from 1.")
    is_whole: bool = Field(
        description="False: a long run was asked about for the first time, and the curve ends early; ask again, and it "
        "goes on."
    )


class ForgettingCurves(CurveMoment):
    """Curves of one run."""

    run: str
    level: float = Field(description="How often the intervals hold the truth.")
    budget_nats: float | None = Field(description="The budget of an `auto` injection ratio; null without one.")
    corpus: ForgettingCurve
    domains: list[DomainCurve] = Field(description="Of the 32 largest domains, or of the one that was asked for.")


class CurveOfRun(CurveMoment, ForgettingCurve):
    """The curve of one run's corpus, and its ratios at the same steps."""

    run: str
    injection_ratio: list[float | None] = Field(description="As it was planned.")
    achieved_ratio: list[float | None] = Field(
        description="Share of the rows trained on until then that was rehearsed; null where nobody told."
    )


class Comparison(Model):
    """Several runs side by side, by step."""

    level: float = Field(description="How often the intervals hold the truth.")
    runs: list[CurveOfRun]
