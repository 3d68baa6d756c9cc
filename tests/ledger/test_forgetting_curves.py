"""Curves of forgetting: made of the journal, whoever looks, however often, and after any rewind."""

from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from sqlalchemy import select

from replay_service.corpus.reading.reader import Corpus
from replay_service.errors import UnknownRun
from replay_service.ledger import forgetting_curves, restoring
from replay_service.ledger.curve_points import CORPUS, CurvePoint, Rewind
from replay_service.ledger.forgetting_curves import CurveReader
from replay_service.ledger.journal import Journal
from replay_service.ledger.owner import OwnerLimits, RunOwner
from replay_service.ledger.schema import forgetting_points
from replay_service.sampling.events import Reported
from tests.ledger.worlds import ids_of, losses_of, open_journal, record_of

SETTINGS = {"global_batch_size": 32, "injection_ratio": "0.25", "half_life_steps": 20.0}


@pytest.fixture
def journal(database_url: str) -> Iterator[Journal]:
    with open_journal(database_url) as journal:
        journal.create_run(record_of(**SETTINGS))
        yield journal


@pytest.fixture
def owner(journal: Journal, corpus: Corpus) -> RunOwner:
    return RunOwner(journal, "tuning", lambda _: corpus, OwnerLimits(snapshot_every=40))


def train(owner: RunOwner, first: int, num_steps: int, ahead: int = 4) -> None:
    """Plan steps some at a time, and report each by two ranks, with a loss that grows."""
    for begin in range(first, first + num_steps, ahead):
        for plan in owner.window(begin, min(ahead, first + num_steps - begin), 100).plans:
            ids = ids_of(plan)
            for rank in range(2):
                rng = np.random.default_rng([plan.step, rank])
                losses = 3.0 + 0.02 * plan.step + rng.normal(0.0, 0.3, len(ids[rank::2]))
                owner.report(losses_of(plan.step, ids[rank::2], rank=rank, loss=losses.tolist()))


def images(points: list[CurvePoint]) -> list[tuple[object, ...]]:
    return [
        (each.seq, each.step, each.next_step, each.injection_ratio, each.achieved_ratio, each.estimates.tobytes())
        for each in points
    ]


def look(journal: Journal, reader: CurveReader | None = None) -> list[tuple[object, ...]]:
    """The points that a reader sees, by default one of a process that has just started."""
    found = (reader or CurveReader(journal)).read("tuning", work_s=60.0)
    assert found.is_whole and found.as_of == journal.point("tuning").as_of
    return images(found.points)


def assert_true(journal: Journal, points: list[CurvePoint]) -> None:
    """Each point is the estimate of the state that a fold up to it has, and steps ascend."""
    assert all(one.step < other.step for one, other in pairwise(points))
    for point in points:
        state = restoring.latest(journal, journal.run("tuning"), point.seq).state
        visits = state.first_visits()
        assert (point.step, point.next_step) == (visits.step, state.next_step)
        estimates = visits.of_all()
        for row in point.estimates:
            found = estimates[0] if row["group"] == CORPUS else estimates[1 + row["group"]]
            expected = [np.nan if each is None else each for each in (found.nats, found.low, found.high)]
            np.testing.assert_array_equal([row["nats"], row["low"], row["high"]], expected)


def test_points_are_the_estimates_of_the_fold(owner: RunOwner, journal: Journal) -> None:
    train(owner, 0, 60)
    found = CurveReader(journal).read("tuning", work_s=60.0)
    assert_true(journal, found.points)
    assert len(found.points) > 10 and found.points[-1].step == 59
    groups = [each.estimates["group"].tolist() for each in found.points]
    assert groups[0] == groups[-1] == [CORPUS, 0, 1] and groups[1] == [CORPUS]
    assert any(not np.isnan(each.estimates["nats"][0]) for each in found.points)
    # Each but the last, which is of the latest event, is of all reports of a step: the next event begins another one.
    events = [entry.event for entry in journal.entries("tuning")]
    following = [events[each.seq] for each in found.points[:-1]]
    assert [(event.step, event.rank) for event in following if isinstance(event, Reported)] == [
        (each.step + 1, 0) for each in found.points[:-1]
    ]


def test_whoever_looks_however_often_sees_the_same(owner: RunOwner, journal: Journal) -> None:
    often = CurveReader(journal)
    for begin in range(0, 60, 5):
        train(owner, begin, 5)
        look(journal, often)
    assert look(journal, often) == look(journal)


@pytest.mark.parametrize("feedback", [{"mode": "latest"}, {"mode": "fenced", "lag": 4}])
def test_processes_that_look_one_after_the_other_see_what_one_sees_in_the_end(
    journal: Journal, corpus: Corpus, feedback: dict[str, object]
) -> None:
    seen = []
    for run, often in (("often", True), ("once", False)):
        journal.create_run(record_of(run, **SETTINGS, feedback=feedback))
        owner = RunOwner(journal, run, lambda _: corpus, OwnerLimits(snapshot_every=40))
        for step in range(24):
            train(owner, step, 1)
            if often:
                CurveReader(journal).read(run, work_s=60.0)
        seen.append(images(CurveReader(journal).read(run, work_s=60.0).points))
    assert seen[0] == seen[1]
    assert len(seen[0]) > 5


def test_a_look_reads_only_what_is_new(owner: RunOwner, journal: Journal, monkeypatch: pytest.MonkeyPatch) -> None:
    train(owner, 0, 60)
    look(journal)
    num_read: list[int] = []
    read = journal.entries

    def counted(run: str, first_seq: int = 0, *args: object, **options: object) -> Iterator[object]:
        for entry in read(run, first_seq, *args, **options):  # type: ignore[arg-type]
            num_read.append(entry.seq)
            yield entry

    monkeypatch.setattr(journal, "entries", counted)
    restarted = CurveReader(journal)
    look(journal, restarted)
    assert len(num_read) < 90, "from the latest point that is kept, by way of a snapshot before it"
    num_read.clear()
    look(journal, restarted)
    assert num_read == []
    train(owner, 60, 1)
    num_read.clear()
    look(journal, restarted)
    assert 0 < len(num_read) <= 3


REWINDS: list[Callable[[RunOwner], object]] = [
    lambda owner: owner.rewind(30),
    lambda owner: owner.rewind(58),
    lambda owner: owner.rewind(-1),
    lambda owner: (owner.rewind(40), train(owner, 41, 10), owner.rewind(20), train(owner, 21, 30)),
    lambda owner: (owner.rewind(20), train(owner, 21, 5), owner.rewind(24), train(owner, 25, 40)),
    lambda owner: (owner.configure({"floor": 0.5}), owner.rewind(59), train(owner, 60, 20)),
]


@pytest.mark.parametrize("change", REWINDS)
@pytest.mark.parametrize("looks", ["before", "never", "between"])
def test_a_rewind_takes_back_what_it_forgets_and_no_more(
    owner: RunOwner, journal: Journal, change: Callable[[RunOwner], object], looks: str
) -> None:
    reader = CurveReader(journal)
    train(owner, 0, 60)
    if looks != "never":
        look(journal, reader)
    change(owner)
    if looks == "between":
        look(journal, reader)
    train(owner, owner._state.next_step, 12)
    found = reader.read("tuning", work_s=60.0)
    assert_true(journal, found.points)
    assert found.points[-1].step == owner._state.recent.origin
    assert max(other.step - one.step for one, other in pairwise(found.points)) <= 15, (
        "no gap is longer than a quarter of the longest window"
    )
    assert_true(journal, CurveReader(journal).read("tuning", work_s=60.0).points)


def test_points_that_no_longer_stand_are_removed(owner: RunOwner, journal: Journal) -> None:
    train(owner, 0, 60)
    look(journal)
    owner.rewind(30)
    standing = look(journal)
    with journal.engine.connect() as connection:
        kept = connection.execute(select(forgetting_points.c.seq).order_by(forgetting_points.c.seq)).scalars().all()
    # The last point of a look is made anew by each.
    assert kept == [each[0] for each in standing[:-1]]


@pytest.mark.parametrize(
    ("rewind", "stands"), [((10, 4), True), ((10, 3), False), ((11, 5), True), ((11, 3), False), ((9, -1), True)]
)
def test_a_point_stands_unless_a_later_rewind_forgot_a_step_that_had_a_plan(rewind: Rewind, stands: bool) -> None:
    """Step 4 is the last that the first 10 events, 0 to 9, have planned."""
    point = CurvePoint(10, 2, 5, 0.25, None, np.empty(0))
    assert point.stands([rewind]) == stands
    assert point.stands([(12, 9), rewind, (15, 7)]) == stands


def test_a_long_run_is_looked_at_bit_by_bit(owner: RunOwner, journal: Journal) -> None:
    train(owner, 0, 60)
    ticks = iter(range(10**6))
    reader = CurveReader(journal, monotonic=lambda: float(next(ticks)))
    found, num_looks = reader.read("tuning", work_s=3.0), 1
    assert not found.is_whole
    while not found.is_whole:
        found, num_looks = reader.read("tuning", work_s=3.0), num_looks + 1
        assert_true(journal, found.points)
    assert num_looks > 3
    assert images(found.points) == look(journal)


def test_a_run_of_the_same_name_begins_anew(owner: RunOwner, journal: Journal, corpus: Corpus) -> None:
    reader = CurveReader(journal)
    train(owner, 0, 20)
    look(journal, reader)
    owner.close()
    owner.delete()
    with pytest.raises(UnknownRun):
        reader.read("tuning")
    journal.create_run(record_of(**SETTINGS))
    assert look(journal, reader) == look(journal) == []
    train(RunOwner(journal, "tuning", lambda _: corpus), 0, 9)
    assert look(journal, reader)[-1][1] == 8


def test_the_number_of_points_grows_slowly(tmp_path: Path, corpus: Corpus, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forgetting_curves, "_PER_RUN", 10)
    with open_journal(tmp_path / "ledger.db") as journal:
        journal.create_run(record_of(**SETTINGS))
        owner = RunOwner(journal, "tuning", lambda _: corpus)
        train(owner, 0, 200, ahead=50)
        steps = np.diff([each[1] for each in look(journal)[:-1]])  # type: ignore[arg-type]
        assert steps[-1] >= 17 and steps[0] <= 5 and len(steps) < 40
