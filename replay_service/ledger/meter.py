"""The meter: what owners and the committer tell of their work, for whoever counts it."""

from typing import Final, Literal, Protocol

Phase = Literal["lock", "plan", "commit", "fold"]
PHASES: Final[tuple[Phase, ...]] = ("lock", "plan", "commit", "fold")

Outcome = Literal["planned", "reported", "duplicate", "rejected", "unmeasured"]
OUTCOMES: Final[tuple[Outcome, ...]] = ("planned", "reported", "duplicate", "rejected", "unmeasured")


class Meter(Protocol):
    """Counts the work of owners; any thread may call it."""

    def committed(self, seconds: float) -> None:
        """One commit of the journal took so long."""

    def spent(self, phase: Phase, seconds: float) -> None:
        """An owner spent so long in a phase."""

    def took(self) -> None:
        """A run was taken: this process owns it now."""

    def counted(self, run: str, outcome: Outcome, num: int) -> None:
        """So many samples of a run had this outcome."""

    def reported_after(self, run: str, seconds: float) -> None:
        """A report came so long after its plan was committed."""


class NoMeter:
    """Counts nothing."""

    def committed(self, seconds: float) -> None: ...

    def spent(self, phase: Phase, seconds: float) -> None: ...

    def took(self) -> None: ...

    def counted(self, run: str, outcome: Outcome, num: int) -> None: ...

    def reported_after(self, run: str, seconds: float) -> None: ...


NO_METER: Final = NoMeter()
