"""Corpora for tests: written by the project's own code, without a model."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

import numpy as np
from numpy.typing import ArrayLike, NDArray

from replay_service.corpus.format.manifest import DomainSummary, Manifest, Segment, write_manifest
from replay_service.corpus.format.records import SampleRows
from replay_service.corpus.format.segment_file import write_segment
from replay_service.corpus.format.sketch import QuantileSketch
from replay_service.corpus.format.strata import Group, assign_strata
from replay_service.language.packing import Ends, Ids, PackedRows, id_dtype, pack
from replay_service.sampling.partition import extents_of

SEPARATOR: Final = 0

Documents = Mapping[str, Sequence[Ids]]
"""Token ids of the documents of each domain, without separators."""


@dataclass(frozen=True, slots=True)
class MadeUpCorpus:
    """Rows of some domains, and what a base model would have made of them.

    Attributes:
        domains: their names.
        domain: int64 [n], an index into `domains`.
        packed: n rows.
        base_loss: float32 [n], nats per predicted token.
        is_right: bool [n, seq_len]: whether the base model's argmax predicted token t.
    """

    domains: tuple[str, ...]
    domain: NDArray[np.int64]
    packed: PackedRows
    base_loss: NDArray[np.float32]
    is_right: NDArray[np.bool_]

    @classmethod
    def random(
        cls, domains: Sequence[str], rows_per_domain: int, seq_len: int, vocab_size: int, seed: int
    ) -> "MadeUpCorpus":
        """Full rows of random tokens, drawn from the seed."""
        rng = np.random.default_rng(seed)
        shape = (rows_per_domain * len(domains), seq_len)
        base_loss = rng.gamma(4.0, 1.0, len(domains) * rows_per_domain).astype(np.float32)
        is_right = rng.random(shape) < 0.5
        input_ids = rng.integers(1, vocab_size, shape).astype(id_dtype(vocab_size))
        packed = PackedRows(input_ids, np.full(shape[0], seq_len, dtype=np.int32))
        return cls(tuple(domains), np.repeat(np.arange(len(domains)), rows_per_domain), packed, base_loss, is_right)

    @classmethod
    def of_documents(
        cls, documents: Documents, seq_len: int, vocab_size: int, base_losses: ArrayLike | None, seed: int
    ) -> "MadeUpCorpus":
        """Documents packed into rows, each domain on its own; a document of seq_len - 1 tokens fills one row.

        Raises:
            ValueError: when there is no row, a token id is out of range, or there are not as many base losses as rows.
        """
        parts = [pack(each, seq_len, Ends(SEPARATOR), np.dtype(np.int64)) for each in documents.values()]
        ids = np.concatenate([part.input_ids for part in parts]) if parts else np.empty((0, seq_len), np.int64)
        if not len(ids) or ids.min() < 0 or ids.max() >= vocab_size:
            raise ValueError(f"documents must hold tokens, with ids from 0 to {vocab_size - 1}")
        rng = np.random.default_rng(seed)
        loss = rng.gamma(4.0, 1.0, len(ids)) if base_losses is None else np.asarray(base_losses)
        if loss.shape != (len(ids),):
            raise ValueError(f"the documents make {len(ids)} rows of {seq_len} tokens; base_losses must hold as many")
        packed = PackedRows(ids.astype(id_dtype(vocab_size)), np.concatenate([part.length for part in parts]))
        domain = np.repeat(np.arange(len(parts)), [len(part) for part in parts])
        return cls(tuple(documents), domain, packed, loss.astype(np.float32), rng.random(ids.shape) < 0.5)

    def write(
        self,
        folder: Path,
        *,
        num_quantiles: int = 2,
        vocab_size: int = 300,
        rows_per_segment: int = 30,
        tokenizer_fingerprint: str = "",
        topk: int = 0,
    ) -> Manifest:
        """Write the corpus down as its first generation, rows in the order of their strata.

        With `topk`, the base model is said to have expected the token that came with probability 1/2, the one of the
        next id with 1/4, and so on.
        """
        edges = inner_edges(self.base_loss, self.domain, len(self.domains), num_quantiles)
        rows = sample_rows(
            self.packed,
            self.base_loss,
            self.is_right,
            assign_strata(self.base_loss, self.domain, edges),
            self._topk(topk, vocab_size),
        )
        nothing = Manifest.of_nothing(
            name=folder.name,
            model="none",
            tokenizer_fingerprint=tokenizer_fingerprint,
            vocab_size=vocab_size,
            separator_id=SEPARATOR,
            seq_len=self.packed.input_ids.shape[1],
            precision="float32",
            num_quantiles=num_quantiles,
            partition_by="domain",
            topk=topk,
            recipe="none",
        )
        summaries = [self._summary_of(i) for i in range(len(self.domains))]
        return write_first_generation(folder, nothing, rows, summaries, edges, rows_per_segment)

    def _topk(self, topk: int, vocab_size: int) -> dict[str, NDArray[Any]]:
        if not topk:
            return {}
        target = self.packed.input_ids[:, 1:, None].astype(np.int64)
        ids = ((target + np.arange(topk)) % vocab_size).astype(id_dtype(vocab_size))
        logprobs = np.broadcast_to(-np.log(2.0) * np.arange(1, topk + 1), ids.shape).astype(np.float16)
        return {"topk_ids": ids, "topk_logprobs": logprobs}

    def _summary_of(self, domain: int) -> DomainSummary:
        is_of = self.domain == domain
        return summary_of(self.domains[domain], self.base_loss[is_of], int(self.packed.length[is_of].sum()))


def inner_edges(
    base_loss: NDArray[np.float32], group: NDArray[np.int64], num_groups: int, num_quantiles: int
) -> NDArray[np.float64]:
    """The edges between the quantiles of each group's base losses, float64 [num_groups, num_quantiles - 1]."""
    shares = np.arange(1, num_quantiles) / num_quantiles
    return np.stack([np.quantile(base_loss[group == i], shares) for i in range(num_groups)])


def write_first_generation(
    folder: Path,
    nothing: Manifest,
    rows: SampleRows,
    domains: list[DomainSummary],
    edges: NDArray[np.float64],
    rows_per_segment: int,
) -> Manifest:
    """Write samples, sorted by their strata, as the first generation of a corpus whose groups are its domains."""
    (folder / "segments").mkdir(parents=True)
    segments = [
        write_rows(folder, number, rows.take(np.arange(first, min(first + rows_per_segment, len(rows)))), 1)
        for number, first in enumerate(range(0, len(rows), rows_per_segment))
    ]
    manifest = replace(
        nothing,
        generation=1,
        num_shards=len(domains),
        num_documents=len(rows),
        domains=domains,
        groups=[Group(each.name, 1, edges[i].tolist()) for i, each in enumerate(domains)],
        segments=segments,
    )
    write_manifest(folder, manifest)
    return manifest


def sample_rows(
    packed: PackedRows,
    base_loss: NDArray[np.float32],
    is_right: NDArray[np.bool_],
    stratum: NDArray[np.int64],
    topk: Mapping[str, NDArray[Any]] = MappingProxyType({}),
) -> SampleRows:
    """Rows in their strata, sorted by them; no base model predicts a row's first token, or what is padding."""
    place = np.arange(packed.input_ids.shape[1])
    is_predicted = (place > 0) & (place < packed.length[:, None])
    rows = SampleRows.of_columns(
        input_ids=packed.input_ids,
        length=packed.length,
        base_loss=base_loss,
        base_correct=np.packbits(is_right & is_predicted, axis=1, bitorder="little"),
        stratum=stratum.astype(np.int32),
        **topk,
    )
    return rows.take(np.argsort(stratum, kind="stable"))


def write_rows(corpus: Path, number: int, rows: SampleRows, generation: int) -> Segment:
    """Write rows, sorted by their strata, as a segment of the corpus."""
    file = f"segments/{number:08d}.arrow"
    written = write_segment(corpus / file, rows)
    extents = [(e.stratum, e.first_row, e.num_rows) for e in extents_of(number, rows.stratum.astype(np.int64))]
    return Segment(file, len(rows), extents, **asdict(written), generation=generation)


def summary_of(domain: str, base_loss: NDArray[np.float32], num_tokens: int) -> DomainSummary:
    sketch = QuantileSketch()
    sketch.add(base_loss)
    return DomainSummary(domain, len(base_loss), num_tokens, float(base_loss.mean()), sketch.to_json())
