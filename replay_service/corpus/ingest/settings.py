"""What to make a corpus of."""

import hashlib
import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from replay_service.classification.factory import is_factory
from replay_service.corpus.shards.documents import Columns
from replay_service.corpus.shards.places import AllowedPlaces
from replay_service.errors import CorpusError
from replay_service.language.packing import Bos
from replay_service.language.precision import Precision
from replay_service.names import NAME_RULE, is_name
from replay_service.wire.samples import Kind

MOST_TOPK = 64


@dataclass(frozen=True, slots=True)
class IngestSettings:
    """What to make a corpus of.

    Attributes:
        source: a shard, a folder of shards or a glob, here or behind a URL; it may hold secrets.
        folder: the folder of corpora; the corpus becomes a subfolder.
        name: the corpus's name.
        model: the base model, a local folder or a hub name.
        seq_len: tokens a row.
        columns: where in a row of a shard its document stands. A column of groups partitions the corpus by its values.
        num_quantiles: strata of a group, by base loss.
        num_clusters: partition the corpus by so many clusters of what the base model makes of a row; 0: by domain, or
            by the column of groups.
        precision: `auto` takes bfloat16 where this machine is faster in it.
        batch_size: rows the base model scores at once.
        num_scorers: actors that hold the base model, each on its share of the CPUs or of a GPU.
        gpus_per_scorer: how much of a GPU each takes where there are any.
        topk: how many of the base model's likeliest tokens to keep for each position, for distilled rehearsal.
        rows_per_segment: rows of one segment file. Each finished segment is a generation.
        bos: whether each document begins with the tokenizer's bos token, and each row that goes on with one. `auto`: as
            in the corpus, and in a new one if the tokenizer itself puts it before a text.
        kind: `classification` for samples with a label, which `columns` name; then `model` may be a factory
            (`replay_service.classification.model`), and `auto` precision is float32, in which a loop of one's own runs.
        allowed: where shards may come from; None: from anywhere.
    """

    source: str = field(repr=False)
    folder: Path
    name: str
    model: str
    seq_len: int = 512
    columns: Columns = field(default_factory=Columns)
    num_quantiles: int = 8
    num_clusters: int = 0
    precision: Precision | Literal["auto"] = "auto"
    batch_size: int = 8
    num_scorers: int = 1
    gpus_per_scorer: float = 1.0
    topk: int = 0
    rows_per_segment: int = 65_536
    kind: Kind = "language"
    allowed: AllowedPlaces | None = field(default=None, repr=False)
    bos: Bos = "auto"

    def __post_init__(self) -> None:
        if not is_name(self.name):
            raise CorpusError(f"{self.name!r} cannot name a corpus: a name is {NAME_RULE}")
        for name, least in (
            ("seq_len", 2),
            ("num_quantiles", 1),
            ("num_clusters", 0),
            ("batch_size", 1),
            ("num_scorers", 1),
            ("topk", 0),
            ("rows_per_segment", 1),
        ):
            if getattr(self, name) < least:
                raise CorpusError(f"{name} must be at least {least}, not {getattr(self, name)}")
        if self.topk > MOST_TOPK:
            raise CorpusError(f"topk must be at most {MOST_TOPK}, not {self.topk}")
        if not 0 < self.gpus_per_scorer <= 8:
            raise CorpusError(f"gpus_per_scorer must be above 0 and at most 8, not {self.gpus_per_scorer}")
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
    """An ingest for a process of its own; with `poll_s` it looks for new shards every so many seconds."""

    settings: IngestSettings
    poll_s: float | None = None

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
