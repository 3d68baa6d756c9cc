"""Events in words, for people."""

import json
from typing import Final

from replay_service.ledger.event_log import Change, LoggedEvent
from replay_service.sampling.events import (
    Adjusted,
    Adopted,
    Closed,
    Configured,
    Created,
    Finished,
    JournalEvent,
    Planned,
    Reported,
    Rewound,
    Sealed,
    Trained,
)

_MOST_LETTERS: Final = 60
"""Of a setting's value."""


def text_of(logged: LoggedEvent) -> str:
    """An event in one short sentence."""
    if logged.changes:
        return ", ".join(f"{name} {_change(each)}" for name, each in logged.changes.items())
    return _text_of(logged.entry.event)


def _text_of(event: JournalEvent) -> str:
    match event:
        case Created():
            return f"created on generation {event.generation}"
        case Planned():
            return f"{len(event.rows)} samples planned"
        case Reported():
            return f"{len(event.rows)} samples reported by rank {event.rank}"
        case Trained():
            return f"{event.counts.num_rows} rows trained on by rank {event.rank}"
        case Configured():
            return "configured"
        case Adopted():
            return f"generation {event.generation} adopted"
        case Adjusted():
            return f"injection_ratio {event.injection_ratio}"
        case Sealed():
            return f"went on without the missing reports of step {event.step}"
        case Closed():
            return "closed"
        case Finished():
            return f"the job ended after {event.num_steps} steps"
        case Rewound():
            return f"rewound to step {event.step}" if event.step >= 0 else "rewound to the beginning"


def _change(change: Change) -> str:
    return f"{_short(change.before)} -> {_short(change.after)}"


def _short(value: object) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= _MOST_LETTERS else f"{text[: _MOST_LETTERS - 3]}..."
