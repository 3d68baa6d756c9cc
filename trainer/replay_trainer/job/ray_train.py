"""The job on Ray Train: a worker group that fails, resumes from its checkpoint, and rewinds its run to it."""

import contextlib
import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import ray.train
import ray.train.torch
import torch
import torch.distributed
from ray.train import Checkpoint, CheckpointConfig, FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer
from torch import Tensor

from replay_service.errors import ReplayError
from replay_service.language.model import faster_precision, outline_of
from replay_service.language.precision import Precision
from replay_service.language.tokenizer import bos_id, ends_of, is_known_as
from replay_service.ray_cluster import check_room, check_shared
from replay_service.ray_session import error_within
from replay_trainer.beginning import warn_if_undecided
from replay_trainer.client import TOKEN_VARIABLE, ReplayClient
from replay_trainer.config import TrainConfig
from replay_trainer.corpus_info import CorpusInfo
from replay_trainer.errors import CorpusMismatch, InvalidTraining, TrainerError
from replay_trainer.first_model import warn_if_tuned_before
from replay_trainer.frameworks import warn_if_untested
from replay_trainer.job.adapters import check_peft
from replay_trainer.job.feed import with_teacher
from replay_trainer.job.loop import fine_tune
from replay_trainer.proxy_text import warn_if_proxy
from replay_trainer.transport import CA_FILE_VARIABLE

Argument = TypeVar("Argument")
Result = TypeVar("Result")

_STATE_FILE = "state.pt"

_CODES_OF_SIGINT = (0, 1)
"""Ray Train has a handler of SIGINT of its own, which aborts the job and ends the program with one of these."""


@dataclass(frozen=True, slots=True)
class RayWorker:
    """A Ray Train worker, as the training loop sees it."""

    rank: int
    world_size: int
    device: torch.device

    @classmethod
    def current(cls) -> "RayWorker":
        context = ray.train.get_context()
        return cls(context.get_world_rank(), context.get_world_size(), ray.train.torch.get_device())

    def wrap(self, model: Any) -> Any:
        return ray.train.torch.prepare_model(model, parallel_strategy_kwargs={"gradient_as_bucket_view": True})

    def without_averaging(self, model: Any) -> contextlib.AbstractContextManager[object]:
        return model.no_sync() if self.world_size > 1 else contextlib.nullcontext()

    def sum_over_ranks(self, values: Tensor) -> Tensor:
        if self.world_size > 1:
            torch.distributed.all_reduce(values)
        return values

    def restore(self) -> dict[str, Any] | None:
        checkpoint = ray.train.get_checkpoint()
        if checkpoint is None:
            return None
        with checkpoint.as_directory() as folder:
            state: dict[str, Any] = torch.load(Path(folder) / _STATE_FILE, map_location="cpu", weights_only=True)
        return state

    def save(self, state: dict[str, Any], step: int) -> None:
        with tempfile.TemporaryDirectory() as folder:
            checkpoint = None
            if self.rank == 0:
                torch.save(state, Path(folder) / _STATE_FILE)
                checkpoint = Checkpoint.from_directory(folder)
            ray.train.report({"step": step}, checkpoint=checkpoint)


def run_training(config: TrainConfig) -> None:
    """Check the job, create its run at the service, and train it. Ray must run.

    Called again with the same output folder after it was stopped, it goes on from the last checkpoint.

    Raises:
        CorpusMismatch: when the model's tokenizer or seq_len is not the corpus's.
        InvalidTraining: when the model, the text or the configuration cannot be used.
        ServiceError: when the service cannot be reached or refuses the run.
        RayUnavailable: when too few CPUs or GPUs are free, or a node does not share the output folder.
        KeyboardInterrupt: after SIGINT.
    """
    _check_cluster(config)
    precision = preflight(config)
    config = with_teacher(config)
    config.output.mkdir(parents=True, exist_ok=True)
    (config.output / "config.json").write_text(config.model_dump_json(indent=2))
    trainer = TorchTrainer(
        with_access(_train_loop),
        train_loop_config={"config": config.model_dump_json(), "precision": precision},
        scaling_config=_scaling(config),
        run_config=RunConfig(
            name="ray",
            storage_path=str(config.output),
            failure_config=FailureConfig(max_failures=config.max_failures),
            checkpoint_config=CheckpointConfig(num_to_keep=1),
        ),
    )
    try:
        trainer.fit()
    except ray.train.TrainingFailedError as error:
        raise error_within(error, TrainerError) or error from error
    except SystemExit as ended:
        if ended.code not in _CODES_OF_SIGINT:
            raise
        raise KeyboardInterrupt from None


def _check_cluster(config: TrainConfig) -> None:
    """Raises RayUnavailable when too few workers find room, or a node does not share the output folder."""
    worker = {"GPU": 1.0} if config.use_gpu else {"CPU": 1.0}
    check_room([worker] * (config.min_workers or config.num_workers), "this job", "take fewer workers (num_workers)")
    check_shared(config.output)


def _scaling(config: TrainConfig) -> ScalingConfig:
    if not config.min_workers:
        return ScalingConfig(num_workers=config.num_workers, use_gpu=config.use_gpu)
    return ScalingConfig(
        num_workers=(config.min_workers, config.num_workers),
        use_gpu=config.use_gpu,
        elastic_resize_monitor_interval_s=config.resize_every_s,
    )


def preflight(config: TrainConfig) -> Precision:
    """Find what is wrong before any worker starts; the precision to train in."""
    try:
        tokenizer = outline_of(config.model, config.data.seq_len).tokenizer
        ends_of(tokenizer, config.data.bos)
    except ReplayError as error:
        raise InvalidTraining(error.detail) from error
    warn_if_untested("torch", "transformers")
    if config.lora is not None:
        check_peft()
        warn_if_untested("peft")
    precision = config.precision
    rehearsal = config.rehearsal
    if rehearsal is not None:
        with ReplayClient(rehearsal.service_url) as client:
            corpus = client.corpus(rehearsal.corpus)
            check_corpus(config, tokenizer, corpus)
            run = client.ensure_run(rehearsal.run, rehearsal.corpus, config.run_settings())
        warn_if_undecided(run, config.num_steps)
        warn_if_proxy(tokenizer, rehearsal.rehearsal_loss, corpus)
        warn_if_tuned_before(config, corpus)
        if precision == "corpus":
            precision = "bf16" if corpus.precision == "bf16" else "float32"
    return faster_precision() if precision == "corpus" else precision


def check_corpus(config: TrainConfig, tokenizer: Any, info: CorpusInfo) -> None:
    """Raises CorpusMismatch when a job cannot rehearse this corpus."""
    assert config.rehearsal is not None
    corpus, loss = info.corpus, config.rehearsal.rehearsal_loss
    if info.kind != "language":
        raise CorpusMismatch(
            f"corpus {corpus!r} holds samples to classify, and this job tunes a language model; rehearse them in a "
            "loop of your own (replay_trainer.plain) or in transformers.Trainer (replay_trainer.hf)"
        )
    if not is_known_as(tokenizer, info.tokenizer_fingerprint):
        raise CorpusMismatch(
            f"the tokenizer of {config.model!r} is not the one that corpus {corpus!r} was made with; ingest the "
            "pretraining shards with this model, or tune the model that the corpus was made for"
        )
    if config.data.bos != "auto" and bos_id(tokenizer, config.data.bos) != info.bos_id:
        begin = "no bos token" if info.bos_id is None else f"the bos token {info.bos_id}"
        raise CorpusMismatch(
            f"documents of corpus {corpus!r} begin with {begin}, but data.bos is {config.data.bos!r}; leave it out"
        )
    if info.seq_len != config.data.seq_len:
        raise CorpusMismatch(
            f"rows of corpus {corpus!r} have {info.seq_len} tokens, but data.seq_len is {config.data.seq_len}; set "
            f"it to {info.seq_len}"
        )
    if config.rehearsal.needs_topk and not info.topk:
        raise CorpusMismatch(
            f"corpus {corpus!r} does not store the base model's likeliest tokens, which rehearsal_loss {loss} learns "
            "from; leave teacher out to ask the base model, ingest it with --store-topk 8, or take cross_entropy"
        )


def with_access(function: Callable[[Argument], Result]) -> Callable[[Argument], Result]:
    """The function with what this process's environment says of access to the service, on whatever machine it runs.

    It goes along with the function: Ray shows and logs a loop's configuration and a job's runtime environment.
    """
    access = {name: os.environ[name] for name in (TOKEN_VARIABLE, CA_FILE_VARIABLE) if name in os.environ}

    def with_environment(argument: Argument) -> Result:
        os.environ.update(access)
        return function(argument)

    return with_environment


def _train_loop(settings: dict[str, Any]) -> None:
    config = TrainConfig.model_validate_json(settings["config"])
    try:
        fine_tune(config, settings["precision"], RayWorker.current())
    except ReplayError as error:
        raise InvalidTraining(error.detail) from error
