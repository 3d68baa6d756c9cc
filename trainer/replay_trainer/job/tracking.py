"""Trackers: services that draw a job's curves. TensorBoard, Weights & Biases, MLflow, or your own.

A tracker gets what the metrics file gets, and is never needed: the file (`replay_trainer.job.metrics`) holds all of
it. A failing tracker is warned about once and left out from there on. Training goes on.

    name           package              where it writes
    tensorboard    tensorboard          the folder `tensorboard` beside the metrics
    wandb          wandb                as WANDB_PROJECT, WANDB_MODE, ... say; its files go beside the metrics
    mlflow         mlflow               as MLFLOW_TRACKING_URI, ... say; by default `mlflow.db` beside the metrics

Their packages are not among this project's: install those that you use.

Beside a training loop:

    with open_trackers(["tensorboard"], folder, "my-run", rank=rank) as trackers:
        trackers.begin(config, first_step)
        for step in range(first_step, num_steps):
            ...
            trackers.log(step, {"target_loss": loss})

To add one, write a class with the three methods of `Tracker` and its line in `_OPENERS`.
"""

import importlib
import json
import uuid
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Protocol

import structlog

from replay_service.corpus.shards.sources import printable
from replay_trainer.errors import InvalidTraining

_log = structlog.get_logger()


class Tracker(Protocol):
    """Where a job's figures go."""

    def begin(self, config: Mapping[str, Any], first_step: int) -> None:
        """Called once, first.

        Args:
            config: the job's settings, of JSON types, sections within it; nothing secret.
            first_step: 0, or the step that a job goes on from. What an earlier process logged of this run before it is
                kept; what it logged from there on will be logged again.
        """
        ...

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Figures of a step by name, each in its own unit."""
        ...

    def close(self) -> None:
        """Write out what is left; called once, last."""
        ...


class Trackers:
    """Several trackers as one, which never raises. A context manager that closes them."""

    def __init__(self, trackers: Mapping[str, Tracker]) -> None:
        self._trackers = dict(trackers)

    def begin(self, config: Mapping[str, Any], first_step: int = 0) -> None:
        """Begin all, with the settings less what is secret in them."""
        settings = without_secrets(config)
        self._each(lambda tracker: tracker.begin(settings, first_step))

    def log(self, step: int, values: Mapping[str, float | None]) -> None:
        """Log to all; a value of None, which was not measured in this step, is left out."""
        measured = {name: value for name, value in values.items() if value is not None}
        if measured:
            self._each(lambda tracker: tracker.log(step, measured))

    def close(self) -> None:
        self._each(lambda tracker: tracker.close())
        self._trackers = {}

    def __enter__(self) -> "Trackers":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _each(self, action: Callable[[Tracker], None]) -> None:
        for name, tracker in list(self._trackers.items()):
            try:
                action(tracker)
            except Exception as error:
                # The libraries behind trackers raise what they like.
                del self._trackers[name]
                _log.warning("tracker_left_out", tracker=name, error=str(error) or type(error).__name__)


def open_trackers(names: Sequence[str], folder: Path, run: str, *, rank: int = 0) -> Trackers:
    """The trackers of a job.

    Args:
        names: which, of those in the table above.
        folder: the job's output folder.
        run: what the trackers call the run.
        rank: of this process; only rank 0 has trackers, the others get none.

    Raises:
        InvalidTraining: when a name is unknown or its package is not installed, on any rank.
    """
    unknown = sorted(set(names) - _OPENERS.keys())
    if unknown:
        raise InvalidTraining(f"there is no tracker {', '.join(unknown)}; there are {', '.join(_OPENERS)}")
    modules = {name: _module(name) for name in names}
    if rank != 0:
        return Trackers({})
    return Trackers({name: _OPENERS[name](module, folder, run) for name, module in modules.items()})


class TensorBoardTracker:
    """Event files that TensorBoard shows: `tensorboard --logdir FOLDER/tensorboard`."""

    def __init__(self, summary: Any, folder: Path, run: str) -> None:
        self._summary, self._folder = summary, folder / "tensorboard" / run
        self._writer: Any = None

    def begin(self, config: Mapping[str, Any], first_step: int) -> None:
        self._writer = self._summary.SummaryWriter(self._folder, purge_step=first_step or None)
        # As Markdown, in which four spaces make a block.
        self._writer.add_text("config", "    " + json.dumps(config, indent=2).replace("\n", "\n    "), first_step)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()


class WandbTracker:
    """A run of Weights & Biases. A job that goes on continues its run there, which ignores steps that it has seen."""

    def __init__(self, wandb: Any, folder: Path, run: str) -> None:
        self._wandb, self._folder, self._run = wandb, folder, run
        self._session: Any = None

    def begin(self, config: Mapping[str, Any], first_step: int) -> None:
        path = self._folder / "wandb-run"
        run_id = _noted(path, first_step) or uuid.uuid4().hex[:12]
        self._folder.mkdir(parents=True, exist_ok=True)
        self._session = self._wandb.init(
            name=self._run, id=run_id, resume="allow", dir=str(self._folder), config=dict(config)
        )
        path.write_text(run_id)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self._session.log(dict(values), step=step)

    def close(self) -> None:
        if self._session is not None:
            self._session.finish()


class MlflowTracker:
    """A run of MLflow. A job that goes on continues its run there."""

    def __init__(self, mlflow: Any, folder: Path, run: str) -> None:
        self._mlflow, self._folder, self._run = mlflow, folder, run
        self._begun = False

    def begin(self, config: Mapping[str, Any], first_step: int) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        if not self._mlflow.is_tracking_uri_set():
            self._mlflow.set_tracking_uri(f"sqlite:///{(self._folder / 'mlflow.db').absolute()}")
        path = self._folder / "mlflow-run"
        run_id = _noted(path, first_step)
        self._begun = True
        run = self._mlflow.start_run(run_id=run_id, run_name=self._run)
        path.write_text(run.info.run_id)
        if run_id is None:
            # MLflow refuses a parameter that changes, and a job that goes on may have more steps.
            self._mlflow.log_params(_flat(config))

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self._mlflow.log_metrics(dict(values), step=step)

    def close(self) -> None:
        if self._begun:
            self._mlflow.end_run()


_OPENERS: Final[dict[str, Callable[[Any, Path, str], Tracker]]] = {
    "tensorboard": TensorBoardTracker,
    "wandb": WandbTracker,
    "mlflow": MlflowTracker,
}
_MODULES: Final = {"tensorboard": "torch.utils.tensorboard", "wandb": "wandb", "mlflow": "mlflow"}
_SECRET_WORDS: Final = {"token", "password", "passwd", "secret", "credential", "credentials", "key"}


def without_secrets(config: Mapping[str, Any]) -> dict[str, Any]:
    """Settings that may be shown around.

    A key with a word such as token, password or key in it (`api_key`, but not `num_tokens`) is left out, in sections
    and lists too; a URL loses its user, password and query, where signatures are.
    """
    return {name: _shown(value) for name, value in config.items() if _SECRET_WORDS.isdisjoint(name.lower().split("_"))}


def _shown(value: Any) -> Any:
    if isinstance(value, Mapping):
        return without_secrets(value)
    if isinstance(value, list | tuple):
        return [_shown(each) for each in value]
    return printable(value) if isinstance(value, str | Path) else value


def _flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Settings without sections: a dot stands between the names of a section and of what is in it."""
    flat: dict[str, Any] = {}
    for name, value in config.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {prefix + name: value}
    return flat


def _module(name: str) -> Any:
    try:
        return importlib.import_module(_MODULES[name])
    except ImportError as error:
        raise InvalidTraining(
            f"the tracker {name} needs the package {name}, which cannot be imported ({error}); pip install {name}, or "
            "leave the tracker out"
        ) from error


def _noted(path: Path, first_step: int) -> str | None:
    """The name that the tracker gave to the run that a job goes on with; None for a new one."""
    return path.read_text() if first_step > 0 and path.exists() else None
