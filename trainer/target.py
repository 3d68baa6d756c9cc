"""The fine-tuning text: packed rows in an order that is a pure function of the place in it."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from replay_service.corpus.sources import Columns, Document, check_readable, find_shards, printable, read_documents
from replay_service.errors import ReplayError
from replay_service.language.packing import PackedRows, id_dtype, pack
from replay_service.language.tokenizer import ids_of, separator_id
from trainer.errors import InvalidTraining


def packed_by_domain(source: str | Path, columns: Columns, tokenizer: Any, seq_len: int) -> dict[str, PackedRows]:
    """The text, or the ready-made token ids, of shards as packed rows, for each domain in name order.

    Raises:
        InvalidTraining: when a shard cannot be read, there is no text, or ids are not of this tokenizer.
    """
    try:
        contents = _contents_by_domain(source, columns)
        encoded = {domain: ids_of(tokenizer, documents) for domain, documents in sorted(contents.items())}
    except ReplayError as error:
        raise InvalidTraining(error.detail) from error
    separator, dtype = separator_id(tokenizer), id_dtype(len(tokenizer))
    packed = {domain: pack(documents, seq_len, separator, dtype) for domain, documents in encoded.items()}
    if not any(len(rows) for rows in packed.values()):
        raise InvalidTraining(f"{printable(source)} holds no text to train on")
    return packed


def _contents_by_domain(source: str | Path, columns: Columns) -> dict[str, list[str | NDArray[np.int64]]]:
    contents: dict[str, list[str | NDArray[np.int64]]] = {}
    for shard in find_shards(source):
        check_readable(shard, columns)
        for document in read_documents(shard, columns):
            if isinstance(document, Document):
                contents.setdefault(document.domain, []).append(document.content)
    return contents


def concatenated(parts: list[PackedRows]) -> PackedRows:
    return PackedRows(
        np.concatenate([part.input_ids for part in parts]), np.concatenate([part.length for part in parts])
    )


@dataclass(slots=True)
class TargetRows:
    """An endless stream of fine-tuning rows, shuffled anew in every epoch.

    Place i of the stream is row `permutation(seed, i // n)[i % n]`, so that a resumed job goes on without any state.
    """

    rows: PackedRows
    seed: int
    _order: dict[int, NDArray[np.int64]] = field(default_factory=dict, init=False, repr=False)

    def take(self, places: range) -> PackedRows:
        """The rows at the given places of the stream."""
        index = np.array([self._row_at(place) for place in places], dtype=np.int64)
        return PackedRows(self.rows.input_ids[index], self.rows.length[index])

    def _row_at(self, place: int) -> int:
        epoch, within = divmod(place, len(self.rows))
        if epoch not in self._order:
            self._order = {epoch: np.random.default_rng((self.seed, epoch)).permutation(len(self.rows))}
        return int(self._order[epoch][within])
