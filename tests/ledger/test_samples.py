from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, get_args

import numpy as np
import pytest
from sqlalchemy import create_engine, text

from replay_service.corpus.reading.reader import Corpus
from replay_service.ledger.journal import Journal
from replay_service.ledger.owner import RunOwner
from replay_service.ledger.samples import DamageUnit, SampleOrder, SampleQuery, SampleStatistics
from replay_service.sampling.damage import DAMAGE_OF, Signal
from replay_service.sampling.events import REPORTED_ROW
from tests.ledger.worlds import ids_of, losses_of, open_journal, owner_of, record_of


@pytest.fixture
def journal(database_url: str) -> Iterator[Journal]:
    with open_journal(database_url) as journal:
        journal.create_run(record_of(global_batch_size=40, injection_ratio="0.5"))
        yield journal


@pytest.fixture
def owner(journal: Journal, corpus: Corpus) -> RunOwner:
    return owner_of(journal, corpus)


def reported(owner: RunOwner, num_steps: int, seed: int = 0) -> dict[int, list[tuple[int, float, int]]]:
    """Report all samples of some steps, in any order; (step, loss, flips) of every report, by sample, in step order."""
    rng = np.random.default_rng(seed)
    history: dict[int, list[tuple[int, float, int]]] = {}
    plans = owner.window(0, num_steps, 100).plans
    for index in rng.permutation(num_steps):
        for sample in ids_of(plans[index]):
            loss, flips = float(rng.normal(3.0)), int(rng.integers(11))
            assert owner.report(losses_of(int(index), [sample], loss=loss, num_flips=flips)).accepted == 1
            history.setdefault(sample, []).append((int(index), loss, flips))
    return {sample: sorted(visits) for sample, visits in history.items()}


def expected(corpus: Corpus, history: dict[int, list[tuple[int, float, int]]]) -> dict[int, SampleStatistics]:
    statistics = {}
    for sample, visits in history.items():
        steps, losses, flips = zip(*visits, strict=True)
        rows = corpus.rows(np.array([sample]))
        base = float(rows.base_loss[0])
        statistics[sample] = SampleStatistics(
            sample_id=sample,
            stratum=int(rows.stratum[0]),
            num_visits=len(visits),
            first_step=steps[0],
            last_step=steps[-1],
            base_loss_nats=base,
            loss_nats=losses[-1],
            excess_nats=losses[-1] - base,
            num_tokens=11 * len(visits),
            num_flips=sum(flips),
            damage=flips[-1] / 11,
        )
    return statistics


def all_samples(journal: Journal, corpus: Corpus, **query: Any) -> list[SampleStatistics]:
    whole = SampleQuery(**{"order": "sample_id", "descending": False, "limit": 1000, **query})
    return journal.samples("tuning", whole, corpus.partition).samples


def test_statistics_are_those_of_the_reports_in_any_order(owner: RunOwner, journal: Journal, corpus: Corpus) -> None:
    history = reported(owner, 9)
    assert max(map(len, history.values())) > 1
    assert {each.sample_id: each for each in all_samples(journal, corpus)} == expected(corpus, history)


def test_a_duplicate_changes_nothing(owner: RunOwner, journal: Journal, corpus: Corpus) -> None:
    (plan,) = owner.window(0, 1, 100).plans
    owner.report(losses_of(0, ids_of(plan)))
    before = all_samples(journal, corpus)
    owner.report(losses_of(0, ids_of(plan), loss=9.0))
    assert all_samples(journal, corpus) == before


def test_a_rewind_takes_back_what_it_forgets(owner: RunOwner, journal: Journal, corpus: Corpus) -> None:
    history = reported(owner, 9)
    owner.rewind(4)
    kept = {sample: [visit for visit in visits if visit[0] <= 4] for sample, visits in history.items()}
    kept = {sample: visits for sample, visits in kept.items() if visits}
    assert {each.sample_id: each for each in all_samples(journal, corpus)} == expected(corpus, kept)
    owner.window(5, 1, 100)
    owner.rewind(-1)
    assert all_samples(journal, corpus) == []


def test_what_was_merged_in_another_attempt_begins_anew(owner: RunOwner, journal: Journal, corpus: Corpus) -> None:
    history = reported(owner, 5)
    assert {each.sample_id: each for each in all_samples(journal, corpus)} == expected(corpus, history)
    with journal.engine.begin() as connection:
        connection.execute(text("UPDATE sample_progress SET attempt = 7"))
    assert {each.sample_id: each for each in all_samples(journal, corpus)} == expected(corpus, history)


@pytest.mark.parametrize("signal", get_args(Signal))
def test_damage_is_what_policies_take_for_it(owner: RunOwner, journal: Journal, corpus: Corpus, signal: Signal) -> None:
    (plan,) = owner.window(0, 1, 100).plans
    ids, random = np.array(ids_of(plan)), np.random.default_rng(1)
    base = corpus.rows(ids).base_loss.astype(np.float64)
    rows = losses_of(0, ids.tolist(), loss=(base + random.uniform(-1.0, 1.0, len(ids))).tolist())
    rows["num_flips"], rows["num_gains"] = np.arange(len(ids)) % 4, np.arange(len(ids)) % 3 - 1
    owner.report(rows)
    reported = np.zeros(len(ids), dtype=REPORTED_ROW)
    for name in ("loss_nats", "num_tokens", "num_flips", "num_gains"):
        reported[name] = rows[name]
    reported["base_loss_nats"] = base
    learnable, delta = float(np.median(base)), 0.25
    found = all_samples(journal, corpus, unit=DamageUnit(signal, learnable, delta))
    assert [each.damage for each in found] == pytest.approx(DAMAGE_OF[signal](reported, learnable, delta))
    assert len({each.damage for each in found}) > 1


@pytest.mark.parametrize("order", ["sample_id", "damage", "excess_loss", "loss", "visits", "last_step", "flips"])
@pytest.mark.parametrize("descending", [False, True])
def test_pages_hold_every_sample_once_in_order(
    owner: RunOwner, journal: Journal, corpus: Corpus, order: SampleOrder, descending: bool
) -> None:
    reported(owner, 7)
    whole = all_samples(journal, corpus, order=order, descending=descending)
    query = SampleQuery(order, descending, 5)
    paged: list[SampleStatistics] = []
    while page := journal.samples("tuning", query, corpus.partition).samples:
        paged += page
        query = SampleQuery(order, descending, 5, after=query.place_of(page[-1]))
    assert paged == whole
    values = [query.place_of(each)[0] for each in whole]
    assert values == sorted(values, reverse=descending)


def test_one_stratum_can_be_asked_for(owner: RunOwner, journal: Journal, corpus: Corpus) -> None:
    reported(owner, 5)
    by_stratum = [all_samples(journal, corpus, strata=(stratum,)) for stratum in range(4)]
    assert all(each.stratum == stratum for stratum, page in enumerate(by_stratum) for each in page)
    assert sum(map(len, by_stratum)) == len(all_samples(journal, corpus))


def test_a_sample_has_its_history(owner: RunOwner, journal: Journal, corpus: Corpus) -> None:
    history = reported(owner, 9)
    sample, visits = max(history.items(), key=lambda each: len(each[1]))
    found = journal.sample("tuning", sample, corpus.partition)
    assert found is not None and found.as_of == journal.point("tuning").as_of
    told = sorted((each.step, each.rows["loss_nats"][0], each.rows["num_flips"][0]) for each in found.reports)
    assert told == visits
    assert journal.sample("tuning", 10**15, corpus.partition) is None


def test_queries_that_come_together_count_every_report_once(owner: RunOwner, journal: Journal, corpus: Corpus) -> None:
    history = reported(owner, 6)
    with ThreadPoolExecutor(8) as pool:
        pages = list(pool.map(lambda _: all_samples(journal, corpus), range(8)))
    assert {each.sample_id: each for each in pages[-1]} == expected(corpus, history)
    assert all(page == pages[0] for page in pages)


def test_a_look_that_has_no_time_tells_of_the_events_so_far_and_the_next_one_goes_on(
    owner: RunOwner, journal: Journal, corpus: Corpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("replay_service.ledger.sample_reader.CATCH_UP_EVENTS", 20)
    history = reported(owner, 3)
    query = SampleQuery("sample_id", False, 1000)
    looks = [journal.samples("tuning", query, corpus.partition, work_s=0.0) for _ in range(5)]
    visits = [sum(each.num_visits for each in look.samples) for look in looks]
    # The first four events are the beginning and the plans.
    assert [look.as_of for look in looks] == [19, 39, 59, 63, 63]
    assert visits == [16, 36, 56, 60, 60]
    assert {each.sample_id: each for each in looks[-1].samples} == expected(corpus, history)


def test_samples_of_another_attempt_than_the_run_has_begin_anew(
    owner: RunOwner, journal: Journal, corpus: Corpus, database_url: str
) -> None:
    history = reported(owner, 6)
    all_samples(journal, corpus)
    engine = create_engine(database_url)
    with engine.begin() as connection:  # as if a rewind had come while they were merged for the first time
        connection.execute(text("UPDATE sample_progress SET attempt = 7"))
        connection.execute(text("UPDATE samples SET num_visits = 99"))
    engine.dispose()
    assert {each.sample_id: each for each in all_samples(journal, corpus)} == expected(corpus, history)
