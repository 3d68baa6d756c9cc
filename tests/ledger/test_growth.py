"""Runs on a corpus that grows: what they see of it, and when."""

import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from replay_service.corpus.reading.reader import Corpus, CorpusStore
from replay_service.errors import CorpusReplaced, CorpusUnavailable, InvalidRun
from replay_service.ledger import audit
from replay_service.ledger.journal import Journal
from replay_service.ledger.owner import OwnerLimits, RunOwner
from replay_service.ledger.owners import Owners
from replay_service.sampling.events import Adopted, Planned
from tests.ledger.worlds import bytes_of, create, events_of, ids_of, losses_of, open_journal, read_state, record_of
from tests.sampling.worlds import same_plan
from tests.support import grow_corpus, make_corpus

AHEAD = 64
SIZES = (20, 20, 20, 20)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a corpus, `wiki`, of four strata of 20 samples; it is this test's own."""
    make_corpus(tmp_path)
    return tmp_path


@pytest.fixture
def journal(database_url: str) -> Iterator[Journal]:
    with open_journal(database_url) as journal:
        yield journal


def owner_on(journal: Journal, folder: Path, **config: object) -> RunOwner:
    """The owner of a new run on the corpus in `folder`, which sees it grow."""
    journal.create_run(record_of(sizes=SIZES, **config))
    return another_owner(journal, folder)


def another_owner(journal: Journal, folder: Path) -> RunOwner:
    store = CorpusStore(folder)
    return RunOwner(journal, "tuning", lambda _: store.get("wiki"), OwnerLimits(snapshot_every=3))


def seen(owner: RunOwner) -> tuple[int, list[int]]:
    """The generation that a run sees, and the sizes of its strata."""
    return read_state(owner, lambda state: (state.generation, state.cursors.sizes.tolist()))


def holds(journal: Journal) -> bool:
    return audit.verify(journal, journal.run("tuning")).holds


class Epochs:
    """What is left of the epoch of each stratum."""

    def __init__(self, corpus: Corpus) -> None:
        self.left: dict[int, set[int]] = {}
        self.see(corpus, range(0))

    def see(self, corpus: Corpus, known: range) -> None:
        """The run sees this generation now; the strata in `known` were there before."""
        partition, before = corpus.partition, getattr(self, "ids", {})
        self.ids = {
            k: set(partition.locate(np.full(size, k), np.arange(size)).tolist())
            for k, size in enumerate(partition.sizes.tolist())
        }
        for k, ids in self.ids.items():
            self.left[k] = self.left[k] | (ids - before[k]) if k in known else set(ids)

    def draw(self, plan: Planned) -> None:
        """Check that a plan draws nothing twice in an epoch; within a plan, the rows stand in no order."""
        for k in set(plan.rows["stratum"].tolist()):
            drawn = Counter(plan.rows["sample_id"][plan.rows["stratum"] == k].tolist())
            while drawn.total() >= len(self.left[k]):
                drawn.subtract(self.left[k])
                assert all(count >= 0 for count in drawn.values()), "an epoch ended before all was drawn"
                self.left[k] = set(self.ids[k])
            drawn = +drawn
            assert set(drawn) <= self.left[k]
            assert drawn.total() == len(drawn), "a sample was drawn twice in an epoch"
            self.left[k] -= set(drawn)


@pytest.mark.parametrize("policy", ["uniform", "mix_cd"])
def test_within_an_epoch_nothing_repeats_while_the_corpus_grows(journal: Journal, folder: Path, policy: str) -> None:
    owner = owner_on(journal, folder, injection_ratio="1", policy=policy, global_batch_size=13, held_back=0.0)
    epochs, num_strata = Epochs(Corpus(folder / "wiki")), 4
    for turn in range(6):
        for plan in owner.window(4 * turn, 4, AHEAD).plans:
            epochs.draw(plan)
            ids = ids_of(plan)
            owner.report(losses_of(plan.step, ids, num_flips=turn))
        grow_corpus(folder, num_rows=5 + 3 * turn, new_domain="it" if turn == 2 else None)
        owner.adopt()
        epochs.see(Corpus(folder / "wiki"), range(num_strata))
        num_strata = len(seen(owner)[1])
    assert num_strata == 6
    assert read_state(owner, lambda state: state.cursors.epoch.max()) > 1
    assert holds(journal)


def test_a_run_sees_what_it_saw_until_it_adopts(journal: Journal, folder: Path) -> None:
    owner = owner_on(journal, folder, injection_ratio="1")
    grown = grow_corpus(folder, num_rows=400)
    plans = owner.window(0, 3, AHEAD).plans
    assert seen(owner) == (1, list(SIZES))
    assert all((plan.rows["sample_id"] >> 32 < 3).all() for plan in plans)
    owner.adopt()
    assert seen(owner) == (2, grown.partition().sizes.tolist())
    assert all(map(same_plan, owner.window(0, 3, AHEAD).plans, plans))


def test_new_samples_are_drawn_at_once_and_as_often_as_those_that_are_left(journal: Journal, folder: Path) -> None:
    owner = owner_on(journal, folder, injection_ratio="1", policy="uniform", global_batch_size=40)
    owner.window(0, 1, AHEAD)
    grow_corpus(folder, num_rows=40, new_domain="it")
    grow_corpus(folder, num_rows=160)
    owner.adopt()
    (plan,) = owner.window(1, 1, AHEAD).plans
    assert {3, 4} <= set((plan.rows["sample_id"] >> 32).tolist())
    assert (plan.rows["stratum"] >= 4).any()
    assert plan.rows["times_drawn"].tolist() == [1] * 40
    assert plan.rows["probability"] == pytest.approx(1 / 280)


def test_a_generation_between_can_be_adopted(journal: Journal, folder: Path) -> None:
    owner = owner_on(journal, folder)
    second, third = grow_corpus(folder), grow_corpus(folder, new_domain="it")
    owner.adopt(2)
    assert seen(owner) == (2, second.partition().sizes.tolist())
    owner.adopt(3)
    assert seen(owner) == (3, third.partition().sizes.tolist())
    assert [(event.step, event.generation) for event in events_of(journal) if isinstance(event, Adopted)] == [
        (-1, 2),
        (-1, 3),
    ]


@pytest.mark.parametrize("generation", [-1, 0, 1, 4, 2**40])
def test_a_generation_that_is_gone_by_or_not_there_cannot_be_adopted(
    journal: Journal, folder: Path, generation: int
) -> None:
    owner = owner_on(journal, folder)
    for _ in range(2):
        grow_corpus(folder)
    owner.adopt(2)
    before, num_events = bytes_of(owner), journal.num_events("tuning")
    with pytest.raises(InvalidRun, match=f"cannot adopt generation {generation}") as refusal:
        owner.adopt(generation)
    assert refusal.value.extensions == {"generation": 2}
    assert (bytes_of(owner), journal.num_events("tuning")) == (before, num_events)


def test_adopting_what_is_seen_already_writes_nothing(journal: Journal, folder: Path) -> None:
    owner = owner_on(journal, folder)
    owner.adopt()
    owner.adopt(1)
    assert events_of(journal) == []


def lived(owner: RunOwner, folder: Path) -> dict[int, bytes]:
    """Twelve steps with reports, during which three generations are adopted; the state's bytes after each step."""
    after = {-1: bytes_of(owner)}
    for step in range(12):
        (plan,) = owner.window(step, 1, AHEAD).plans
        owner.report(losses_of(step, ids_of(plan)[::2], num_flips=step % 5))
        if step in (3, 4, 8):
            grow_corpus(folder, num_rows=17, new_domain="it" if step == 4 else None)
            owner.adopt()
        after[step] = bytes_of(owner)
    return after


def test_a_restart_finds_the_state_that_was_left(journal: Journal, folder: Path) -> None:
    owner = owner_on(journal, folder, injection_ratio="0.5")
    after = lived(owner, folder)
    restarted = another_owner(journal, folder)
    assert bytes_of(restarted) == after[11]
    assert holds(journal)


@pytest.mark.parametrize("step", [-1, 0, 3, 4, 7, 8, 11])
def test_a_rewind_across_an_adoption_is_exact_to_the_byte(journal: Journal, folder: Path, step: int) -> None:
    owner = owner_on(journal, folder, injection_ratio="0.5")
    after = lived(owner, folder)
    plans = owner.window(0, 12, AHEAD).plans
    owner.rewind(step)
    assert bytes_of(owner) == after[step]
    assert bytes_of(another_owner(journal, folder)) == after[step]
    again = another_owner(journal, folder)
    assert seen(again)[0] == 1 + sum(step >= adopted for adopted in (3, 4, 8))
    assert all(map(same_plan, again.window(0, step + 1, AHEAD).plans if step >= 0 else [], plans))
    again.window(step + 1, 2, AHEAD)
    assert holds(journal)


def test_a_run_that_is_told_to_looks_for_later_generations_of_itself(journal: Journal, folder: Path) -> None:
    owner = owner_on(journal, folder, adopt_every_steps=4)
    generations = []
    for step in range(14):
        if step in (1, 2, 9):
            grow_corpus(folder)
        owner.window(step, 1, AHEAD)
        generations.append(seen(owner)[0])
    assert generations == [1] * 4 + [3] * 5 + [4] * 5
    assert [event.step for event in events_of(journal) if isinstance(event, Adopted)] == [3, 8]
    assert holds(journal)


def test_a_generation_that_was_adopted_when_asked_counts_as_the_last(journal: Journal, folder: Path) -> None:
    owner = owner_on(journal, folder, adopt_every_steps=4)
    owner.window(0, 3, AHEAD)
    grow_corpus(folder)
    owner.adopt()
    grow_corpus(folder)
    owner.window(3, 4, AHEAD)
    assert seen(owner)[0] == 2
    owner.window(7, 1, AHEAD)
    assert seen(owner)[0] == 3


def test_looking_for_generations_can_be_begun_and_left_off_while_a_run_goes_on(journal: Journal, folder: Path) -> None:
    owner = owner_on(journal, folder)
    owner.window(0, 3, AHEAD)
    grow_corpus(folder)
    owner.configure({"adopt_every_steps": 1})
    owner.window(3, 1, AHEAD)
    assert seen(owner)[0] == 2
    owner.configure({"adopt_every_steps": 0})
    grow_corpus(folder)
    owner.window(4, 1, AHEAD)
    assert seen(owner)[0] == 2


def test_a_fenced_run_does_not_look_for_generations_of_itself_but_adopts_when_asked(
    journal: Journal, folder: Path
) -> None:
    owner = owner_on(journal, folder, feedback={"mode": "fenced", "lag": 2})
    with pytest.raises(InvalidRun, match="adopt_every_steps"):
        owner.configure({"adopt_every_steps": 5})
    grow_corpus(folder, new_domain="it")
    for step in range(8):
        (plan,) = owner.window(step, 1, AHEAD).plans
        owner.report(losses_of(step, ids_of(plan), num_flips=step % 3))
        if step == 4:
            owner.adopt()
    assert len(seen(owner)[1]) == 6
    assert holds(journal)


def test_a_corpus_that_was_replaced_under_its_run_is_refused(journal: Journal, folder: Path) -> None:
    owner = owner_on(journal, folder, adopt_every_steps=2)
    plans = owner.window(0, 2, AHEAD).plans
    (folder / "wiki").rename(folder / "wiki.old")
    make_corpus(folder, rows_per_domain=15, seed=5)
    grow_corpus(folder)
    before, num_events = bytes_of(owner), journal.num_events("tuning")
    for restart in (False, True):
        each = another_owner(journal, folder) if restart else owner
        with pytest.raises(InvalidRun, match="other sizes"):
            each.window(2, 1, AHEAD)
        with pytest.raises(InvalidRun, match="other sizes"):
            each.adopt()
        assert (bytes_of(each), journal.num_events("tuning")) == (before, num_events)
    assert all(map(same_plan, each.window(0, 2, AHEAD).plans, plans))
    shutil.rmtree(folder / "wiki")
    (folder / "wiki.old").rename(folder / "wiki")
    again = another_owner(journal, folder)
    again.window(2, 1, AHEAD)
    assert holds(journal)


def test_another_corpus_of_the_same_name_and_sizes_is_refused(journal: Journal, folder: Path) -> None:
    store = CorpusStore(folder)
    create(Owners(journal, store.get), record_of())
    owner = another_owner(journal, folder)
    plans = owner.window(0, 2, AHEAD).plans
    grow_corpus(folder)
    owner.adopt()
    owner.window(2, 1, AHEAD)
    (folder / "wiki").rename(folder / "wiki.old")
    make_corpus(folder, seed=5)
    grow_corpus(folder)
    num_events = journal.num_events("tuning")
    for restart in (False, True):
        each = another_owner(journal, folder) if restart else owner
        with pytest.raises(CorpusReplaced, match="another one of its name"):
            each.window(3, 1, AHEAD)
    assert journal.num_events("tuning") == num_events
    assert all(map(same_plan, each.window(0, 2, AHEAD).plans, plans))


def test_a_run_that_did_not_note_its_corpus_looks_at_the_sizes_alone(journal: Journal, folder: Path) -> None:
    assert record_of().created.corpus_fingerprint is None
    owner = owner_on(journal, folder)
    (folder / "wiki").rename(folder / "wiki.old")
    make_corpus(folder, seed=5)
    sizes = CorpusStore(folder).get("wiki").partition.sizes.tolist()
    assert (sizes, seen(owner)) == (list(SIZES), (1, list(SIZES)))
    assert len(another_owner(journal, folder).window(0, 2, AHEAD).plans) == 2


@pytest.mark.parametrize("adopt_every_steps", [0, 1])
def test_a_process_that_knows_an_earlier_generation_alone_takes_nothing_back(
    journal: Journal, folder: Path, adopt_every_steps: int
) -> None:
    behind = Corpus(folder / "wiki")
    owner = owner_on(journal, folder, adopt_every_steps=adopt_every_steps)
    grow_corpus(folder)
    owner.adopt()
    owner.window(0, 2, AHEAD)
    num_events = journal.num_events("tuning")
    other = RunOwner(journal, "tuning", lambda _: behind)
    with pytest.raises(CorpusUnavailable, match="generation 2"):
        other.window(2, 1, AHEAD)
    with pytest.raises(InvalidRun):
        other.adopt()
    assert (seen(other)[0], journal.num_events("tuning")) == (2, num_events)
    assert [plan.step for plan in another_owner(journal, folder).window(2, 1, AHEAD).plans] == [2]
