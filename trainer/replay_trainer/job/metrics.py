"""The metrics of a job: JSON lines that rank 0 appends to, and that anybody may follow."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True, slots=True)
class MetricsFile:
    """One line a measurement, each with its `kind` ("step" or "evaluation") and its `step`."""

    path: Path

    def begin(self, first_step: int) -> None:
        """Make the file ready for lines from `first_step` on; what a resumed job will measure again is dropped."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        kept = [line for line in self.lines() if line["step"] < first_step]
        self.path.write_text("".join(json.dumps(line) + "\n" for line in kept))

    def append(self, kind: str, step: int, **values: Any) -> None:
        with self.path.open("a") as file:
            file.write(json.dumps({"kind": kind, "step": step, **values}) + "\n")

    def lines(self) -> Iterator[dict[str, Any]]:
        """All whole lines so far."""
        if not self.path.exists():
            return
        for line in self.path.read_text().splitlines(keepends=True):
            if line.endswith("\n"):
                yield json.loads(line)

    def evaluations(self) -> dict[int, dict[str, float]]:
        """Held-out losses by domain, of each step that was measured: nats per token."""
        return {line["step"]: line["losses"] for line in self.lines() if line["kind"] == "evaluation"}
