"""The shapes of requests and answers about corpora."""

from dataclasses import fields
from pathlib import Path
from typing import Literal

from pydantic import Field

from replay_service.corpus.ingest.model_files import check_model
from replay_service.corpus.ingest.settings import NO_OPTIONS, OPTION_DEFAULTS, IngestJob, IngestSettings, column_option
from replay_service.corpus.shards.documents import Columns
from replay_service.gateway.models import WIRE_TYPES, Model, Name
from replay_service.setting_models import fields_of


class DomainInfo(Model):
    name: str
    num_samples: int
    num_tokens: int
    mean_base_loss_nats: float
    loss_above_entropy_nats: float | None = Field(
        description="Base loss minus the entropy of the base model's predictions, mean over a sample of rows: the loss "
        "that it did not expect. About 0 on text that it was trained on. None where it was not measured."
    )


class GroupInfo(Model):
    """A group of the partition: a domain, a cluster, or a value of a column."""

    name: str
    generation: int = Field(description="The generation of the corpus that brought it.")
    quantile_edges_nats: list[float] = Field(description="The inner edges between its strata; they never move.")
    stratum_sizes: list[int] = Field(description="Samples of each of its strata.")


class DamagedSegment(Model):
    """A segment file of which parts cannot be read; samples in them are served with length 0."""

    file: str
    problem: str = Field(description="The first thing that was found wrong.")
    num_blocks: int = Field(description="Blocks of 64 KiB that cannot be read, of those that were looked at.")


class IngestInfo(Model):
    """How the latest ingest of a corpus goes."""

    state: Literal["running", "finished", "stopped", "failed", "killed"] = Field(
        description="killed: the process is gone without a word; start it again, and it goes on."
    )
    started_at: str = Field(description="ISO 8601, UTC.")
    updated_at: str = Field(description="ISO 8601, UTC.")
    shards_done: int
    num_shards: int
    share_done: float = Field(description="Share of the shards' bytes that is done, in [0, 1].")
    num_rows: int = Field(description="Rows that it has scored.")
    num_tokens: int = Field(description="Tokens in them.")
    rows_per_s: float
    tokens_per_s: float
    seconds_left: float | None = Field(description="If it goes on as it went.")
    waiting: str | None = Field(description="How long nothing has moved, and why; null while it moves.")
    num_set_aside: int = Field(description="Rows of shards that could not be used.")
    num_passed_over: int = Field(description="Files of the source that are no shards.")
    passed_over: list[str] = Field(description="Names of the first of them.")
    generation: int = Field(description="The latest generation; 0 while there is none.")
    problem: str | None = Field(description="The reason why it failed.")


class CorpusInTheMaking(Model):
    """A corpus that has no generation yet."""

    corpus: str
    generation: Literal[0] = 0
    ingest: IngestInfo


class ClassesInfo(Model):
    """The samples of a classification corpus."""

    num_classes: int = Field(description="Labels are 0 to num_classes - 1.")
    model_fingerprint: str = Field(description="Equal for base models with equal weights.")
    input_shape: list[int] = Field(description="Of the tensor that is classified; empty for text.")
    input_type: str = Field(description="Of its numbers, as numpy names it; empty for text.")


class CorpusInfo(Model):
    """A corpus that can be rehearsed from."""

    corpus: str
    generation: int
    kind: Literal["language", "classification"]
    classes: ClassesInfo | None = Field(description="None in a language corpus.")
    model: str = Field(description="The base model that scored it.")
    checkpoint_fingerprint: str = Field(
        description="Equal for language models with equal weights; empty where it is not known."
    )
    tokenizer_fingerprint: str = Field(description="Equal for tokenizers that give equal ids.")
    vocab_size: int
    separator_id: int = Field(description="The token that ends a document.")
    bos_id: int | None = Field(description="The token that begins a document; None: nothing does.")
    seq_len: int
    precision: str = Field(description="The arithmetic that it was scored in.")
    num_samples: int
    num_tokens: int
    num_strata: int
    partition_by: str = Field(description="The kind of group: `domain`, `cluster`, or `column NAME`.")
    topk: int = Field(description="How many of the base model's likeliest tokens stand with each position.")
    num_shards: int = Field(description="Shards that stand in it whole.")
    num_documents: int
    set_aside: dict[str, int] = Field(description="Rows of shards that could not be used, by reason.")
    ingest: IngestInfo | None = Field(description="The latest ingest, if this service can see it.")
    domains: list[DomainInfo]
    groups: list[GroupInfo]
    damaged_segments: list[DamagedSegment] = Field(
        description="Damage that this service has found in segments that it read. Its log says what to do."
    )


class CorpusList(Model):
    corpora: list[CorpusInfo]


@fields_of(IngestJob, types=WIRE_TYPES, leave_out={"settings"}, names={"poll_s": "follow_every_s"})
@fields_of(IngestSettings, types=WIRE_TYPES, leave_out=NO_OPTIONS)
@fields_of(
    Columns,
    types=WIRE_TYPES,
    names={each.name: column_option(each.name) for each in fields(Columns)},
    defaults=OPTION_DEFAULTS,
)
class IngestCreate(Model):
    """An ingest: makes a corpus, or adds shards to it.

    The setting `ingest_from` says which sources are allowed. The model's weights must be safetensors.
    """

    corpus: Name

    def job(self, corpora: Path) -> IngestJob:
        """The ingest into a folder of corpora.

        Raises:
            CorpusError: when the values do not go together, or the model would run code in the service.
        """
        options = self.model_dump()
        check_model(options["model"])
        return IngestJob(IngestSettings.from_options(corpora, self.corpus, options), options["follow_every_s"])
