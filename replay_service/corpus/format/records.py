"""Rows of samples in memory, one fixed-width record each, as they lie in a segment file."""

from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from replay_service.wire.columns import numbers_of
from replay_service.wire.samples import SAMPLE_FIELDS, SampleColumns

Int64Array = NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class SampleRows(SampleColumns):
    """Samples of a corpus, a record each: all fields of a sample lie beside one another, as in a segment file.

    The columns are views of the records, so they are not contiguous.

    Attributes:
        records: structured array [n].
    """

    records: NDArray[np.void]

    @classmethod
    def of_columns(cls, **columns: NDArray[Any] | None) -> Self:
        """Copies of arrays with one row a sample, by the names of SampleColumns; None is no array."""
        present = {name: each for name in SAMPLE_FIELDS if (each := columns.get(name)) is not None}
        records = np.zeros(len(present["length"]), record_type(present))
        for name, column in present.items():
            records[name] = column
        return cls.of_records(records)

    @classmethod
    def of_records(cls, records: NDArray[np.void]) -> Self:
        """The samples of a structured array with the fields that `record_type` gives, without a copy."""
        return cls.of({name: records[name] for name in records.dtype.names or ()}, records=records)

    @classmethod
    def from_arrow(cls, batch: pa.RecordBatch) -> Self:
        """Copies of a batch's columns, one a field: fixed-size lists, fixed-size binaries, and numbers."""
        names = [name for name in SAMPLE_FIELDS if name in batch.schema.names]
        return cls.of_columns(**{name: numbers_of(batch.column(name)) for name in names})

    def take(self, index: Int64Array) -> Self:
        """Some rows, in the order of their indices, int64 [m]."""
        return self.of_records(self.records.take(index))


def record_type(columns: dict[str, NDArray[Any]]) -> np.dtype[np.void]:
    """The record that holds a row of each column.

    Each field is aligned to the size of its numbers. Wide numbers come first, so that at most the record's end is
    padding.
    """
    by_width = sorted(columns.items(), key=lambda column: -column[1].dtype.itemsize)
    return np.dtype([(name, column.dtype, column.shape[1:]) for name, column in by_width], align=True)
