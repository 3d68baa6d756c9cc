"""Times of the journal as answers tell them."""

from datetime import UTC, datetime
from typing import Any

from replay_service.ledger.lifecycle import Lifecycle
from replay_service.ledger.progress import Point


def iso_of(at_ms: int | None) -> str | None:
    """Milliseconds since 1970-01-01 UTC as ISO 8601; None where no time was written down."""
    if at_ms is None:
        return None
    seconds, milliseconds = divmod(at_ms, 1000)
    at = datetime.fromtimestamp(seconds, UTC).replace(microsecond=milliseconds * 1000)
    return at.isoformat(timespec="milliseconds")


def now_of(at_ms: int) -> datetime:
    """Milliseconds since 1970-01-01 UTC as a time."""
    return datetime.fromtimestamp(at_ms / 1000, UTC)


def moment(point: Point, lifecycle: Lifecycle) -> dict[str, Any]:
    """What the answers about a run say of the point that they are of, and of its state there."""
    return {
        "as_of": point.as_of,
        "attempt": point.attempt,
        "last_plan_at": iso_of(point.planned_at),
        "last_report_at": iso_of(point.reported_at),
        "last_trained_at": iso_of(point.trained_at),
        "state": lifecycle,
    }
