"""Reports of many steps are sorted out in one pass: each row has the fate that it would have on its own."""

from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from replay_service.corpus.reading.reader import Corpus
from replay_service.errors import InvalidReport
from replay_service.ledger.intake import Intake, ReportOutcome
from replay_service.ledger.journal import Journal
from replay_service.ledger.owner import RunOwner
from replay_service.sampling.events import Reported
from replay_service.wire.losses import GAINS_NOT_TOLD, LOSS_ROW
from tests.ledger.worlds import ids_of, image_of, losses_of, open_journal, owner_of, read_state, record_of

NUM_STEPS = 8
STALE = 5
"""No attempt of these runs."""


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    with open_journal(tmp_path / "ledger.db") as journal:
        journal.create_run(record_of(report_window_steps=6))
        yield journal


@pytest.fixture
def owner(journal: Journal, corpus: Corpus) -> RunOwner:
    return owner_of(journal, corpus)


def shuffled_reports(owner: RunOwner, seed: int) -> list[np.ndarray]:
    """Reports of samples of all steps, some of them more than once, by several ranks, and some from before a rewind."""
    random = np.random.default_rng(seed)
    planned = [(plan.step, sample) for plan in owner.window(0, NUM_STEPS, NUM_STEPS).plans for sample in ids_of(plan)]
    owner.report(np.concatenate([losses_of(step, [sample]) for step, sample in planned[::5]]))
    rows = np.zeros(3 * len(planned), dtype=LOSS_ROW)
    for row, place in zip(rows, random.integers(0, len(planned), len(rows)), strict=True):
        row["step"], row["sample_id"] = planned[place]
    rows["rank"], rows["num_tokens"] = random.integers(0, 3, len(rows)), random.integers(0, 4, len(rows))
    rows["loss_nats"], rows["attempt"] = random.random(len(rows)), random.choice([0, 1, STALE], len(rows))
    return np.split(rows, sorted(random.integers(0, len(rows), 3)))


@pytest.mark.parametrize("seed", range(6))
def test_each_row_has_the_fate_of_its_own(owner: RunOwner, journal: Journal, corpus: Corpus, seed: int) -> None:
    reports = shuffled_reports(owner, seed)
    awaited = read_state(
        owner, lambda state: {step: {*each.rows["sample_id"].tolist()} for step, each in state.pending.items()}
    )
    expected, events = [], defaultdict(list)
    for rows in reports:
        fates = [0, 0, 0]
        for row in rows:
            step, sample, rank, attempt = (row[name].item() for name in ("step", "sample_id", "rank", "attempt"))
            is_accepted = attempt != STALE and sample in awaited.get(step, ())
            # The steps before the last six are awaited no longer.
            fates[0 if is_accepted else 2 if attempt == STALE or step < NUM_STEPS - 6 else 1] += 1
            if is_accepted:
                awaited[step].remove(sample)
                events[step, rank].append(sample)
        expected.append(ReportOutcome(*fates))
    intake = Intake("tuning", journal, lambda: corpus)
    found, outcomes = read_state(owner, lambda state: intake.sort_out(state, 1, reports))
    assert outcomes == expected
    assert [((each.step, each.rank), each.rows["sample_id"].tolist()) for each in found] == sorted(events.items())


def test_an_event_says_what_its_rows_said(owner: RunOwner, journal: Journal, corpus: Corpus) -> None:
    rows = np.concatenate(shuffled_reports(owner, 0))
    intake = Intake("tuning", journal, lambda: corpus)
    events: list[Reported] = read_state(owner, lambda state: intake.sort_out(state, 1, [rows])[0])
    said = {(row["step"], row["rank"], row["sample_id"], row["loss_nats"], row["num_tokens"]) for row in rows}
    for event in events:
        measured = event.rows[event.rows["num_tokens"] > 0]
        assert measured["base_loss_nats"].tolist() == corpus.base_results(measured["sample_id"]).loss_nats.tolist()
        for row in measured:
            assert (event.step, event.rank, row["sample_id"], row["loss_nats"], row["num_tokens"]) in said


@pytest.mark.parametrize(
    ("step", "what"), [(NUM_STEPS, "no plan yet"), (-1, "no plan yet"), (4, "not planned for step 4")]
)
def test_one_wrong_row_among_many_steps_refuses_all(owner: RunOwner, step: int, what: str) -> None:
    rows = np.concatenate([*shuffled_reports(owner, 1), losses_of(step, [1 << 40])])
    before = image_of(owner)
    with pytest.raises(InvalidReport, match=what):
        owner.report(np.random.default_rng(2).permutation(rows))
    assert image_of(owner) == before


def test_a_row_is_measured_from_one_token_on_and_others_beside_it_are_not(owner: RunOwner, journal: Journal) -> None:
    (plan,) = owner.window(0, 1, NUM_STEPS).plans
    ids = ids_of(plan)
    rows = losses_of(0, ids)
    rows["num_tokens"], rows["num_flips"], rows["num_gains"] = 1, 0, 0
    rows["num_tokens"][0] = 0
    owner.report(rows)
    (reported,) = (each.event.rows for each in journal.entries("tuning", 0) if isinstance(each.event, Reported))
    by_id = {row["sample_id"].item(): row for row in reported}
    assert (by_id[ids[0]]["num_tokens"], by_id[ids[0]]["loss_nats"], by_id[ids[0]]["base_loss_nats"]) == (0, 0.0, 0.0)
    assert all(by_id[each]["num_tokens"] == 1 and by_id[each]["base_loss_nats"] > 0 for each in ids[1:])


def test_gains_above_the_base_models_wrong_predictions_are_refused(
    owner: RunOwner, corpus: Corpus, journal: Journal
) -> None:
    (plan,) = owner.window(0, 1, NUM_STEPS).plans
    ids = ids_of(plan)
    rows, num_wrong = losses_of(0, ids), corpus.base_results(np.array(ids)).num_wrong
    rows["num_tokens"], rows["num_flips"], rows["num_gains"] = 10_000, 0, num_wrong
    before = len(list(journal.entries("tuning", 0)))
    wrong = rows.copy()
    wrong["num_gains"][-1] += 1
    with pytest.raises(InvalidReport, match=f"1 of {len(ids)} rows tell of more num_gains .* in sample {ids[-1]}"):
        owner.report(wrong)
    assert len(list(journal.entries("tuning", 0))) == before
    assert owner.report(rows).accepted == len(rows)


def test_net_flips_need_gains_in_every_row_that_was_measured(journal: Journal, corpus: Corpus) -> None:
    journal.create_run(record_of("net", signal="net_flip"))
    net = owner_of(journal, corpus, "net")
    (plan,) = net.window(0, 1, NUM_STEPS).plans
    rows = losses_of(0, ids_of(plan))
    rows["num_flips"], rows["num_gains"] = 0, GAINS_NOT_TOLD
    rows["num_tokens"][0] = 0
    with pytest.raises(InvalidReport, match=f"{len(rows) - 1} of {len(rows)} rows do not tell num_gains"):
        net.report(rows)
    rows["num_gains"][1:] = 0
    assert net.report(rows).accepted == len(rows)
