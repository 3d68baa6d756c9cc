"""What works in background threads stays in its process: a fork has no threads, and a pickle holds none."""

import os

from replay_trainer.errors import InvalidTraining

_ADVICE = (
    "use it in the process of the training loop alone, not in the workers of a DataLoader or in what they call; a "
    "Rehearsal can be sent there, and opened"
)


def check_process(process: int, name: str) -> None:
    """Raises InvalidTraining where this process is not the one of this id."""
    if os.getpid() != process:
        raise InvalidTraining(f"{name} is used in a process that was forked from its own; {_ADVICE}")


def not_for_others(name: str) -> InvalidTraining:
    """The error that says that an object cannot be pickled."""
    return InvalidTraining(f"a {name} cannot be pickled; {_ADVICE}")
