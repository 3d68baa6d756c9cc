from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from replay_service.language.model import load_model
from replay_service.language.tokenizer import load_tokenizer
from replay_trainer.cli import app
from replay_trainer.config import DataConfig
from replay_trainer.errors import InvalidTraining
from replay_trainer.study.interpolation import Interpolated, Interpolation, best_within, interpolated_state
from tests.support import make_tiny_model
from tests.trainer.study.worlds import write_study
from tests.trainer.worlds import SEQ_LEN


@pytest.fixture(scope="module")
def tuned_model(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Path:
    """The tiny model with other weights."""
    folder, model = tmp_path_factory.mktemp("tuned"), load_model(str(tiny_model))
    torch.manual_seed(1)
    for weight in model.parameters():
        weight.data += 0.3 * torch.randn_like(weight)
    model.save_pretrained(folder)
    load_tokenizer(str(tiny_model)).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Path:
    folder = tmp_path_factory.mktemp("text")
    write_study(folder, tiny_model, "http://127.0.0.1:1")
    return folder / "text"


def test_weights_lie_between_those_of_the_two_models() -> None:
    base = {"w": torch.zeros(3), "steps": torch.tensor(1)}
    tuned = {"w": torch.tensor([1.0, 2.0, -4.0]), "steps": torch.tensor(7)}
    found = interpolated_state(base, tuned, 0.25)
    assert found["w"].tolist() == [0.25, 0.5, -1.0] and found["steps"].item() == 7
    assert torch.equal(interpolated_state(base, tuned, 1.0)["w"], tuned["w"])


def test_models_of_two_shapes_are_refused(tmp_path: Path, tiny_model: Path, text: Path) -> None:
    wider = make_tiny_model(tmp_path / "wider", hidden_size=64)
    data = DataConfig(target="-", heldout_pretraining=str(text / "held"), domain_column="domain", seq_len=SEQ_LEN)
    with pytest.raises(InvalidTraining, match="do not have the same weights"):
        list(Interpolation(str(tiny_model), str(wider), "float32").scored(data, [0.5], 8))


def test_the_share_of_nothing_is_the_base_model_and_forgets_nothing(
    tiny_model: Path, tuned_model: Path, text: Path
) -> None:
    data = DataConfig(
        target="-",
        heldout_pretraining=str(text / "held"),
        heldout_target=str(text / "stories" / "heldout.parquet"),
        domain_column="domain",
        seq_len=SEQ_LEN,
    )
    none, half, whole = Interpolation(str(tiny_model), str(tuned_model), "float32").scored(data, [0.0, 0.5, 1.0], 8)
    assert set(none.forgetting) == {"law", "news", "web"}
    assert none.mean_forgetting == pytest.approx(0.0, abs=1e-6)
    assert 0.0 < half.mean_forgetting < whole.mean_forgetting
    assert none.target_loss is not None


def test_the_best_share_is_the_one_of_the_least_target_loss_within_the_budget() -> None:
    found = [Interpolated(0.2, 3.0, {"a": 0.1}), Interpolated(0.5, 2.5, {"a": 0.3}), Interpolated(0.9, 2.7, {"a": 0.2})]
    best = best_within(found, 0.25)
    assert best is not None and best.tuned_share == 0.9
    assert best_within(found, 0.05) is None
    without = [Interpolated(share, None, {"a": share}) for share in (0.1, 0.4, 0.8)]
    best = best_within(without, 0.5)
    assert best is not None and best.tuned_share == 0.4


def test_the_command_shows_a_table_and_writes_the_best_weights(
    tmp_path: Path, tiny_model: Path, tuned_model: Path, text: Path
) -> None:
    command = ["interpolate", str(tiny_model), str(tuned_model), "--heldout-pretraining", str(text / "held")]
    command += ["--domain-column", "domain", "--seq-len", str(SEQ_LEN)]
    for share in ("0.1", "0.9"):
        command += ["--lambda", share]
    output = tmp_path / "best"
    result = CliRunner().invoke(app, [*command, "--budget-nats", "0.5", "--output", str(output)])
    assert result.exit_code == 0, result.output
    assert "| 0.9 |" in result.output and "lambda 0.1" in result.output.rpartition("best within")[2]
    base, tuned, best = (load_model(str(each)).state_dict() for each in (tiny_model, tuned_model, output))
    name = next(iter(base))
    torch.testing.assert_close(best[name], base[name].lerp(tuned[name], 0.1))
    again = CliRunner().invoke(app, [*command, "--budget-nats", "0.5", "--output", str(output)])
    assert again.exit_code == 2 and "holds files already" in again.output
    too_little = CliRunner().invoke(app, [*command, "--budget-nats", "-1"])
    assert too_little.exit_code == 2 and "every share forgets more than -1" in too_little.output


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--lambda", "1.5"], "must lie between 0 and 1"),
        (["--output", "x"], "--output needs --budget-nats"),
    ],
)
def test_options_that_do_not_fit_are_refused(options: list[str], said: str) -> None:
    result = CliRunner().invoke(app, ["interpolate", "a", "b", "--heldout-pretraining", "c", *options])
    assert result.exit_code == 2 and said in " ".join(result.output.split()).replace("│ ", "")
