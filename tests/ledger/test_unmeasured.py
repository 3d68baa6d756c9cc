"""Samples that could not be measured: no tokens in the report, or a base loss that cannot be read any more."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from replay_service.corpus.reading.reader import Corpus
from replay_service.errors import AwaitingReports, InvalidReport
from replay_service.ledger import audit
from replay_service.ledger.intake import ReportOutcome
from replay_service.ledger.journal import Journal
from replay_service.ledger.owner import RunOwner
from replay_service.ledger.samples import SampleQuery
from replay_service.sampling.events import Reported
from replay_service.sampling.run_state import RunState
from tests.ledger.worlds import (
    bytes_of,
    events_of,
    ids_of,
    image_of,
    losses_of,
    open_journal,
    owner_of,
    read_state,
    record_of,
)
from tests.support import make_corpus

AHEAD = 64


@pytest.fixture
def journal(database_url: str) -> Iterator[Journal]:
    with open_journal(database_url) as journal:
        yield journal


@pytest.fixture
def owner(journal: Journal, corpus: Corpus) -> RunOwner:
    journal.create_run(record_of())
    return owner_of(journal, corpus)


def unmeasured(step: int, sample_ids: list[int]) -> np.ndarray:
    return losses_of(step, sample_ids, loss=0.0, num_tokens=0, num_flips=0)


def num_pending(owner: RunOwner) -> int:
    return read_state(owner, lambda state: sum(each.num_awaited for each in state.pending.values()))


def learned(state: RunState) -> tuple[float, ...]:
    totals = state.totals
    sums = (totals.samples, totals.tokens, totals.flips, totals.loss_nats, totals.excess_nats)
    return tuple(float(each.sum()) for each in (*sums, state.recent.count, state.recent.damage))


def listed(journal: Journal, corpus: Corpus) -> list[int]:
    """The samples that the per-sample statistics tell of."""
    query = SampleQuery("sample_id", False, 1000)
    return [each.sample_id for each in journal.samples("tuning", query, corpus.partition).samples]


def holds(journal: Journal) -> bool:
    return audit.verify(journal, journal.run("tuning")).holds


def test_a_sample_that_could_not_be_measured_is_awaited_no_longer_and_teaches_nothing(
    owner: RunOwner, journal: Journal, corpus: Corpus
) -> None:
    (plan,) = owner.window(0, 1, AHEAD).plans
    bad, *good = ids_of(plan)
    before = read_state(owner, lambda state: (state.policy_version, state.probabilities().tolist()))
    assert owner.report(unmeasured(0, [bad])) == ReportOutcome(1, 0, 0)
    assert num_pending(owner) == len(good)
    assert read_state(owner, learned) == (0.0,) * 7
    assert read_state(owner, lambda state: (state.policy_version, state.probabilities().tolist())) == before
    assert owner.report(unmeasured(0, [bad])) == ReportOutcome(0, 1, 0)
    assert owner.report(losses_of(0, [bad, *good])) == ReportOutcome(len(good), 1, 0)
    assert num_pending(owner) == 0
    assert listed(journal, corpus) == sorted(good)
    assert journal.sample("tuning", bad, corpus.partition) is None
    assert bytes_of(owner_of(journal, corpus)) == bytes_of(owner)
    assert holds(journal)


def test_one_report_tells_of_both_kinds(owner: RunOwner, journal: Journal, corpus: Corpus) -> None:
    (plan,) = owner.window(0, 1, AHEAD).plans
    bad, *good = ids_of(plan)
    rows = losses_of(0, [bad, *good])
    rows["num_tokens"][0] = rows["num_flips"][0] = 0
    assert owner.report(rows).accepted == len(rows)
    assert read_state(owner, lambda state: state.totals.samples.sum()) == len(good)
    assert listed(journal, corpus) == sorted(good)
    assert holds(journal)


def test_what_a_report_says_of_a_loss_without_tokens_is_not_kept(owner: RunOwner, journal: Journal) -> None:
    (plan,) = owner.window(0, 1, AHEAD).plans
    owner.report(losses_of(0, ids_of(plan), loss=5.0, num_tokens=0, num_flips=0))
    (event,) = [event for event in events_of(journal) if isinstance(event, Reported)]
    for name in ("loss_nats", "base_loss_nats", "num_tokens", "num_flips"):
        assert not event.rows[name].any()


@pytest.mark.parametrize(
    ("field", "value"), [("num_tokens", -1), ("num_flips", 1), ("num_flips", -1), ("loss_nats", np.nan), ("rank", -1)]
)
def test_a_row_without_tokens_must_make_sense_too(owner: RunOwner, journal: Journal, field: str, value: float) -> None:
    (plan,) = owner.window(0, 1, AHEAD).plans
    rows = unmeasured(0, ids_of(plan))
    rows[field][0] = value
    before = image_of(owner)
    with pytest.raises(InvalidReport, match=field):
        owner.report(rows)
    assert (image_of(owner), journal.num_events("tuning")) == (before, 2)


def test_a_later_visit_that_is_measured_is_the_first_that_counts(
    owner: RunOwner, journal: Journal, corpus: Corpus
) -> None:
    plans = owner.window(0, 40, AHEAD).plans
    (sample, first, second) = next(
        (sample, plan.step, later.step)
        for plan in plans
        for later in plans[plan.step + 1 :]
        for sample in set(ids_of(plan)) & set(ids_of(later))
    )
    owner.report(unmeasured(first, [sample]))
    owner.report(losses_of(second, [sample], loss=3.0))
    found = journal.sample("tuning", sample, corpus.partition)
    assert found is not None
    assert (
        found.statistics.num_visits,
        found.statistics.first_step,
        found.statistics.last_step,
        found.statistics.loss_nats,
    ) == (
        1,
        second,
        second,
        3.0,
    )


def test_a_fenced_run_waits_for_no_sample_that_could_not_be_measured(journal: Journal, corpus: Corpus) -> None:
    journal.create_run(record_of(feedback={"mode": "fenced", "lag": 1}))
    owner = owner_of(journal, corpus)
    (plan,) = owner.window(0, 1, AHEAD).plans
    with pytest.raises(AwaitingReports):
        owner.window(1, 1, AHEAD)
    owner.report(unmeasured(0, ids_of(plan)))
    assert [plan.step for plan in owner.window(1, 1, AHEAD).plans] == [1]
    assert holds(journal)


def test_a_sample_whose_base_loss_cannot_be_read_any_more_counts_as_not_measured(
    journal: Journal, tmp_path: Path
) -> None:
    make_corpus(tmp_path)
    journal.create_run(record_of(injection_ratio="1"))
    (tmp_path / "wiki/segments/00000001.crc32").unlink()
    corpus = Corpus(tmp_path / "wiki")
    owner = owner_of(journal, corpus)
    (plan,) = owner.window(0, 1, AHEAD).plans
    ids = np.array(ids_of(plan))
    is_lost = ids >> 32 == 1
    assert is_lost.any()
    assert np.isnan(corpus.base_results(ids[is_lost]).loss_nats).all()
    assert owner.report(losses_of(0, ids.tolist(), loss=3.0)) == ReportOutcome(len(ids), 0, 0)
    assert num_pending(owner) == 0
    samples, tokens, _, loss, excess, *_ = read_state(owner, learned)
    assert (samples, tokens) == ((~is_lost).sum(), 11 * (~is_lost).sum())
    assert loss == pytest.approx(3.0 * samples)
    assert excess == pytest.approx((3.0 - corpus.base_results(ids[~is_lost]).loss_nats).sum())
    assert listed(journal, corpus) == ids[~is_lost].tolist()
    assert bytes_of(owner_of(journal, corpus)) == bytes_of(owner)
    assert holds(journal)


def test_the_history_of_a_sample_leaves_out_a_visit_that_could_not_be_measured(
    owner: RunOwner, journal: Journal, corpus: Corpus
) -> None:
    plans = owner.window(0, AHEAD, AHEAD).plans
    sample = ids_of(plans[0])[0]
    first, second, third, *_ = [plan.step for plan in plans if sample in ids_of(plan)]
    for step, report in ((first, losses_of), (second, unmeasured), (third, losses_of)):
        owner.report(report(step, [sample]))
    found = journal.sample("tuning", sample, corpus.partition)
    assert found is not None
    assert (found.statistics.num_visits, [visit.step for visit in found.reports]) == (2, [first, third])
