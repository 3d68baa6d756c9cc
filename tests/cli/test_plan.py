"""`replay-service plan`, as a person runs it."""

from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from replay_service.cli import app
from tests.planning.worlds import World, write_runs


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_runs(World().runs(), tmp_path_factory.mktemp("plan") / "runs.csv")


def plan(*arguments: str | Path) -> Any:
    return CliRunner().invoke(app, ["plan", *map(str, arguments)], env={"COLUMNS": "200", "NO_COLOR": "1"})


def test_a_plan_is_printed_and_drawn(runs: Path, tmp_path: Path) -> None:
    picture = tmp_path / "plan.svg"
    result = plan(runs, "--budget-nats", "0.1", "--num-resamples", "20", "--predict-largest", "--picture", picture)
    assert result.exit_code == 0, result.output
    assert "injection ratio for 0.1 nats" in result.stdout and "[rehearsal.budget.law]" in result.stdout
    assert "Prediction of the largest" in result.stdout
    assert "<svg" in picture.read_text()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--budget-nats", "0"), "budget_nats must be above 0"),
        (("--budget-nats", "0.1", "--rehearsal-weight", "-1"), "rehearsal_weight must be above 0"),
        (("--budget-nats", "0.1", "--where", "injection_ratio=0.05"), "add runs at a second ratio"),
        (("--budget-nats", "0.1", "--picture", "plan.docx"), "has no ending of a picture"),
    ],
)
def test_a_mistake_is_one_message(options: tuple[str, ...], said: str, runs: Path) -> None:
    result = plan(runs, *options)
    assert result.exit_code == 2
    assert said in " ".join(result.output.split()), result.output
