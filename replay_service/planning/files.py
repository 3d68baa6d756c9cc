"""Files of runs: Parquet, CSV or JSON lines, one row a run; or the results of a study."""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pyarrow import csv, json

from replay_service.errors import UnusableRuns
from replay_service.planning.runs import OPTIONAL, REQUIRED, Float64Array, Runs

_READERS: Final[dict[str, Callable[[Path], Any]]] = {
    ".parquet": pq.read_table,
    ".csv": csv.read_csv,
    ".jsonl": json.read_json,
}
_OF_ALL: Final = ("target",)
"""Columns in which the runs of one fit must not differ, where they are there."""
_OF_A_SIZE: Final = ("learning_rate",)
"""Likewise the runs of one model size: larger models are tuned at lower learning rates."""
_OF_STUDY: Final = ("arm", "target", "seed", "domain", "half", "uniform_weight")


def read_runs(paths: Iterable[Path], conditions: Sequence[str] = ()) -> Runs:
    """Read runs from files, the rows of one after those of the other.

    Args:
        paths: files whose ending says their format. The results of a study are recognized by their columns; of them
            the arms count that rehearse uniformly with cross-entropy, at any weight.
        conditions: `column=value`; runs with another value of the column are left out.

    Raises:
        FileNotFoundError: when a file is not there.
        UnusableRuns: names the file or the rows that cannot be used, and what to do about them.
    """
    try:
        table = pa.concat_tables([_read(path) for path in paths], promote_options="permissive")
    except pa.ArrowException as error:
        raise UnusableRuns(f"the files do not fit together: {error}; give a column the same type in all") from error
    for condition in conditions:
        table = _where(table, condition)
    if not table.num_rows:
        raise UnusableRuns("no run is left; name files with runs, and conditions that some of them meet")
    _check_alike(table)
    names = [name for name in (*REQUIRED, *OPTIONAL) if name in table.column_names]
    return Runs.of({name: _numbers(table, name) for name in names})


def _read(path: Path) -> Any:
    reader = _READERS.get(path.suffix)
    if reader is None:
        raise UnusableRuns(f"{path} has no ending of a known format; name a file that ends in {', '.join(_READERS)}")
    if not path.exists():
        raise FileNotFoundError(f"there is no file {path}")
    try:
        table = reader(path)
    except (pa.ArrowException, OSError) as error:
        raise UnusableRuns(f"{path} cannot be read as {path.suffix[1:]}: {error}; write it again") from error
    return _runs_of_study(table) if set(_OF_STUDY) <= set(table.column_names) else table


def _where(table: Any, condition: str) -> Any:
    name, equals, value = condition.partition("=")
    if not equals or name not in table.column_names:
        raise UnusableRuns(
            f"the condition {condition!r} is not column=value with a column of the runs; they have "
            f"{', '.join(table.column_names)}"
        )
    column = table[name]
    try:
        wanted = pa.scalar(value).cast(column.type)
    except pa.ArrowException as error:
        raise UnusableRuns(f"{value!r} is no value of the column {name}, which holds {column.type}") from error
    return table.filter(pc.equal(column, wanted))


def _check_alike(table: Any) -> None:
    for name in _OF_ALL:
        _check_one_value(table, name, "the runs have", "a law is fitted for one")
    sizes = table["num_parameters"].unique().to_pylist() if "num_parameters" in table.column_names else []
    for size in sizes:
        of_size = table.filter(pc.equal(table["num_parameters"], size))
        for name in _OF_A_SIZE:
            _check_one_value(
                of_size, name, f"the runs of {size:,.0f} parameters have", "a law is fitted for one of each model size"
            )


def _check_one_value(table: Any, name: str, have: str, why: str) -> None:
    values = table[name].unique().to_pylist() if name in table.column_names else []
    if len(values) > 1:
        raise UnusableRuns(
            f"{have} several values of {name}: {', '.join(map(str, values))}; {why}, so choose it: "
            f"--where {name}={values[0]}"
        )


def _numbers(table: Any, name: str) -> Float64Array:
    try:
        column = table[name].cast(pa.float64()).combine_chunks()
    except pa.ArrowException as error:
        raise UnusableRuns(f"the column {name} holds {table[name].type} and no numbers; write numbers") from error
    return np.asarray(column.to_numpy(zero_copy_only=False), dtype=np.float64)


def _runs_of_study(table: Any) -> Any:
    """One row a run, from the rows of a study for each domain and half.

    Losses are means over domains, as in the study's report. Arms of other methods, and arms that failed, are left out.
    """
    table = table.filter(pc.and_(pc.is_valid(table["uniform_weight"]), pc.is_null(table["failure"])))
    keys = ["arm", "target", "seed"]
    alike = ["uniform_weight", "learning_rate", "num_parameters", "num_rows", "num_rehearsed_rows"]
    alike += ["num_trained_tokens", "num_rehearsed_tokens"]
    sums = table.group_by([*keys, "domain", *alike]).aggregate([(name, "sum") for name in _SUMMED])
    before = pc.divide(sums["base_nats_sum"], sums["num_tokens_sum"])
    after = pc.divide(sums["nats_sum"], sums["num_tokens_sum"])
    is_domain, nothing = pc.is_valid(sums["domain"]), pa.scalar(None, pa.float64())
    columns = {"before": (before, nothing), "after": (after, nothing), "target_loss": (nothing, after)}
    for name, (of_domain, of_target) in columns.items():
        sums = sums.append_column(name, pc.if_else(is_domain, of_domain, of_target))
    # Means leave out what is null.
    means = sums.group_by([*keys, *alike]).aggregate([(name, "mean") for name in columns])
    means = means.filter(pc.is_valid(means["before_mean"]))
    return _renamed(means.sort_by([(key, "ascending") for key in keys]))


_SUMMED: Final = ("base_nats", "nats", "num_tokens")


def _renamed(means: Any) -> Any:
    ratio = pc.divide(means["num_rehearsed_rows"].cast(pa.float64()), means["num_rows"])
    columns = {
        "arm": means["arm"],
        "target": means["target"],
        "seed": means["seed"],
        "learning_rate": means["learning_rate"],
        "num_parameters": means["num_parameters"],
        "target_tokens": pc.subtract(means["num_trained_tokens"], means["num_rehearsed_tokens"]),
        "injection_ratio": ratio,
        "rehearsal_weight": means["uniform_weight"],
        "base_loss": means["before_mean"],
        "pretraining_loss": means["after_mean"],
        "target_loss": means["target_loss_mean"],
    }
    return pa.table(columns)
