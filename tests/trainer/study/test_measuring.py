from pathlib import Path

import numpy as np
import pytest
import torch

from replay_service.language.model import load_model
from replay_trainer.errors import InvalidTraining
from replay_trainer.job.evaluation import TARGET, HeldOut
from replay_trainer.study.cells import Study
from replay_trainer.study.measuring import Scores, compared, heldout_of, load_scores, measured, save_scores, score
from replay_trainer.study.settings import StudySettings
from tests.trainer.study.worlds import write_study


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Study:
    folder = tmp_path_factory.mktemp("study")
    return Study.of(StudySettings.read(write_study(folder, tiny_model, "http://127.0.0.1:1")))


@pytest.fixture(scope="module")
def heldout(study: Study) -> HeldOut:
    return heldout_of(study.cells[0].job, study.cells[0].data, 3)


def test_no_more_rows_of_a_domain_are_measured_than_asked_for(heldout: HeldOut) -> None:
    assert {name: len(rows) for name, rows in heldout.rows.items()} == {"law": 3, "news": 3, "web": 3, TARGET: 3}


def test_scores_are_the_mean_loss_that_the_model_states(heldout: HeldOut, tiny_model: Path) -> None:
    model, rows = load_model(str(tiny_model)), heldout.rows["law"]
    found = score(model, rows, "float32", torch.device("cpu"))
    ids = torch.from_numpy(rows.input_ids.astype(np.int64))
    stated = [model(input_ids=each[None], labels=each[None]).loss.item() for each in ids]
    assert (rows.length == rows.input_ids.shape[1]).all()
    assert found.nats / found.num_tokens == pytest.approx(stated, rel=1e-4)


def test_flips_and_gains_are_counted_on_each_half() -> None:
    def scores(nats: list[float], correct: list[list[int]]) -> Scores:
        return Scores(np.array(nats), np.array([3] * len(nats)), np.array(correct, dtype=bool))

    before = scores([1.0, 2.0, 3.0], [[1, 1, 0], [1, 0, 0], [0, 0, 0]])
    after = scores([2.0, 2.0, 5.0], [[0, 0, 1], [1, 0, 0], [1, 1, 0]])
    found = compared(before, after)
    assert found.base_nats == [[3.0, 3.0]] and found.nats == [[4.0, 5.0]] and found.num_tokens == [[6, 3]]
    assert (found.num_base_right, found.num_flips, found.num_gains) == ([[3, 0]], [[2, 0]], [[1, 2]])


def test_scores_are_kept_as_they_are_and_nothing_changed_is_nothing_lost(
    heldout: HeldOut, tiny_model: Path, tmp_path: Path
) -> None:
    model, device = load_model(str(tiny_model)), torch.device("cpu")
    before = {name: score(model, rows, "float32", device) for name, rows in heldout.rows.items()}
    save_scores(tmp_path / "base" / "a.npz", before)
    domains, found = measured(heldout, load_scores(tmp_path / "base" / "a.npz"), before)
    assert domains == ["law", "news", "web"] and found.nats == found.base_nats
    assert not np.any(found.num_flips) and not np.any(found.num_gains)


def test_a_domain_of_one_row_is_refused(study: Study) -> None:
    job, data = study.cells[0].job, study.cells[0].data.model_copy(update={"seq_len": 400})
    with pytest.raises(InvalidTraining, match="makes 1 rows of 400 tokens, and a study needs 2"):
        heldout_of(job, data, 100)
