"""What clients of the run `tune` were told, by whichever process and however often, and whether it stands."""

import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from replay_service.ledger import audit
from replay_service.sampling.events import Planned, Reported
from replay_service.wire.batches import Batch
from tests.ledger.worlds import events_of, open_journal


@dataclass(slots=True)
class Told:
    """The plans that were served, whole and not a rank's slice, and the reports that were acknowledged."""

    plans: dict[int, list[int]] = field(default_factory=dict)
    acknowledged: set[tuple[int, int]] = field(default_factory=set)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def served(self, batch: Batch) -> Batch:
        """Remember the plans of a batch; a step that was served before was given the same one."""
        with self._lock:
            for header in batch.header.steps:
                ids = batch.of_step(header.step).sample_id.tolist()
                assert self.plans.setdefault(header.step, ids) == ids, f"the plan of step {header.step} changed"
        return batch

    def reported(self, rows: np.ndarray) -> None:
        """Remember that these rows (LOSS_ROW) were acknowledged."""
        with self._lock:
            self.acknowledged.update(pairs(rows["step"], rows["sample_id"]))

    def assert_stands(self, root: Path, database_url: str) -> None:
        """The journal verifies, has the plans as they were served, and every acknowledged report once."""
        with open_journal(database_url) as journal:
            verdict = audit.verify(journal, journal.run("tune"))
            assert verdict.holds, verdict
            events = events_of(journal, "tune")
        planned = {event.step: event.rows["sample_id"].tolist() for event in events if isinstance(event, Planned)}
        assert self.plans == {step: planned.get(step) for step in self.plans}
        standing = [
            pair
            for event in events
            if isinstance(event, Reported)
            for pair in pairs(np.full(len(event.rows), event.step), event.rows["sample_id"])
        ]
        assert len(set(standing)) == len(standing), "a report counts twice"
        assert not self.acknowledged - set(standing), "acknowledged reports are missing"


def pairs(steps: np.ndarray, sample_ids: np.ndarray) -> Iterator[tuple[int, int]]:
    return zip(steps.tolist(), sample_ids.tolist(), strict=True)
