"""cpprb's PrioritizedReplayBuffer, in process. Run by an interpreter that has cpprb."""

import sys
import time
from dataclasses import dataclass, field
from importlib.metadata import version

import numpy as np
from cpprb import PrioritizedReplayBuffer
from turns import ALPHA, BETA, ROWS, SEQ_LEN, Way, answers, made_up_rows, new_priorities, serve_turns

COLUMNS = {
    "input_ids": {"shape": SEQ_LEN, "dtype": np.uint16},
    "length": {"dtype": np.int32},
    "base_loss": {"dtype": np.float32},
    "base_correct": {"shape": SEQ_LEN // 8, "dtype": np.uint8},
    "stratum": {"dtype": np.int32},
}


@dataclass(slots=True)
class InProcess:
    buffer: PrioritizedReplayBuffer
    _rng: np.random.Generator = field(default_factory=lambda: np.random.default_rng(1))
    _batch: dict[str, np.ndarray] = field(default_factory=dict)

    def take(self) -> int:
        self._batch = self.buffer.sample(ROWS, beta=BETA)
        return len(self._batch["input_ids"])

    def report(self) -> None:
        self.buffer.update_priorities(self._batch["indexes"], new_priorities(self._batch["base_loss"], self._rng))

    def close(self) -> None:
        pass


def main() -> None:
    num_rows = int(sys.argv[1])
    with answers() as told:
        buffer = PrioritizedReplayBuffer(num_rows, COLUMNS, alpha=ALPHA)
        for rows in made_up_rows(num_rows):
            buffer.add(**rows)
        way = Way(lambda _: [InProcess(buffer)], time.process_time)
        serve_turns({"in process": way}, [f"cpprb {version('cpprb')}"], told)


if __name__ == "__main__":
    main()
