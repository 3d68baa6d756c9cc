"""The configuration of a job: the keys of its TOML file, and how the file is read."""

import math
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError, field_validator, model_validator

from replay_service.corpus.shards.sources import is_url
from replay_service.language.packing import MIN_LENGTH, Bos
from replay_service.sampling.schedule import CURVES_OF_A_LENGTH
from replay_trainer.errors import InvalidTraining
from replay_trainer.keys import Section, problems_of
from replay_trainer.methods.flow import Form, Normalize
from replay_trainer.rehearsal_config import OF_THE_JOB, RehearsalConfig
from replay_trainer.service_urls import URL_VARIABLE


class DataConfig(Section):
    """The text to train on and to measure on."""

    target: str = Field(description="Fine-tuning text: a shard, a folder or a glob, local or a URL.")
    heldout_target: str | None = Field(
        None, description="Shards to measure the target loss on, of the same kind as `target`."
    )
    heldout_pretraining: str | None = Field(
        None, description="Shards of pretraining text to measure forgetting on, by domain."
    )
    text_column: str = Field("text", description="Column that holds the text.")
    tokens_column: str | None = Field(None, description="Column that holds ready-made token ids, instead of a text.")
    domain_column: str | None = Field(None, description="Column that holds the domain of held-out text.")
    prompt_column: str | None = Field(None, description="For examples: column that holds the prompt.")
    response_column: str | None = Field(
        None, description="For examples: column whose tokens are learned. Parquet or JSON lines on this machine."
    )
    layout: Literal["packed", "padded"] = Field(
        "packed", description="`packed`: texts and examples end to end, without padding. `padded`: one example a row."
    )
    seq_len: int = Field(512, ge=MIN_LENGTH, description="Tokens in a row. With rehearsal, the same as the corpus.")
    bos: Bos = Field(
        "auto",
        description="Begin documents with the bos token. "
        "`auto`: as in the corpus, and without rehearsal as the tokenizer.",
    )

    @model_validator(mode="after")
    def _goes_together(self) -> "DataConfig":
        if self.prompt_column is not None and self.response_column is None:
            raise ValueError("a prompt_column needs a response_column: what is to be learned")
        if self.layout == "padded" and self.response_column is None:
            raise ValueError("layout padded is for examples; name their response_column")
        return self

    @field_validator("target", "heldout_target", "heldout_pretraining", mode="before")
    @classmethod
    def _path_or_url(cls, value: object) -> object:
        return str(value) if isinstance(value, Path) else value


class FlowConfig(Section):
    """FLOW: fine-tuning samples that the base model finds easy count more (`replay_trainer.methods.flow`)."""

    form: Form = Field(
        "sequence", description="`sequence`: one weight for each example. `token`: one for each token of a response."
    )
    tau: Literal["median"] | float = Field("median", description="Temperature, nats. `median`: the median base loss.")
    normalize: Normalize = Field(
        "none", description="`none`: weights as in the paper. `mean`: weights are 1 on average."
    )

    @field_validator("tau")
    @classmethod
    def _positive(cls, tau: float | str) -> float | str:
        if isinstance(tau, float) and not 0.0 < tau < math.inf:
            raise ValueError(f"tau must be positive and finite, not {tau}")
        return tau


class LdifsConfig(Section):
    """LDIFS: features may not move far from the base model's (`replay_trainer.methods.ldifs`)."""

    weight: float = Field(0.2, gt=0, description="Weight of the mean drift in the loss, nats.")
    layers: tuple[str, ...] | None = Field(
        None, description="Paths of the modules whose features count. By default each quarter of the depth."
    )


class LoraConfig(Section):
    """LoRA: adapters learn, and the model stays as it is (`replay_trainer.job.adapters`)."""

    r: int = Field(8, ge=1, description="Rank of the adapters.")
    alpha: int = Field(16, ge=1, description="Adapters are multiplied by alpha / r.")
    dropout: float = Field(0.0, ge=0, lt=1, description="Dropout of the adapters' inputs in training.")
    target_modules: Literal["all-linear"] | tuple[str, ...] = Field(
        "all-linear",
        description="Names of the modules that get an adapter. `all-linear`: all linear modules but the head.",
    )


class TrainConfig(Section):
    """One fine-tuning job."""

    model: str = Field(description="Model to tune: a local folder or a Hugging Face hub name.")
    output: Path = Field(description="Folder for metrics, checkpoints and the tuned model.")
    data: DataConfig
    rehearsal: RehearsalConfig | None = Field(None, description="Leave it out to train without rehearsal.")
    flow: FlowConfig | None = Field(None, description="Leave it out to weigh all samples alike.")
    ldifs: LdifsConfig | None = Field(None, description="Leave it out for no term of features in the loss.")
    lora: LoraConfig | None = Field(None, description="Leave it out to tune the whole model.")
    num_steps: int = Field(ge=1, description="Optimizer steps.")
    global_batch_size: int = Field(
        8,
        ge=1,
        description="Sequences in a step of the whole job. Rehearsed rows are among them, unless they are added.",
    )
    micro_batch_size: int = Field(
        0, ge=0, description="Most rows of one forward pass of a worker. 0: its whole share of a step."
    )
    chunked_head: bool = Field(
        False,
        description="Compute losses from the head a tile at a time, without the logits of whole rows. Saves memory.",
    )
    learning_rate: float = Field(3e-5, gt=0, description="Peak learning rate of AdamW.")
    weight_decay: float = Field(0.0, ge=0, description="Weight decay of AdamW.")
    l2_start: float = Field(
        0.0,
        ge=0,
        description="Weight in the loss of half the squared distance of the weights from those that training begins "
        "with (L2-SP).",
    )
    schedule: Literal["constant", "linear", "cosine"] = Field(
        "cosine", description="Decay of the learning rate after the warm-up."
    )
    warmup_steps: int = Field(0, ge=0, description="Steps of linear warm-up.")
    max_grad_norm: float = Field(1.0, gt=0, description="Gradients are clipped to this norm.")
    precision: Literal["corpus", "float32", "bf16"] = Field(
        "corpus", description="Arithmetic of the training. `corpus`: that of the base losses."
    )
    seed: int = Field(0, ge=0, description="Order of the fine-tuning rows, dropout, and the run's draws.")
    num_workers: int = Field(1, ge=1, description="Ray Train workers. With `min_workers`, the most of them.")
    min_workers: int = Field(
        0,
        ge=0,
        description="Continue with as few workers as this, and with more as machines come. 0: always `num_workers`.",
    )
    resize_every_s: float = Field(
        60.0,
        ge=0,
        description="Seconds between looks for new machines. A change of workers continues from a checkpoint.",
    )
    use_gpu: bool = Field(False, description="One GPU a worker.")
    evaluate_every: int = Field(
        0, ge=0, description="Steps between measurements on held-out text. 0: before the first and after the last step."
    )
    checkpoint_every: int = Field(0, ge=0, description="Steps between checkpoints. 0: none.")
    max_failures: int = Field(0, ge=0, description="How often to continue from the last checkpoint after a failure.")
    trackers: tuple[str, ...] = Field(
        (), description="Trackers that also get the metrics: `tensorboard`, `wandb`, `mlflow`."
    )
    profile: bool = Field(False, description="Measure the time of each part of a step. It costs some speed.")
    save_model: bool = Field(True, description="Save the tuned model to `output`/model.")

    @model_validator(mode="before")
    @classmethod
    def _schedule_runs_over_the_job(cls, content: object) -> object:
        """A schedule of the injection ratio is as long as the job, unless its length is written."""
        if not isinstance(content, dict) or not isinstance(content.get("rehearsal"), dict):
            return content
        rehearsal, schedule = content["rehearsal"], content["rehearsal"].get("schedule")
        if not isinstance(schedule, dict) or schedule.get("curve") not in CURVES_OF_A_LENGTH:
            return content
        whole = {"num_steps": content.get("num_steps", 0), **schedule}
        return {**content, "rehearsal": {**rehearsal, "schedule": whole}}

    @model_validator(mode="after")
    def _has_rows_for_all(self) -> "TrainConfig":
        if self.global_batch_size < self.num_workers:
            raise ValueError(
                f"global_batch_size {self.global_batch_size} is less than num_workers {self.num_workers}: some would "
                "have no row"
            )
        if self.min_workers > self.num_workers:
            raise ValueError(f"min_workers {self.min_workers} is more than num_workers {self.num_workers}")
        return self

    @model_validator(mode="after")
    def _has_logits_to_distil(self) -> "TrainConfig":
        if self.chunked_head and self.rehearsal is not None and self.rehearsal.needs_topk:
            raise ValueError(
                "rehearsal that is distilled from stored tokens needs whole logits; set rehearsal.teacher to base, "
                "leave chunked_head out, or take cross_entropy"
            )
        return self

    def with_teacher(self, stores_topk: bool) -> "TrainConfig":
        """This job with its teacher chosen: `stored` where the corpus has it and chunked_head is off, else `base`."""
        assert self.rehearsal is not None
        teacher = "stored" if stores_topk and not self.chunked_head else "base"
        return self.model_copy(update={"rehearsal": self.rehearsal.model_copy(update={"teacher": teacher})})

    def run_settings(self) -> dict[str, Any]:
        """The settings of the run at the service."""
        assert self.rehearsal is not None
        whole_job = {name: getattr(self, name) for name in OF_THE_JOB}
        return {**self.rehearsal.timed_settings(self.num_steps, self.schedule), **whole_job}


def read_config(
    path: Path, overrides: Mapping[str, Any] | None = None, environment: Mapping[str, str] | None = None
) -> TrainConfig:
    """The configuration in a TOML file.

    Args:
        path: of the file. Relative paths in it count from its own folder.
        overrides: values that replace those of the file, by key; a dotted key reaches into a section.
        environment: may name the service by REPLAY_URL, where the job rehearses; overrides count more.

    Raises:
        InvalidTraining: when the file is missing or is no TOML, or a key is unknown, missing or out of range.
    """
    content = read_toml(path)
    url = (environment or {}).get(URL_VARIABLE)
    if url and isinstance(content.get("rehearsal"), dict):
        content["rehearsal"]["service_url"] = url
    for name, value in (overrides or {}).items():
        section, _, key = name.rpartition(".")
        (content.setdefault(section, {}) if section else content)[key] = value
    return job_of(content, path.parent.absolute(), f"configuration {path}")


def read_toml(path: Path) -> dict[str, Any]:
    """The keys and sections of a file; raises InvalidTraining when it is missing or is no TOML."""
    try:
        return tomllib.loads(path.read_text())
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise InvalidTraining(f"configuration {path} cannot be read: {error}") from error


def job_of(content: Mapping[str, Any], folder: Path, called: str) -> TrainConfig:
    """The job that the keys and sections of a file describe.

    Args:
        content: as `tomllib` reads it.
        folder: relative paths in the file are relative to it.
        called: name of the file in errors.

    Raises:
        InvalidTraining: when a key is unknown, missing or out of range.
    """
    try:
        return _absolute(TrainConfig.model_validate(content), folder)
    except ValidationError as error:
        raise InvalidTraining(f"{called}: {problems_of(error, TrainConfig)}") from error


def _absolute(config: TrainConfig, folder: Path) -> TrainConfig:
    def resolve(source: str | None) -> str | None:
        return source if source is None or is_url(source) else str(folder / source)

    data = config.data
    paths = {name: resolve(getattr(data, name)) for name in ("target", "heldout_target", "heldout_pretraining")}
    model = folder / config.model if (folder / config.model).is_dir() else config.model
    return config.model_copy(
        update={"data": data.model_copy(update=paths), "output": folder / config.output, "model": str(model)}
    )
