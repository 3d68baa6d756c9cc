"""Rows whose losses are measured again and again: what the estimate of forgetting is compared with."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray

from replay_service.corpus.reading.reader import Corpus
from replay_service.corpus.shards.sources import Columns
from replay_service.language.model import autocast
from replay_service.language.model_parts import LanguageLosses
from replay_service.language.packing import PackedRows
from replay_service.language.precision import Precision
from replay_service.language.tokenizer import ends_of
from replay_trainer.batches.target import concatenated, packed_by_domain

BATCH: Final = 64
"""Rows of one forward pass."""


@dataclass(frozen=True, slots=True)
class Rows:
    """Rows of known domains, sampled at random within each.

    Attributes:
        domains: their names.
        domain: int64 [n], an index into `domains`.
        packed: n rows.
        share: float64 [num_domains], what each domain is of the whole; adds up to one.
    """

    domains: tuple[str, ...]
    domain: NDArray[np.int64]
    packed: PackedRows
    share: NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Mean:
    """A mean over rows, and its standard error as that of a random sample, nats per token."""

    nats: float
    standard_error: float


def rows_of_corpus(folder: Path, num: int, seed: int) -> Rows:
    """At most `num` full rows of each domain of a corpus, each as likely as the others."""
    corpus, random = Corpus(folder), np.random.default_rng(seed)
    ids = [np.sort(random.permutation(own)[:num]) for own in _ids_by_domain(corpus)]
    rows = corpus.rows(np.concatenate(ids))
    assert rows.input_ids is not None
    domain = np.repeat(np.arange(len(ids)), [len(each) for each in ids])
    packed = PackedRows(rows.input_ids.copy(), rows.length.copy())
    return Rows(corpus.partition.groups, domain, packed, np.array([*shares_of_domains(folder).values()]))


def shares_of_domains(folder: Path) -> dict[str, float]:
    """What each domain is of a corpus's rows; adds up to one."""
    corpus = Corpus(folder)
    sizes = [len(each) for each in _ids_by_domain(corpus)]
    return {name: size / sum(sizes) for name, size in zip(corpus.partition.groups, sizes, strict=True)}


def _ids_by_domain(corpus: Corpus) -> list[NDArray[np.int64]]:
    partition = corpus.partition
    ids: list[list[NDArray[np.int64]]] = [[] for _ in partition.groups]
    for each in partition.extents:
        ids[each.stratum // partition.num_quantiles].append(
            (each.segment << 32) + each.first_row + np.arange(each.num_rows)
        )
    return [np.concatenate(some) for some in ids]


def rows_of_text(folder: Path, tokenizer: Any, seq_len: int, num: int, seed: int, shares: Mapping[str, float]) -> Rows:
    """At most `num` rows of each domain of some shards; `shares` says what each domain is of the whole, by name."""
    packed = packed_by_domain(folder, Columns("text", None, "domain"), tokenizer, seq_len, ends_of(tokenizer))
    random, some = np.random.default_rng(seed), list[PackedRows]()
    for rows in packed.values():
        usable = np.flatnonzero(rows.length > 1)
        chosen = np.sort(random.permutation(usable)[:num])
        some.append(PackedRows(rows.input_ids[chosen], rows.length[chosen]))
    domain = np.repeat(np.arange(len(some)), [len(each) for each in some])
    return Rows(tuple(packed), domain, concatenated(some), np.array([shares[name] for name in packed]))


@torch.no_grad()
def losses(model: Any, rows: PackedRows, precision: Precision) -> NDArray[np.float64]:
    """The mean loss of each row, float64 [n], nats per token."""
    measure, device = LanguageLosses(model).eval(), next(model.parameters()).device
    parts = list[NDArray[np.float64]]()
    for some in _batches(len(rows)):
        ids, length = (torch.from_numpy(each[some].astype(np.int64)) for each in (rows.input_ids, rows.length))
        with autocast(precision, device):
            parts.append(measure(ids, length).mean_nats().double().numpy())
    return np.concatenate(parts)


def _batches(num: int) -> Iterator[slice]:
    for first in range(0, num, BATCH):
        yield slice(first, first + BATCH)


def means(rows: Rows, values: NDArray[np.float64]) -> tuple[Mean, dict[str, Mean]]:
    """Of the whole, each domain weighing its share, and of each domain; from a value of each row, float64 [n]."""
    of_domain = {}
    for i, name in enumerate(rows.domains):
        own = values[rows.domain == i]
        of_domain[name] = Mean(float(own.mean()), float(own.std(ddof=1) / np.sqrt(len(own))))
    nats = np.array([each.nats for each in of_domain.values()])
    error = np.array([each.standard_error for each in of_domain.values()])
    whole = Mean(float(rows.share @ nats), float(np.sqrt(rows.share**2 @ error**2)))
    return whole, of_domain
