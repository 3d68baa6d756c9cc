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

from replay_service.corpus.reader import CorpusStore
from replay_service.errors import InvalidReport, RunExists, StepOutOfRange
from replay_service.ledger import audit
from replay_service.ledger.owner import OwnerLimits, ReportOutcome
from replay_service.ledger.owners import Owners
from replay_service.ledger.samples import SampleQuery
from tests.databases import fresh_database
from tests.ledger.worlds import bytes_of, create, ids_of, image_of, losses_of, open_journal, record_of
from tests.support import make_corpus

AHEAD = 8
WINDOW = 5


class RunLife(RuleBasedStateMachine):
    """The model: what each step's plan was, which of its samples have been accepted, and the state's bytes after it."""

    def __init__(self) -> None:
        super().__init__()
        self.place = ExitStack()
        self.folder = Path(self.place.enter_context(tempfile.TemporaryDirectory()))
        make_corpus(self.folder, rows_per_domain=12)
        self.database_url = self.empty_database()
        self.open()
        self.plans: dict[int, bytes] = {}
        self.samples: dict[int, list[int]] = {}
        self.accepted: dict[int, set[int]] = {}
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
        plans = self.owner.plan(first_step, num_steps, AHEAD)
        assert [plan.step for plan in plans] == list(range(first_step, first_step + num_steps))
        for plan in plans:
            promised = self.plans.setdefault(plan.step, plan.rows.tobytes())
            assert plan.rows.tobytes() == promised
            self.samples[plan.step] = ids_of(plan)
            self.accepted.setdefault(plan.step, set())

    @rule(beyond=st.integers(0, 3))
    def plan_too_far(self, beyond: int) -> None:
        with pytest.raises(StepOutOfRange):
            self.owner.plan(self.next_step + AHEAD + beyond, 1, AHEAD)

    @precondition(lambda self: any(self.samples.values()))
    @rule(data=st.data())
    def report(self, data: st.DataObject) -> None:
        step = data.draw(st.sampled_from([step for step, ids in self.samples.items() if ids]), label="step")
        given = data.draw(st.lists(st.sampled_from(self.samples[step]), min_size=1, max_size=6), label="samples")
        ranks = data.draw(st.lists(st.integers(0, 2), min_size=len(given), max_size=len(given)), label="ranks")
        rows = losses_of(step, given, loss=data.draw(st.floats(0.0, 8.0), label="loss"))
        rows["rank"] = ranks
        outcome = self.owner.report(rows)
        assert outcome == self._expected(step, given)
        if outcome.accepted:
            self.accepted[step] |= set(given)
            self.images = {s: image for s, image in self.images.items() if s < step}

    def _expected(self, step: int, given: list[int]) -> ReportOutcome:
        different = set(given)
        if step < self.next_step - WINDOW:
            return ReportOutcome(0, len(given) - len(different), len(different))
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
        for forgotten in (self.plans, self.samples, self.accepted, self.images):
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
        before = self.owner.read(lambda state: (state.policy_version, state.config))
        self.owner.configure({"floor": floor, "signal": signal})
        self.images.pop(self.next_step - 1, None)
        version, config = self.owner.read(lambda state: (state.policy_version, state.config))
        assert (config.floor, config.signal) == (floor, signal)
        assert version == before[0] + (config != before[1])

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
    def totals_are_those_of_the_accepted_reports(self) -> None:
        num_accepted = sum(map(len, self.accepted.values()))
        samples, tokens, next_step = self.owner.read(
            lambda state: (state.totals.samples.sum(), state.totals.tokens.sum(), state.next_step)
        )
        assert (samples, tokens, next_step) == (num_accepted, 11 * num_accepted, self.next_step)

    @invariant()
    def samples_were_visited_as_often_as_reports_were_accepted(self) -> None:
        partition = CorpusStore(self.folder).get("wiki").partition
        samples = self.journal.samples("tuning", SampleQuery("sample_id", False, 1000), partition)
        assert sum(each.num_visits for each in samples) == sum(map(len, self.accepted.values()))

    @invariant()
    def what_is_pending_is_what_no_report_was_accepted_for(self) -> None:
        waited_for = {
            step: sorted(set(ids) - self.accepted[step])
            for step, ids in self.samples.items()
            if step >= self.next_step - WINDOW and set(ids) - self.accepted[step]
        }
        pending = self.owner.read(
            lambda state: {step: each.rows["sample_id"].tolist() for step, each in state.pending.items()}
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
