"""A run's life in any order of events, against a model of a few dictionaries."""

import tempfile
import uuid
from contextlib import ExitStack
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from replay_service.corpus.reading.reader import CorpusStore
from replay_service.errors import InvalidReport, InvalidRun, RunExists, StepOutOfRange
from replay_service.ledger import audit
from replay_service.ledger.intake import ReportOutcome
from replay_service.ledger.owner import OwnerLimits
from replay_service.ledger.owners import Owners
from replay_service.ledger.samples import SampleQuery
from tests.databases import fresh_database
from tests.ledger.worlds import bytes_of, create, ids_of, image_of, losses_of, open_journal, read_state, record_of
from tests.support import grow_corpus, make_corpus

AHEAD = 8
WINDOW = 5


class RunLife(RuleBasedStateMachine):
    """The model: what each step's plan was, which of its samples have been accepted and which of them measured, the
    state's bytes after it, the strata of each generation of the corpus, and when the run adopted which."""

    def __init__(self) -> None:
        super().__init__()
        self.place = ExitStack()
        self.folder = Path(self.place.enter_context(tempfile.TemporaryDirectory()))
        self.sizes = {1: make_corpus(self.folder, rows_per_domain=12).partition().sizes.tolist()}
        self.database_url = self.empty_database()
        self.open()
        self.plans: dict[int, bytes] = {}
        self.samples: dict[int, list[int]] = {}
        self.accepted: dict[int, set[int]] = {}
        self.measured: dict[int, set[int]] = {}
        self.adopted: list[tuple[int, int]] = []
        self.images: dict[int, bytes] = {}

    def empty_database(self) -> str:
        """The URL of the journal of one life."""
        return f"sqlite:///{self.folder / 'ledger.db'}"

    def open(self) -> None:
        self.process = self.place.enter_context(ExitStack())
        self.journal = self.process.enter_context(open_journal(self.database_url))
        self.owners = Owners(self.journal, CorpusStore(self.folder).get, OwnerLimits(snapshot_every=4))

    @property
    def next_step(self) -> int:
        return len(self.plans)

    @property
    def seen(self) -> int:
        """The generation that the run sees."""
        return self.adopted[-1][1] if self.adopted else 1

    @initialize(policy=st.sampled_from(["mix_cd", "uniform"]), ratio=st.sampled_from(["0.1", "0.4", "1"]))
    def create(self, policy: str, ratio: str) -> None:
        self.record = record_of(
            sizes=(6, 6, 6, 6),
            global_batch_size=10,
            injection_ratio=ratio,
            policy=policy,
            report_window_steps=WINDOW,
            half_life_steps=3.0,
        )
        assert create(self.owners, self.record)
        self.owner = self.owners.get("tuning")

    @rule()
    def create_again(self) -> None:
        assert not create(self.owners, self.record)
        with pytest.raises(RunExists):
            create(self.owners, record_of(seed=12345))

    @rule(back=st.integers(0, 6), num_steps=st.integers(1, 4))
    def plan(self, back: int, num_steps: int) -> None:
        first_step = max(0, self.next_step - back)
        self.images[self.next_step - 1] = bytes_of(self.owner)
        plans = self.owner.window(first_step, num_steps, AHEAD).plans
        assert [plan.step for plan in plans] == list(range(first_step, first_step + num_steps))
        for plan in plans:
            promised = self.plans.setdefault(plan.step, plan.rows.tobytes())
            assert plan.rows.tobytes() == promised
            self.samples[plan.step] = ids_of(plan)
            self.accepted.setdefault(plan.step, set())
            self.measured.setdefault(plan.step, set())

    @rule(beyond=st.integers(0, 3))
    def plan_too_far(self, beyond: int) -> None:
        with pytest.raises(StepOutOfRange):
            self.owner.window(self.next_step + AHEAD + beyond, 1, AHEAD)

    @precondition(lambda self: any(self.samples.values()))
    @rule(data=st.data())
    def report(self, data: st.DataObject) -> None:
        step = data.draw(st.sampled_from([step for step, ids in self.samples.items() if ids]), label="step")
        given = data.draw(st.lists(st.sampled_from(self.samples[step]), min_size=1, max_size=6), label="samples")
        ranks = data.draw(st.lists(st.integers(0, 2), min_size=len(given), max_size=len(given)), label="ranks")
        rows = losses_of(step, given, loss=data.draw(st.floats(0.0, 8.0), label="loss"))
        rows["rank"] = ranks
        if data.draw(st.integers(0, 3), label="unmeasured if 0") == 0:
            rows["num_tokens"] = rows["num_flips"] = 0
        outcome = self.owner.report(rows)
        assert outcome == self._expected(step, given)
        if outcome.accepted:
            if rows["num_tokens"].any():
                self.measured[step] |= set(given) - self.accepted[step]
            self.accepted[step] |= set(given)
            self.images = {s: image for s, image in self.images.items() if s < step}

    def _expected(self, step: int, given: list[int]) -> ReportOutcome:
        different = set(given)
        if step < self.next_step - WINDOW:
            return ReportOutcome(0, 0, len(given))
        new = len(different - self.accepted[step])
        return ReportOutcome(new, len(given) - new, 0)

    @rule(step=st.integers(-2, 40))
    def report_a_stranger(self, step: int) -> None:
        with pytest.raises(InvalidReport):
            self.owner.report(losses_of(step, [7 << 32]))

    @precondition(lambda self: self.plans)
    @rule(data=st.data())
    def rewind(self, data: st.DataObject) -> None:
        step = data.draw(st.integers(-1, self.next_step - 1), label="step")
        attempt = self.owner.attempt
        self.owner.rewind(step)
        assert self.owner.attempt == attempt + 1
        assert bytes_of(self.owner) == self.images.get(step, bytes_of(self.owner))
        self.adopted = [(each, generation) for each, generation in self.adopted if each <= step]
        for forgotten in (self.plans, self.samples, self.accepted, self.measured, self.images):
            for each in [each for each in forgotten if each > step]:
                del forgotten[each]

    @rule(beyond=st.integers(0, 3))
    def rewind_to_nowhere(self, beyond: int) -> None:
        for step in (self.next_step + beyond, -2 - beyond):
            with pytest.raises(StepOutOfRange):
                self.owner.rewind(step)

    @precondition(lambda self: any(self.samples.values()))
    @rule(data=st.data())
    def report_from_before_a_rewind(self, data: st.DataObject) -> None:
        step = data.draw(st.sampled_from([step for step, ids in self.samples.items() if ids]), label="step")
        rows = losses_of(step, self.samples[step])
        rows["attempt"] = self.owner.attempt + data.draw(st.sampled_from([-1, 1]), label="attempts off") or 99
        assert self.owner.report(rows) == ReportOutcome(0, 0, len(rows))

    @rule(floor=st.sampled_from([0.1, 0.5]), signal=st.sampled_from(["token_flip", "excess_loss"]))
    def configure(self, floor: float, signal: str) -> None:
        before = read_state(self.owner, lambda state: (state.policy_version, state.config))
        self.owner.configure({"floor": floor, "signal": signal})
        self.images.pop(self.next_step - 1, None)
        version, config = read_state(self.owner, lambda state: (state.policy_version, state.config))
        assert (config.floor, config.signal) == (floor, signal)
        assert version == before[0] + (config != before[1])

    @rule(num_rows=st.integers(1, 9), is_new=st.booleans())
    def grow(self, num_rows: int, is_new: bool) -> None:
        domain = f"new-{len(self.sizes)}" if is_new else None
        manifest = grow_corpus(self.folder, num_rows=num_rows, new_domain=domain)
        self.sizes[manifest.generation] = manifest.partition().sizes.tolist()

    @rule(data=st.data())
    def adopt(self, data: st.DataObject) -> None:
        wanted = data.draw(st.none() | st.integers(self.seen, max(self.sizes)), label="generation")
        generation = max(self.sizes) if wanted is None else wanted
        before = read_state(self.owner, lambda state: state.policy_version)
        self.owner.adopt(wanted)
        assert read_state(self.owner, lambda state: state.policy_version) == before + (generation > self.seen)
        if generation > self.seen:
            self.images.pop(self.next_step - 1, None)
            self.adopted.append((self.next_step - 1, generation))

    @rule(beyond=st.integers(1, 3))
    def adopt_what_is_not_there(self, beyond: int) -> None:
        for generation in (self.seen - beyond, max(self.sizes) + beyond):
            with pytest.raises(InvalidRun):
                self.owner.adopt(generation)

    @rule()
    def verify(self) -> None:
        assert audit.verify(self.journal, self.record).holds

    @rule()
    def reopen(self) -> None:
        before = image_of(self.owner), self.owner.attempt
        self.process.close()
        self.open()
        self.owner = self.owners.get("tuning")
        assert (image_of(self.owner), self.owner.attempt) == before

    @invariant()
    def plans_stand_in_the_journal_as_promised(self) -> None:
        journalled = {plan.step: plan.rows.tobytes() for plan in self.journal.planned("tuning", 0, self.next_step)}
        assert journalled == self.plans

    @invariant()
    def the_strata_are_those_of_the_generation_that_was_adopted_last(self) -> None:
        seen = read_state(self.owner, lambda state: (state.generation, state.cursors.sizes.tolist()))
        assert seen == (self.seen, self.sizes[self.seen])

    @invariant()
    def totals_are_those_of_what_was_measured(self) -> None:
        num_measured = sum(map(len, self.measured.values()))
        samples, tokens, next_step = read_state(
            self.owner, lambda state: (state.totals.samples.sum(), state.totals.tokens.sum(), state.next_step)
        )
        assert (samples, tokens, next_step) == (num_measured, 11 * num_measured, self.next_step)

    @invariant()
    def samples_were_visited_as_often_as_they_were_measured(self) -> None:
        partition = CorpusStore(self.folder).get("wiki").partition
        samples = self.journal.samples("tuning", SampleQuery("sample_id", False, 1000), partition).samples
        assert sum(each.num_visits for each in samples) == sum(map(len, self.measured.values()))

    @invariant()
    def what_is_pending_is_what_no_report_was_accepted_for(self) -> None:
        waited_for = {
            step: sorted(set(ids) - self.accepted[step])
            for step, ids in self.samples.items()
            if step >= self.next_step - WINDOW and set(ids) - self.accepted[step]
        }
        pending = read_state(
            self.owner, lambda state: {step: each.rows["sample_id"].tolist() for step, each in state.pending.items()}
        )
        assert pending == waited_for

    def teardown(self) -> None:
        self.place.close()


def lives(num: int) -> settings:
    too_slow = [HealthCheck.too_slow]
    return settings(max_examples=num, stateful_step_count=15, deadline=None, suppress_health_check=too_slow)


RunLife.TestCase.settings = lives(15)
TestRunLife = RunLife.TestCase


def test_a_run_lives_on_postgresql_as_the_model_does(postgresql_url: str) -> None:
    class RunLifeOnPostgresql(RunLife):
        def empty_database(self) -> str:
            return self.place.enter_context(fresh_database(postgresql_url, f"life_{uuid.uuid4().hex[:12]}"))

    run_state_machine_as_test(RunLifeOnPostgresql, settings=lives(10))
