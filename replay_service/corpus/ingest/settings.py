"""What to make a corpus of."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Final, Literal

from replay_service.classification.factory import is_factory
from replay_service.corpus.shards.documents import Columns
from replay_service.corpus.shards.places import AllowedPlaces
from replay_service.errors import CorpusError
from replay_service.language.packing import MIN_LENGTH, Bos
from replay_service.language.precision import Precision
from replay_service.names import NAME_RULE, is_name
from replay_service.sampling.bounds import check_bounds
from replay_service.wire.samples import Kind

NO_OPTIONS: Final = frozenset({"folder", "name", "columns", "allowed", "corpora_url"})
"""Fields of the settings that are no options of their own."""
OPTION_DEFAULTS: Final = {"label": "label"}


def column_option(name: str) -> str:
    """The option that names a column."""
    return f"{name}_column"


@dataclass(frozen=True, slots=True)
class IngestSettings:
    """What to make a corpus of.

    The metadata of a field hold its description and bounds, of which the command's options and the fields of a request
    are made.

    Raises:
        CorpusError: names what is out of range, or does not go together.
    """

    source: str = field(
        repr=False,  # it may hold secrets
        metadata={
            "description": "Parquet, JSON lines, Arrow, text, tar (WebDataset) or a dataset saved by Hugging Face: a "
            "file, a folder or a glob ('web/**/*.parquet'), local or at s3://, gs://, hf:// or any fsspec URL.",
            "min_length": 1,
            "max_length": 4096,
        },
    )
    folder: Path
    name: str
    model: str = field(
        metadata={
            "description": "The base model: a local folder or a Hugging Face hub name. For classification the command "
            "also takes package.module:callable.",
            "min_length": 1,
            "max_length": 4096,
        }
    )
    seq_len: int = field(default=512, metadata={"description": "Tokens in a row.", "ge": MIN_LENGTH, "le": 1 << 20})
    columns: Columns = field(default_factory=Columns)
    num_quantiles: int = field(
        default=8, metadata={"description": "Strata in each group, by base loss.", "ge": 1, "le": 1024}
    )
    num_clusters: int = field(
        default=0,
        metadata={
            "description": "Partition the corpus by so many clusters of row embeddings instead of by domain. 0: none.",
            "ge": 0,
            "le": 4096,
        },
    )
    precision: Precision | Literal["auto"] = field(
        default="auto",
        metadata={
            "description": "Arithmetic of the scoring. `auto`: bfloat16 where this machine is faster in it, and "
            "float32 for classification."
        },
    )
    batch_size: int = field(
        default=8, metadata={"description": "Rows that the base model scores at once.", "ge": 1, "le": 4096}
    )
    num_scorers: int = field(
        default=1,
        metadata={
            "description": "Actors that hold the base model, each on its share of the CPUs or of a GPU.",
            "ge": 1,
            "le": 4096,
        },
    )
    gpus_per_scorer: float = field(
        default=1.0,
        metadata={"description": "Share of a GPU for each scorer, where there are GPUs.", "gt": 0, "le": 8},
    )
    topk: int = field(
        default=0,
        metadata={
            "description": "How many of the base model's likeliest tokens to keep for each position, for distilled "
            "rehearsal.",
            "ge": 0,
            "le": 64,
        },
    )
    rows_per_segment: int = field(
        default=65_536,
        metadata={
            "description": "Rows of one segment. Each finished segment can be rehearsed from at once.",
            "ge": 1,
            "le": 1 << 30,
        },
    )
    kind: Kind = field(
        default="language",
        metadata={
            "description": "`language`: every token is predicted. `classification`: a text or a tensor has a label."
        },
    )
    allowed: AllowedPlaces | None = field(default=None, repr=False)
    """Where shards may come from; None: from anywhere."""
    bos: Bos = field(
        default="auto",
        metadata={
            "description": "Begin each document, and each row that continues one, with the tokenizer's bos token. "
            "`auto`: as in the corpus, and in a new one if the tokenizer puts it before a text."
        },
    )

    corpora_url: str | None = field(default=None, repr=False)
    """Where the corpus is published, generation by generation; None: it stays in `folder`."""

    def __post_init__(self) -> None:
        if not is_name(self.name):
            raise CorpusError(f"{self.name!r} cannot name a corpus: a name is {NAME_RULE}")
        try:
            check_bounds(self)
        except ValueError as error:
            raise CorpusError(str(error)) from None
        if self.gpus_per_scorer > 1 and self.gpus_per_scorer % 1:
            raise CorpusError(f"gpus_per_scorer must be whole when it is above 1, not {self.gpus_per_scorer}")
        if self.num_clusters and self.columns.group is not None:
            raise CorpusError("clusters and a column of groups do not go together; leave one of them out")
        self._check_kind()

    def _check_kind(self) -> None:
        if self.kind == "language":
            if self.columns.inputs is not None or self.columns.label is not None:
                raise CorpusError("inputs and labels are to be classified; say kind classification, or leave them out")
            return
        if self.columns.label is None:
            raise CorpusError("samples to classify need a column of labels; name it")
        if self.bos != "auto":
            raise CorpusError("texts to classify get the special tokens of the tokenizer; leave bos out")
        if self.topk or self.num_clusters:
            raise CorpusError(
                "of samples to classify neither the likeliest tokens nor clusters are kept; leave topk and clusters "
                "out, and name a column of groups instead, such as that of the labels"
            )
        if self.columns.inputs is None and self.columns.tokens is None and is_factory(self.model):
            raise CorpusError(
                f"the factory {self.model!r} brings no tokenizer for the column {self.columns.text!r}; name a column "
                "of tensors or of ready-made token ids"
            )

    @classmethod
    def from_options(cls, folder: Path, name: str, options: Mapping[str, Any]) -> "IngestSettings":
        """From options without nesting, in which the column `text` is named by `text_column`."""
        columns = {each.name: options[column_option(each.name)] for each in fields(Columns)}
        if options["kind"] == "language":
            columns["label"] = None  # the option has a default, which is for the other kind
        rest = {each.name: options[each.name] for each in fields(cls) if each.name in options}
        return cls(folder=folder, name=name, columns=Columns(**columns), **rest)

    @property
    def corpus_folder(self) -> Path:
        return self.folder / self.name

    @property
    def partition_by(self) -> str:
        """What groups are: `domain`, `cluster` or `column <name>`."""
        if self.num_clusters:
            return "cluster"
        return "domain" if self.columns.group is None else f"column {self.columns.group}"

    def parts(self) -> dict[str, Any]:
        """The settings that rows and strata depend on."""
        columns = asdict(self.columns)
        if self.kind == "language":  # as it was before there were other kinds: corpora of then go on growing
            del columns["inputs"], columns["label"]
        return {
            "model": self.model,
            "seq_len": self.seq_len,
            "columns": columns,
            "num_quantiles": self.num_quantiles,
            "num_clusters": self.num_clusters,
            "precision": self.precision,
            "topk": self.topk,
            "rows_per_segment": self.rows_per_segment,
        }

    def recipe(self, fingerprint: str) -> str:
        """Equal for settings whose rows and strata may stand in one corpus; `fingerprint` tells base models apart."""
        return digest(json.dumps({**self.parts(), "tokenizer": fingerprint}, sort_keys=True))


@dataclass(frozen=True, slots=True)
class IngestJob:
    """An ingest for a process of its own."""

    settings: IngestSettings
    poll_s: float | None = field(
        default=None,
        metadata={
            "description": "Seconds between two looks for new shards, of an ingest that goes on looking for them.",
            "ge": 0.1,
            "le": 1e6,
        },
    )

    def to_json(self) -> str:
        return json.dumps({**asdict(self.settings), "folder": str(self.settings.folder), "poll_s": self.poll_s})

    @classmethod
    def from_json(cls, text: str) -> "IngestJob":
        values = json.loads(text)
        poll_s = values.pop("poll_s")
        values |= {"folder": Path(values["folder"]), "columns": Columns(**values["columns"])}
        if values["allowed"] is not None:
            values["allowed"] = AllowedPlaces(tuple(values["allowed"]["places"]))
        return cls(IngestSettings(**values), poll_s)


def digest(*words: str) -> str:
    return hashlib.sha256(json.dumps(words).encode()).hexdigest()[:16]
