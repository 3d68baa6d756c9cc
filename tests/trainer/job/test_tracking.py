import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import structlog
from hypothesis import given
from hypothesis import strategies as st

from replay_trainer.errors import InvalidTraining
from replay_trainer.job.tracking import Trackers, open_trackers, without_secrets

CONFIG = {"num_steps": 10, "rehearsal": {"corpus": "wiki", "service_url": "http://me:pass@host:8400/?sig=abc"}}


class Recorder:
    """A tracker that keeps what it is told, and fails where it is asked to."""

    def __init__(self, fails_in: str = "") -> None:
        self.fails_in, self.told = fails_in, []

    def begin(self, config: Any, first_step: int) -> None:
        self._tell("begin", config, first_step)

    def log(self, step: int, values: Any) -> None:
        self._tell("log", step, values)

    def close(self) -> None:
        self._tell("close")

    def _tell(self, *what: Any) -> None:
        self.told.append(what)
        if what[0] == self.fails_in:
            raise RuntimeError("the server is gone")


def events(folder: Path) -> Any:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    return EventAccumulator(str(folder)).Reload()


def test_tensorboard_shows_the_figures_and_the_settings(tmp_path: Path) -> None:
    with open_trackers(["tensorboard"], tmp_path, "a-run") as trackers:
        trackers.begin(CONFIG)
        for step in range(3):
            trackers.log(step, {"target_loss": 3.0 - step, "rehearsed_loss": None if step else 2.0})
    found = events(tmp_path / "tensorboard" / "a-run")
    assert [(each.step, each.value) for each in found.Scalars("target_loss")] == [(0, 3.0), (1, 2.0), (2, 1.0)]
    assert [each.step for each in found.Scalars("rehearsed_loss")] == [0]
    text = found.Tensors("config/text_summary")[0].tensor_proto.string_val[0].decode()
    assert json.loads(text)["rehearsal"] == {"corpus": "wiki", "service_url": "http://host:8400/"}


def test_a_resumed_job_replaces_in_tensorboard_what_it_measures_again(tmp_path: Path) -> None:
    for first_step, last_step, value in ((0, 5, 1.0), (3, 6, 2.0)):
        with open_trackers(["tensorboard"], tmp_path, "a-run") as trackers:
            trackers.begin(CONFIG, first_step)
            for step in range(first_step, last_step):
                trackers.log(step, {"target_loss": value})
    found = events(tmp_path / "tensorboard" / "a-run").Scalars("target_loss")
    assert [(each.step, each.value) for each in found] == [(step, 1.0 if step < 3 else 2.0) for step in range(6)]


class FakeWandb:
    """The part of the package wandb that a tracker calls."""

    def __init__(self) -> None:
        self.runs: list[dict[str, Any]] = []

    def init(self, **settings: Any) -> Any:
        run: dict[str, Any] = {**settings, "logged": [], "finished": False}
        self.runs.append(run)
        return SimpleNamespace(
            log=lambda values, step: run["logged"].append((step, values)),
            finish=lambda: run.update(finished=True),
        )


class FakeMlflow:
    """The part of the package mlflow that a tracker calls."""

    def __init__(self, uri: str | None = None) -> None:
        self.uri, self.started, self.params, self.metrics, self.ended = uri, [], [], [], 0

    def is_tracking_uri_set(self) -> bool:
        return self.uri is not None

    def set_tracking_uri(self, uri: str) -> None:
        self.uri = uri

    def start_run(self, run_id: str | None, run_name: str) -> Any:
        self.started.append((run_id, run_name))
        return SimpleNamespace(info=SimpleNamespace(run_id=run_id or f"id-{len(self.started)}"))

    def log_params(self, params: dict[str, Any]) -> None:
        self.params.append(params)

    def log_metrics(self, values: dict[str, float], step: int) -> None:
        self.metrics.append((step, values))

    def end_run(self) -> None:
        self.ended += 1


def train_with(name: str, folder: Path, first_step: int) -> None:
    with open_trackers([name], folder, "a-run") as trackers:
        trackers.begin(CONFIG, first_step)
        trackers.log(first_step, {"target_loss": 1.5, "rehearsed_loss": None})


def test_a_job_that_goes_on_continues_its_run_of_wandb_and_a_new_one_has_a_new_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wandb = FakeWandb()
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    for first_step in (0, 4, 0):
        train_with("wandb", tmp_path / "out", first_step)
    first, resumed, anew = wandb.runs
    assert first["id"] == resumed["id"] != anew["id"]
    assert {(each["name"], each["resume"], each["dir"]) for each in wandb.runs} == {
        ("a-run", "allow", str(tmp_path / "out"))
    }
    assert first["config"]["rehearsal"] == {"corpus": "wiki", "service_url": "http://host:8400/"}
    assert resumed["logged"] == [(4, {"target_loss": 1.5})]
    assert all(each["finished"] for each in wandb.runs)


def test_a_job_that_goes_on_continues_its_run_of_mlflow_and_a_new_one_has_a_new_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mlflow = FakeMlflow()
    monkeypatch.setitem(sys.modules, "mlflow", mlflow)
    for first_step in (0, 4, 0):
        train_with("mlflow", tmp_path / "out", first_step)
    assert mlflow.uri == f"sqlite:///{tmp_path / 'out' / 'mlflow.db'}"
    assert mlflow.started == [(None, "a-run"), ("id-1", "a-run"), (None, "a-run")]
    assert (
        mlflow.params
        == [{"num_steps": 10, "rehearsal.corpus": "wiki", "rehearsal.service_url": "http://host:8400/"}] * 2
    )
    assert mlflow.metrics == [(step, {"target_loss": 1.5}) for step in (0, 4, 0)]
    assert mlflow.ended == 3


def test_mlflow_writes_where_its_user_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mlflow = FakeMlflow("https://mlflow.example")
    monkeypatch.setitem(sys.modules, "mlflow", mlflow)
    train_with("mlflow", tmp_path, 0)
    assert mlflow.uri == "https://mlflow.example"


@pytest.mark.parametrize("fails_in", ["begin", "log", "close"])
def test_a_tracker_that_fails_is_left_out_with_one_warning_and_the_others_go_on(fails_in: str) -> None:
    bad, good = Recorder(fails_in), Recorder()
    with structlog.testing.capture_logs() as logs, Trackers({"bad": bad, "good": good}) as trackers:
        trackers.begin({})
        trackers.log(0, {"loss": 1.0})
        trackers.log(1, {"loss": 2.0})
    assert logs == [
        {"event": "tracker_left_out", "tracker": "bad", "error": "the server is gone", "log_level": "warning"}
    ]
    assert bad.told[-1][0] == fails_in
    assert good.told == [("begin", {}, 0), ("log", 0, {"loss": 1.0}), ("log", 1, {"loss": 2.0}), ("close",)]


def test_a_step_in_which_nothing_was_measured_is_not_logged() -> None:
    tracker = Recorder()
    Trackers({"one": tracker}).log(0, {"loss": None})
    assert tracker.told == []


def test_trackers_are_closed_when_training_fails() -> None:
    tracker = Recorder()
    with pytest.raises(KeyError), Trackers({"one": tracker}):
        raise KeyError("training")
    assert tracker.told == [("close",)]


def test_only_rank_0_has_trackers(tmp_path: Path) -> None:
    with open_trackers(["tensorboard"], tmp_path, "a-run", rank=1) as trackers:
        trackers.begin(CONFIG)
        trackers.log(0, {"loss": 1.0})
    assert list(tmp_path.iterdir()) == []


def test_a_tracker_that_nobody_knows_is_refused_with_those_there_are(tmp_path: Path) -> None:
    with pytest.raises(InvalidTraining, match="no tracker comet; there are tensorboard, wandb, mlflow"):
        open_trackers(["wandb", "comet"], tmp_path, "a-run")


@pytest.mark.parametrize("rank", [0, 1])
def test_a_tracker_whose_package_is_missing_is_refused_on_every_rank(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rank: int
) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(InvalidTraining, match=r"needs the package wandb.*pip install wandb"):
        open_trackers(["wandb"], tmp_path, "a-run", rank=rank)


def test_what_is_secret_in_settings_is_left_out_wherever_it_is() -> None:
    config = {
        "api_key": "k-1",
        "tokens_column": "ids",
        "num_tokens": 3,
        "output": Path("out"),
        "store": {"secret_access_key": "s-1", "region": "eu"},
        "data": ["s3://id:pass@bucket/x.parquet?versionId=1&signature=abc", "notes.txt"],
        "services": [{"url": "https://h/", "token": "t-1"}],
    }
    assert without_secrets(config) == {
        "tokens_column": "ids",
        "num_tokens": 3,
        "output": "out",
        "store": {"region": "eu"},
        "data": ["s3://bucket/x.parquet", "notes.txt"],
        "services": [{"url": "https://h/"}],
    }


SETTINGS = st.recursive(
    st.none() | st.integers() | st.text(st.characters(exclude_characters="?@:/"), max_size=5),
    lambda inner: st.dictionaries(st.sampled_from(["steps", "num_tokens", "data"]), inner) | st.lists(inner),
)


@given(st.dictionaries(st.sampled_from(["model", "rehearsal", "tokens_column"]), SETTINGS))
def test_settings_without_secrets_are_left_as_they_are(config: dict[str, Any]) -> None:
    assert without_secrets(config) == config
