"""The trainer's configuration: a TOML file with strict keys."""

import math
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from replay_service.corpus.shards.sources import is_url
from replay_service.language.packing import MIN_LENGTH, Bos
from replay_service.names import NAME_PATTERN
from replay_service.sampling.damage import Signal
from replay_service.sampling.injection import InjectionMode, exact_ratio
from replay_service.sampling.policies import PolicyName
from replay_service.sampling.run_config import AUTO, FeedbackMode, RunConfig
from replay_trainer.errors import InvalidTraining
from replay_trainer.keys import keys_at, unknown_key, unknown_keys
from replay_trainer.methods.flow import Form, Normalize
from replay_trainer.windows import Auto


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)


class DataConfig(Section):
    """The text to train on and to measure on."""

    target: str = Field(description="Shard, folder or glob of shards of the fine-tuning text, here or behind a URL.")
    heldout_target: str | None = Field(None, description="What to measure the target loss on; of what kind target is.")
    heldout_pretraining: str | None = Field(None, description="Shards to measure forgetting on, by domain.")
    text_column: str = Field("text", description="Column that holds the text.")
    tokens_column: str | None = Field(None, description="Column that holds ready-made token ids, instead of a text.")
    domain_column: str | None = Field(None, description="Column that holds the domain of held-out text.")
    prompt_column: str | None = Field(None, description="Examples: column of what comes before the response.")
    response_column: str | None = Field(
        None, description="Examples: column whose tokens are learned. Parquet or JSON lines on this machine."
    )
    layout: Literal["packed", "padded"] = Field(
        "packed", description="Texts and examples end to end, without padding; or one example a row."
    )
    seq_len: int = Field(512, ge=MIN_LENGTH, description="Tokens in a row; with rehearsal, those of the corpus.")
    bos: Bos = Field(
        "auto",
        description="Begin documents with the bos token; auto: as the corpus, and without rehearsal as the tokenizer.",
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

    form: Form = Field("sequence", description="A weight for each example, or for each token of a response.")
    tau: Literal["median"] | float = Field("median", description="Temperature, nats; by default the median base loss.")
    normalize: Normalize = Field("none", description="none: as in the paper; mean: weights are 1 on average.")

    @field_validator("tau")
    @classmethod
    def _positive(cls, tau: float | str) -> float | str:
        if isinstance(tau, float) and not 0.0 < tau < math.inf:
            raise ValueError(f"tau must be positive and finite, not {tau}")
        return tau


class LdifsConfig(Section):
    """LDIFS: features may not move far from the base model's (`replay_trainer.methods.ldifs`)."""

    weight: float = Field(0.2, gt=0, description="What the mean drift is multiplied by, nats.")
    layers: tuple[str, ...] | None = Field(None, description="Paths of modules; by default each quarter of the depth.")


class LoraConfig(Section):
    """LoRA: adapters learn, and the model stays as it is (`replay_trainer.job.adapters`)."""

    r: int = Field(8, ge=1, description="Rank of the adapters.")
    alpha: int = Field(16, ge=1, description="They are multiplied by alpha / r.")
    dropout: float = Field(0.0, ge=0, lt=1, description="Share of what comes into them that is dropped in training.")
    target_modules: Literal["all-linear"] | tuple[str, ...] = Field(
        "all-linear", description="Names of the modules that get one; all-linear: all linear ones but the head."
    )


class RehearsalConfig(Section):
    """What to rehearse, how much, and where it comes from.

    A token has no place in a job's file, which is kept and shown around; `replay_trainer.client` takes it from the
    environment.
    """

    service_url: str = Field("http://127.0.0.1:8400", description="The replay service.")
    corpus: str = Field(pattern=NAME_PATTERN, description="Corpus to rehearse from.")
    run: str = Field(pattern=NAME_PATTERN, description="Name of this job's run at the service.")
    injection_ratio: str = Field(
        description='Share of the sequences of a batch that is rehearsal, such as "0.05"; or "auto", see budget.'
    )
    injection_mode: InjectionMode = Field(
        "replace", description="replace: rehearsed rows take the place of others; add: they come on top."
    )
    schedule: dict[str, Any] = Field(
        default_factory=dict, description="How the ratio runs over the steps: curve, num_steps, final_ratio, points."
    )
    budget: dict[str, Any] = Field(
        default_factory=dict, description="auto: nats of forgetting to hold, least_ratio, most_ratio, every_steps, law."
    )
    injection_fixed: bool = Field(
        False,
        description="Promise that a constant ratio never changes while the run lasts: workers then skip steps "
        "that hold nothing for them, unasked. Off, so that operators can change the ratio.",
    )
    half_life_steps: float = Field(500.0, gt=0, description="After how many steps a report counts half.")
    rehearsal_weight: float = Field(1.0, gt=0, description="What a rehearsed row weighs in the loss.")
    rehearsal_loss: Literal["cross_entropy", "distill", "mixed"] = Field(
        "cross_entropy",
        description="distill: towards the base model's likeliest tokens, if the corpus stores them; mixed: half each.",
    )
    policy: PolicyName = Field("mix_cd", description="uniform or mix_cd.")
    sharpness: float = Field(1.0, description="mix_cd: exponent of the damage rate.")
    floor: float = Field(0.1, description="mix_cd: share of the draws that stays uniform.")
    signal: Signal = Field("token_flip", description="What counts as damage.")
    feedback: FeedbackMode = Field(
        "latest", description="latest: plans use the reports that have come; fenced: reproducible, exactly those due."
    )
    feedback_lag: int = Field(8, ge=1, description="fenced: by how many steps reports lag behind plans.")
    adopt_every_steps: int = Field(
        0,
        ge=0,
        description="Adopt the corpus's latest generation so many steps after the last one; 0: never.",
    )
    held_back: float = Field(
        0.25,
        description="Share of each stratum that its first epoch leaves out, so that forgetting can be estimated later.",
    )
    window_steps: Annotated[int, Field(ge=1)] | Auto = Field(
        "auto", description="Steps fetched in one request, one request ahead; auto: by rows, memory and freshness."
    )

    @model_validator(mode="before")
    @classmethod
    def _holds_no_token(cls, content: object) -> object:
        if isinstance(content, dict) and "token" in content:
            raise ValueError("a token has no place in a job's file; put it into the environment variable REPLAY_TOKEN")
        return content

    @model_validator(mode="after")
    def _can_be_held(self) -> "RehearsalConfig":
        """The service checks how much is rehearsed, too; here it is found before any worker starts."""
        names = ("injection_ratio", "injection_mode", "schedule", "budget", "injection_fixed")
        values = {name: getattr(self, name) for name in names}
        if wrong := list(unknown_keys(RunConfig, values, "rehearsal")):
            raise ValueError("; ".join(wrong))
        try:
            RunConfig.from_dict({"global_batch_size": 1, **values})
        except TypeError as error:  # a key that a schedule or a budget needs
            raise ValueError(f"in schedule or budget: {str(error).partition(' ')[2]}") from error
        return self

    @model_validator(mode="after")
    def _fits_fence(self) -> "RehearsalConfig":
        if self.feedback == "fenced" and self.adopt_every_steps:
            raise ValueError("adopt_every_steps does not go with fenced feedback; leave it 0")
        if self.feedback == "fenced" and self.window_steps != "auto" and self.window_steps > self.feedback_lag:
            raise ValueError(
                f"window_steps {self.window_steps} is more than feedback_lag {self.feedback_lag}: a window would wait "
                "for its own reports"
            )
        return self

    @field_validator("injection_ratio", mode="before")
    @classmethod
    def _decimal(cls, value: object) -> str:
        if value != AUTO:
            exact_ratio(str(value))
        return str(value)


class TrainConfig(Section):
    """One fine-tuning job."""

    model: str = Field(description="Model to tune: a local folder or a Hugging Face hub name.")
    output: Path = Field(description="Folder for metrics, checkpoints and the tuned model.")
    data: DataConfig
    rehearsal: RehearsalConfig | None = Field(None, description="Leave it out to train without rehearsal.")
    flow: FlowConfig | None = Field(None, description="Leave it out to let all samples count alike.")
    ldifs: LdifsConfig | None = Field(None, description="Leave it out to let features move freely.")
    lora: LoraConfig | None = Field(None, description="Leave it out to tune the whole model.")
    num_steps: int = Field(ge=1, description="Optimizer steps.")
    global_batch_size: int = Field(
        8, ge=1, description="Sequences in a step of the whole job; rehearsed ones are among them, unless added."
    )
    micro_batch_size: int = Field(
        0, ge=0, description="Rows that a worker takes through the model at once; 0: all of its share of a step."
    )
    chunked_head: bool = Field(
        False, description="Take the losses from the head a tile at a time: less memory, no logits of whole rows."
    )
    learning_rate: float = Field(3e-5, gt=0, description="Peak learning rate of AdamW.")
    weight_decay: float = Field(0.0, ge=0, description="Weight decay of AdamW.")
    schedule: Literal["constant", "linear", "cosine"] = Field("cosine", description="Decay after the warm-up.")
    warmup_steps: int = Field(0, ge=0, description="Steps of linear warm-up.")
    max_grad_norm: float = Field(1.0, gt=0, description="Gradients are clipped to this norm.")
    precision: Literal["corpus", "float32", "bf16"] = Field(
        "corpus", description="Arithmetic; `corpus` takes what the base losses were measured in."
    )
    seed: int = Field(0, ge=0, description="Order of the fine-tuning rows, dropout, and the run's draws.")
    num_workers: int = Field(1, ge=1, description="Ray Train workers; with min_workers, the most of them.")
    min_workers: int = Field(
        0, ge=0, description="Go on with as few workers as this, and with more as machines come; 0: always num_workers."
    )
    resize_every_s: float = Field(
        60.0, ge=0, description="Seconds between looks for machines that came; a change goes on from a checkpoint."
    )
    use_gpu: bool = Field(False, description="One GPU a worker.")
    evaluate_every: int = Field(0, ge=0, description="Steps between measurements on held-out text; 0: first and last.")
    checkpoint_every: int = Field(0, ge=0, description="Steps between checkpoints; 0: none.")
    max_failures: int = Field(0, ge=0, description="How often to go on from the last checkpoint after a failure.")
    trackers: tuple[str, ...] = Field((), description="Where metrics also go: tensorboard, wandb, mlflow.")
    profile: bool = Field(False, description="Measure where the time of a step goes, exactly; that costs some speed.")
    save_model: bool = Field(True, description="Save the tuned model to output/model.")

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
        if self.chunked_head and self.rehearsal is not None and self.rehearsal.rehearsal_loss != "cross_entropy":
            raise ValueError("distilled rehearsal needs whole logits; leave chunked_head out, or take cross_entropy")
        return self

    def run_settings(self) -> dict[str, Any]:
        """The settings of the run at the service."""
        assert self.rehearsal is not None
        names = {"injection_ratio", "injection_mode", "schedule", "budget", "injection_fixed"}
        names |= {"half_life_steps", "policy", "sharpness", "floor", "signal", "adopt_every_steps", "held_back"}
        shared = self.rehearsal.model_dump(include=names)
        feedback = {"mode": self.rehearsal.feedback, "lag": self.rehearsal.feedback_lag}
        return {**shared, "feedback": feedback, "global_batch_size": self.global_batch_size, "seed": self.seed}


def read_config(path: Path, overrides: dict[str, Any] | None = None) -> TrainConfig:
    """The configuration in a TOML file; `overrides` replace keys, a dotted one reaches into a section.

    Relative paths in the file count from the file's own folder.

    Raises:
        InvalidTraining: when the file is missing or is no TOML, or a key is unknown, missing or out of range.
    """
    try:
        content = tomllib.loads(path.read_text())
    except (OSError, tomllib.TOMLDecodeError) as error:
        raise InvalidTraining(f"configuration {path} cannot be read: {error}") from error
    for name, value in (overrides or {}).items():
        section, _, key = name.rpartition(".")
        (content.setdefault(section, {}) if section else content)[key] = value
    try:
        return _absolute(TrainConfig.model_validate(content), path.parent.absolute())
    except ValidationError as error:
        raise InvalidTraining(f"configuration {path}: " + "; ".join(map(_problem, error.errors()))) from error


def _problem(error: Mapping[str, Any]) -> str:
    place = [str(each) for each in error["loc"]]
    said = error["msg"]
    if error["type"] == "extra_forbidden":
        said = unknown_key(place[-1], keys_at(TrainConfig, place[:-1]))
    return f"{'.'.join(place) or 'the whole'}: {said}"


def _absolute(config: TrainConfig, folder: Path) -> TrainConfig:
    def resolve(source: str | None) -> str | None:
        return source if source is None or is_url(source) else str(folder / source)

    data = config.data
    paths = {name: resolve(getattr(data, name)) for name in ("target", "heldout_target", "heldout_pretraining")}
    model = folder / config.model if (folder / config.model).is_dir() else config.model
    return config.model_copy(
        update={"data": data.model_copy(update=paths), "output": folder / config.output, "model": str(model)}
    )
