"""The shapes of answers about rehearsed samples."""

from pydantic import Field

from replay_service.gateway.models import Model
from replay_service.sampling.damage import Signal


class SampleInfo(Model):
    """Measurements of one rehearsed sample."""

    sample_id: int
    stratum: int
    stratum_name: str = Field(examples=["encyclopedia_en/q0"])
    domain: str
    damage: float = Field(
        description="At the last step, in the unit of the run's signal: a share of its predictions, nats per token, or "
        "0 and 1."
    )
    age_steps: int = Field(description="Steps that were planned since the last step: how old loss and damage are.")
    num_visits: int = Field(description="How often it was rehearsed and reported.")
    first_step: int
    last_step: int
    base_loss_nats: float = Field(description="Loss of the base model, nats per token.")
    loss_nats: float = Field(description="Loss at the last step, nats per token.")
    excess_nats: float = Field(description="loss_nats - base_loss_nats.")
    num_tokens: int = Field(description="Predicted tokens, over all visits.")
    num_flips: int = Field(description="Of those, collateral damage.")
    text: str | None = Field(
        description="With `text`, the sample as the corpus's tokenizer reads it; null if it was not asked for, cannot "
        "be told (`text_problem`), or cannot be read."
    )


class SamplePage(Model):
    run: str
    as_of: int = Field(description="Number of the last event of the run that the answer knows.")
    samples: list[SampleInfo]
    signal: Signal = Field(description="The run's signal, in whose unit `damage` is.")
    text_problem: str | None = Field(description="Why no sample has a text, if texts were asked for.")
    cursor: str | None = Field(description="Give it with the next request to go on; null at the end.")


class SampleVisit(Model):
    """One report of a sample."""

    step: int
    rank: int
    loss_nats: float
    num_tokens: int
    num_flips: int
    num_gains: int | None = Field(description="null: the report did not tell.")


class SampleHistory(SampleInfo):
    """Measurements of one sample, visit by visit."""

    as_of: int = Field(description="Number of the last event of the run that the answer knows.")
    signal: Signal = Field(description="The run's signal, in whose unit `damage` is.")
    text_problem: str | None = Field(description="Why there is no text, if it was asked for.")
    visits: list[SampleVisit]
