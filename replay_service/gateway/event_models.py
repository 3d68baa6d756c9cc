"""The shapes of answers about what happened to a run."""

from typing import Any

from pydantic import Field

from replay_service.gateway.models import Model


class SettingChange(Model):
    """A setting before and after an event."""

    before: Any
    after: Any


class EventInfo(Model):
    """One event of a run's journal; what its kind does not have is null."""

    seq: int = Field(description="Its number; the first event of a run has 0.")
    at: str | None = Field(description="When it was committed. ISO 8601, UTC; null if an earlier release wrote it.")
    kind: str
    step: int = Field(description="The step that it belongs to; of a change, the last that had a plan. -1: none had.")
    attempt: int = Field(description="Counts the rewinds before it, from 1.")
    rank: int | None = Field(None, description="Of reports.")
    first_step: int | None = Field(None, description="Of reports of trained rows: the first of their steps.")
    num_rows: int | None = Field(None, description="Samples in a plan or a report.")
    text: str = Field(description="The same in one short sentence.")
    change: dict[str, SettingChange] | None = Field(None, description="The settings that it changed, by name.")
    reason: str | None = Field(None, description="Why the controller took another injection ratio.")


class EventPage(Model):
    run: str
    as_of: int = Field(description="Number of the last event of the run.")
    events: list[EventInfo]
    next: int = Field(description="Give it as `after` to go on; where it equals as_of, there is nothing further yet.")


class EventSummary(Model):
    """Plans, reports and counts of trained rows that were committed one after the other, summed up."""

    seq: int = Field(description="The number of the last of these events.")
    at: str | None = Field(description="When that was committed. ISO 8601, UTC; null if an earlier release wrote it.")
    attempt: int = Field(description="Counts the rewinds before it, from 1.")
    first_step: int = Field(description="The first step that the events belong to.")
    last_step: int = Field(description="The last one.")
    num_plans: int = Field(description="Steps that were planned.")
    rows_rehearsed: int = Field(description="Samples in these plans.")
    num_reports: int
    rows_reported: int = Field(description="Samples in these reports.")
    num_counts: int = Field(description="Reports of what a rank has trained on.")
