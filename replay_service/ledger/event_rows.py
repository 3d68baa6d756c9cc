"""Events as rows of the journal's table: kind, step and what is asked for are columns, the rest is one payload."""

import json
from dataclasses import asdict
from functools import lru_cache
from typing import Final

import numpy as np
from sqlalchemy import Row

from replay_service.sampling.events import (
    PLANNED_ROW,
    REPORTED_ROW,
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
from replay_service.sampling.run_config import RunConfig
from replay_service.sampling.trained import TrainedCounts
from replay_service.wire.losses import GAINS_NOT_TOLD

_WITH_GAINS: Final = b"\x01"
"""Begins the payload of a report, whose length it makes odd. Without gains a payload was records of 32 bytes alone."""
_REPORTED_WITHOUT_GAINS: Final = np.dtype([(n, REPORTED_ROW[n]) for n in REPORTED_ROW.names or () if n != "num_gains"])


def columns_of(event: JournalEvent) -> dict[str, object]:
    """The columns of an event, but for its place in a journal."""
    columns: dict[str, object] = {
        "kind": type(event).__name__.lower(),
        "step": event.step,
        "policy_version": None,
        "rehearsed_before": None,
        "rank": None,
        "payload": b"",
    }
    match event:
        case Planned():
            columns |= {"policy_version": event.policy_version, "rehearsed_before": event.rehearsed_before}
            columns["payload"] = event.rows.tobytes()
        case Reported():
            columns |= {"rank": event.rank, "payload": _WITH_GAINS + event.rows.tobytes()}
        case Trained():
            columns |= {"rank": event.rank}
            columns["payload"] = json.dumps({"first_step": event.first_step, **event.counts._asdict()}).encode()
        case Configured():
            columns["payload"] = event.config.to_json().encode()
        case Created():
            head = {
                "config": asdict(event.config),
                "generation": event.generation,
                "num_quantiles": event.num_quantiles,
                "corpus_fingerprint": event.corpus_fingerprint,
            }
            columns["payload"] = json.dumps({**head, "sizes": event.sizes}).encode()
        case Adjusted():
            reason = {"injection_ratio": event.injection_ratio, "reason": event.reason}
            columns["payload"] = json.dumps(reason).encode()
        case Finished():
            columns["payload"] = json.dumps({"num_steps": event.num_steps}).encode()
        case Adopted():
            columns["payload"] = json.dumps({"generation": event.generation, "sizes": event.sizes}).encode()
    return columns


def event_of(row: Row[tuple[object, ...]]) -> JournalEvent:
    """The event that a row of `events` holds.

    Raises:
        ValueError: when this release knows no event of its kind.
    """
    match row.kind:
        case "planned":
            return planned_of(row)
        case "reported":
            return Reported(row.step, row.rank, reported_rows(row.payload))
        case "trained":
            counts = json.loads(row.payload)
            return Trained(row.step, row.rank, counts.pop("first_step"), TrainedCounts(**counts))
        case "configured":
            return Configured(row.step, _config_of(row.payload.decode()))
        case "created":
            return created_of(row.payload)
        case "adopted":
            head = json.loads(row.payload)
            return Adopted(row.step, head["generation"], tuple(head["sizes"]))
        case "adjusted":
            return Adjusted(row.step, **json.loads(row.payload))
        case "sealed":
            return Sealed(row.step)
        case "closed":
            return Closed(row.step)
        case "finished":
            return Finished(row.step, **json.loads(row.payload))
        case "rewound":
            return Rewound(row.step)
    raise ValueError(f"the journal has an event of kind {row.kind!r}, which this release does not know")


def reported_rows(payload: bytes) -> np.ndarray:
    """The records of a report: REPORTED_ROW [n]. Earlier releases told of no gains."""
    if payload[:1] == _WITH_GAINS and len(payload) % 2:
        return np.frombuffer(payload, dtype=REPORTED_ROW, offset=1)
    before = np.frombuffer(payload, dtype=_REPORTED_WITHOUT_GAINS)
    rows = np.empty(len(before), dtype=REPORTED_ROW)
    for name in before.dtype.names or ():
        rows[name] = before[name]
    rows["num_gains"] = GAINS_NOT_TOLD
    return rows


def created_of(payload: bytes) -> Created:
    """The event of a run's creation, from its payload."""
    head = json.loads(payload)
    config, sizes = _config_of(json.dumps(head["config"])), tuple(head["sizes"])
    return Created(config, head["generation"], head["num_quantiles"], sizes, head.get("corpus_fingerprint"))


@lru_cache(maxsize=1024)
def _config_of(text: str) -> RunConfig:
    """To check a configuration takes most of the time of a list of runs, and it is the same at each look."""
    return RunConfig.from_json(text)


def planned_of(row: Row[tuple[object, ...]]) -> Planned:
    """The plan that a row of `events` holds; no bytes of its samples are copied."""
    rows = np.frombuffer(row.payload, dtype=PLANNED_ROW)
    return Planned(row.step, row.policy_version, row.rehearsed_before, rows)
