"""One side of the comparison: a process that measures its own ways when it is asked to, by lines of JSON."""

import json
import subprocess
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

_START_S: Final = 300.0
_TURN_S: Final = 120.0
"""What a turn may take longer than it measures."""


@dataclass(frozen=True, slots=True)
class Turn:
    """What one measurement gave: rows a second, seconds a batch at two quantiles, CPU seconds a row."""

    rate: float
    p50: float
    p99: float
    cpu: float


@dataclass(frozen=True, slots=True)
class Side:
    """A running side. It answers one line with one line.

    Attributes:
        versions: what runs, such as "cpprb 11.0.0".
    """

    versions: list[str]
    _process: "subprocess.Popen[str]"
    _log: Path

    def turn(self, way: str, num_clients: int, seconds: float) -> Turn:
        """Let clients work for so long.

        Raises:
            RuntimeError: when the side ends, or does not answer in time; with the end of its log.
        """
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"way": way, "clients": num_clients, "seconds": seconds}) + "\n")
        self._process.stdin.flush()
        return Turn(**_answer(self._process, self._log, seconds + _TURN_S))


@contextmanager
def running_side(command: Sequence[str], log: Path) -> Iterator[Side]:
    """Start a side and let it end afterwards; what it prints to standard error goes to `log`.

    Raises:
        RuntimeError: when it ends instead, or is not ready in time; with the end of its log.
    """
    with (
        log.open("w") as errors,
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True) as process,
    ):
        try:
            ready = _answer(process, log, _START_S)
            yield Side(ready["versions"], process, log)
        finally:
            assert process.stdin is not None
            process.stdin.close()
            _end(process)


def _answer(process: "subprocess.Popen[str]", log: Path, seconds: float) -> dict[str, Any]:
    """The next line of a process, which is ended if none comes in time."""
    assert process.stdout is not None
    alarm = threading.Timer(seconds, process.kill)
    alarm.start()
    line = process.stdout.readline()
    alarm.cancel()
    if not line:
        _end(process)
        end = "\n".join(log.read_text(errors="replace").splitlines()[-20:])
        raise RuntimeError(f"{process.args!r} ended, or gave no answer within {seconds:.0f} s; its log ends so:\n{end}")
    answer: dict[str, Any] = json.loads(line)
    return answer


def _end(process: "subprocess.Popen[str]") -> None:
    try:
        process.wait(timeout=30)
    except subprocess.TimeoutExpired:
        process.kill()
