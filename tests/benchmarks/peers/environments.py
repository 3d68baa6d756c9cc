"""Virtual environments of the peers: each has one of its own, since their requirements exclude each other."""

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from replay_service.demo.materials import cache_folder

FOLDER_VARIABLE: Final = "REPLAY_BENCHMARK_PEERS"
_HERE: Final = Path(__file__).parent


@dataclass(frozen=True, slots=True)
class Environments:
    """Where the environments of the peers are."""

    folder: Path

    def prepare(self, peer: str) -> None:
        """Make the environment of a peer with what its requirement file pins; one that is there is brought up to it.

        Raises:
            subprocess.CalledProcessError: when it cannot be made; standard error says why.
        """
        place = self.folder / peer
        subprocess.run([sys.executable, "-m", "venv", str(place)], check=True)
        requirements = _HERE / f"{peer}.txt"
        subprocess.run([self.interpreter(peer), "-m", "pip", "install", "-q", "-r", str(requirements)], check=True)
        (place / _PREPARED).write_text(requirements.read_text())

    def is_prepared(self, peer: str) -> bool:
        """Whether the environment has what the requirement file pins now."""
        prepared = self.folder / peer / _PREPARED
        return prepared.exists() and prepared.read_text() == (_HERE / f"{peer}.txt").read_text()

    def interpreter(self, peer: str) -> str:
        return str(self.folder / peer / "bin" / "python")

    def command(self, peer: str) -> list[str]:
        """What runs the script of a peer."""
        return [self.interpreter(peer), str(_HERE / f"with_{peer}.py")]


_PREPARED: Final = "prepared.txt"
"""Written last, so that an environment without it is not whole."""


def default_folder() -> Path:
    """What `FOLDER_VARIABLE` says, else a folder beside the other things that this project keeps between runs."""
    told = os.environ.get(FOLDER_VARIABLE)
    return Path(told) if told else cache_folder() / "benchmark-peers"
