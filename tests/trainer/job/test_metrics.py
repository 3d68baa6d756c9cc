from pathlib import Path

from replay_trainer.job.metrics import MetricsFile


def test_lines_come_back_and_evaluations_by_step(tmp_path: Path) -> None:
    metrics = MetricsFile(tmp_path / "out" / "metrics.jsonl")
    metrics.begin(0)
    metrics.append("evaluation", 0, losses={"en": 3.0})
    metrics.append("step", 0, target_loss=2.0)
    metrics.append("evaluation", 1, losses={"en": 3.5})
    assert metrics.evaluations() == {0: {"en": 3.0}, 1: {"en": 3.5}}
    assert [line["kind"] for line in metrics.lines()] == ["evaluation", "step", "evaluation"]


def test_a_resumed_job_drops_what_it_measures_again(tmp_path: Path) -> None:
    metrics = MetricsFile(tmp_path / "metrics.jsonl")
    metrics.begin(0)
    for step in range(5):
        metrics.append("step", step)
    metrics.begin(3)
    assert [line["step"] for line in metrics.lines()] == [0, 1, 2]


def test_a_half_written_line_is_not_read(tmp_path: Path) -> None:
    metrics = MetricsFile(tmp_path / "metrics.jsonl")
    metrics.append("step", 0)
    with metrics.path.open("a") as file:
        file.write('{"kind": "st')
    assert len(list(metrics.lines())) == 1
