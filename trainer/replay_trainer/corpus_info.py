"""The description of a corpus that a trainer needs, and the sentence for a corpus that is not ready."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class CorpusInfo:
    """The description of a corpus that a trainer needs, as GET /v1/corpora/{corpus} gives it."""

    corpus: str
    tokenizer_fingerprint: str
    separator_id: int
    seq_len: int
    precision: str
    num_samples: int
    topk: int
    """Number of the base model's likeliest tokens that are stored of each prediction."""
    vocab_size: int
    """All token ids are less than this."""
    kind: str = "language"
    classes: dict[str, Any] | None = None
    """Of a classification corpus: `num_classes`, `model_fingerprint`, `input_shape` and `input_type`."""
    bos_id: int | None = None
    """The token that begins a document; None where documents begin without one."""
    num_strata: int = 0
    """0 where an earlier service does not say."""
    domains: Sequence[Mapping[str, Any]] = ()
    """As GET /v1/corpora/{corpus} gives them."""
    checkpoint_fingerprint: str = ""
    """Equal for language models with equal weights; empty where it is not known."""

    @property
    def share_unexpected(self) -> float | None:
        """The share of the base losses that the base model did not expect; None where it was not measured.

        It is (loss - entropy) / loss, and about 0 on text that the base model was trained on.
        """
        known = [each for each in self.domains if each.get("loss_above_entropy_nats") is not None]
        if not known:
            return None
        above, whole = (
            sum(each[name] * each["num_tokens"] for each in known)
            for name in ("loss_above_entropy_nats", "mean_base_loss_nats")
        )
        return float(above / whole) if whole else None


def in_the_making(corpus: str, ingest: Mapping[str, Any]) -> str:
    """A sentence that says that a corpus cannot be rehearsed from yet, and how far its ingest is.

    Args:
        ingest: as GET /v1/corpora/{corpus} gives it.
    """
    left = "" if ingest.get("seconds_left") is None else f", about {ingest['seconds_left']:.0f} s left"
    advice = "train when it has its first generation" if ingest["state"] == "running" else "start the ingest again"
    problem = f": {ingest['problem']}" if ingest.get("problem") else ""
    return (
        f"corpus {corpus!r} has no generation yet; its ingest is {ingest['state']}{problem} "
        f"({ingest['num_rows']:,} rows scored, {ingest['shards_done']} of {ingest['num_shards']} shards, "
        f"{ingest['share_done']:.0%} of their bytes{left}); {advice}"
    )
