"""A run's events for operators: page by page, with the settings that a change changed."""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Final, get_args

from replay_service.ledger.journal import Journal
from replay_service.ledger.progress import Point
from replay_service.ledger.records import Entry
from replay_service.ledger.schema import COMMON_KINDS
from replay_service.sampling.events import Adjusted, Adopted, Configured, Created, JournalEvent, Rewound
from replay_service.sampling.injection import as_decimal, exact_ratio
from replay_service.sampling.run_config import RunConfig

KINDS: Final[tuple[str, ...]] = tuple(each.__name__.lower() for each in get_args(JournalEvent))
"""The kinds of events, as the journal names them."""

CHANGE_KINDS: Final = tuple(each for each in KINDS if each not in (*COMMON_KINDS, "created"))
"""Those that change how a run goes on."""

_CHANGES: Final = (Configured, Adopted, Adjusted)
_TOLD_BY: Final = ("created", "configured", "adopted", "adjusted", "rewound")


@dataclass(frozen=True, slots=True)
class Change:
    """A setting before and after an event; a part of a setting has a name with dots."""

    before: object
    after: object


@dataclass(frozen=True, slots=True)
class LoggedEvent:
    """An event and the settings that it changed, by name."""

    entry: Entry
    changes: dict[str, Change]


@dataclass(frozen=True, slots=True)
class EventPage:
    """Some events of a run, oldest first.

    Attributes:
        as_of: the number of the run's last event when it was read.
        next_after: the event to go on after; `as_of` where there are no more.
    """

    as_of: int
    events: list[LoggedEvent]
    next_after: int


@dataclass(frozen=True, slots=True)
class _Settings:
    """The settings of a run from a step on."""

    step: int
    config: RunConfig
    generation: int
    injection_ratio: str
    """The one in force before a schedule bends it: the written one, or the controller's."""

    def after(self, event: Configured | Adopted | Adjusted) -> "_Settings":
        match event:
            case Configured(step, config):
                is_same = _start(config) == _start(self.config)
                ratio = self.injection_ratio if is_same else as_decimal(config.ratio)
                return _Settings(step, config, self.generation, ratio)
            case Adopted(step, generation):
                return replace(self, step=step, generation=generation)
            case Adjusted(step, ratio):
                return replace(self, step=step, injection_ratio=as_decimal(exact_ratio(ratio)))

    def changes_to(self, after: "_Settings") -> dict[str, Change]:
        """The settings that differ, by name."""
        ratios = self.injection_ratio, after.injection_ratio
        before_all = _flat(asdict(self.config)) | {"generation": self.generation}
        after_all = _flat(asdict(after.config)) | {"generation": after.generation}
        names = dict.fromkeys([*before_all, *after_all])
        changes = {name: Change(before_all.get(name), after_all.get(name)) for name in names}
        changes = {name: each for name, each in changes.items() if each.before != each.after}
        if ratios[0] != ratios[1]:
            changes.setdefault("injection_ratio", Change(*ratios))
        return changes


def _start(config: RunConfig) -> tuple[object, object]:
    """A change of these sets the injection ratio anew."""
    return config.injection_ratio, config.budget.start()


def read_page(
    journal: Journal, run: str, after: int, limit: int, kinds: Collection[str] | None = None, as_of: int | None = None
) -> EventPage:
    """At most `limit` events of a run after number `after`, all or of some kinds.

    Args:
        as_of: the last event that may be read; by default the last that there is.

    Raises:
        UnknownRun: when there is no such run.
    """
    while True:
        point = journal.point(run)
        last = point.as_of if as_of is None else min(as_of, point.as_of)
        entries = list(journal.entries(run, after + 1, limit, kinds, last + 1))
        changes = _changes_of(journal, run, entries)
        # Of a run that was deleted and created again meanwhile, the pages need not fit together.
        if journal.point(run).incarnation == point.incarnation:
            break
    logged = [LoggedEvent(each, changes.get(each.seq, {})) for each in entries]
    return EventPage(last, logged, entries[-1].seq if len(entries) == limit else last)


def changes_of(journal: Journal, run: str) -> dict[int, dict[str, Change]]:
    """The settings that each event of a run changed, by the number of the event."""
    return dict(_changes(journal.entries(run, kinds=_TOLD_BY)))


def last_change(journal: Journal, run: str, point: Point) -> LoggedEvent | None:
    """The latest event before a point that is none of those that every step brings; None if there was none since the
    run was created."""
    entry = journal.latest(run, CHANGE_KINDS, point.end_seq)
    if entry is None:
        return None
    return LoggedEvent(entry, _changes_of(journal, run, [entry]).get(entry.seq, {}))


def _changes_of(journal: Journal, run: str, entries: Sequence[Entry]) -> dict[int, dict[str, Change]]:
    """The settings that events among `entries` changed, by the number of the event."""
    wanted = {each.seq for each in entries if isinstance(each.event, _CHANGES)}
    if not wanted:
        return {}
    told = journal.entries(run, kinds=_TOLD_BY, end_seq=max(wanted) + 1)
    return {seq: changes for seq, changes in _changes(told) if seq in wanted}


def _changes(entries: Iterator[Entry]) -> Iterator[tuple[int, dict[str, Change]]]:
    """The settings that each event of a journal changed, from its first one on."""
    standing: list[_Settings] = []
    for entry in entries:
        event = entry.event
        if isinstance(event, Created):
            ratio = as_decimal(event.config.ratio)
            standing = [_Settings(event.step, event.config, event.generation, ratio)]
        elif isinstance(event, Rewound):
            standing = [each for each in standing if each.step <= event.step]
        elif isinstance(event, _CHANGES):
            before = standing[-1]
            standing.append(before.after(event))
            yield entry.seq, before.changes_to(standing[-1])


def _flat(values: dict[str, object], prefix: str = "") -> dict[str, object]:
    """Settings with the parts of nested ones under names with dots."""
    flat: dict[str, object] = {}
    for name, value in values.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return flat
