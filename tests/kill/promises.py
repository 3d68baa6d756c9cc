"""What must hold of a run, however often the service was killed."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow.parquet as pq

from replay_service.corpus.format.manifest import Manifest
from replay_service.corpus.reading.reader import CorpusStore
from replay_service.ledger.audit import export_parquet
from replay_service.ledger.database import open_database
from replay_service.ledger.journal import Journal
from replay_service.ledger.owners import Owners
from replay_service.sampling.injection import num_rehearsed, rank_positions, rehearsed_before
from replay_service.sampling.run_config import RunConfig
from tests.kill.ranks import Given, Rank, losses_of

_COLUMNS: Final = ("step", "sample_id", "stratum", "times_drawn", "probability", "policy_version")


@dataclass(frozen=True, slots=True)
class Exported:
    """An exported journal: what was planned and reported, one array element a row, in the journal's order."""

    planned: dict[str, np.ndarray]
    reported: dict[str, np.ndarray]


def read_export(path: Path) -> Exported:
    table = pq.read_table(path)
    kind = np.array(table["kind"].to_pylist())
    columns = {name: table[name].to_numpy(zero_copy_only=False) for name in _COLUMNS}

    def rows(wanted: str) -> dict[str, np.ndarray]:
        chosen = (kind == wanted) & ~np.isnan(columns["sample_id"].astype(float))
        return {name: column[chosen] for name, column in columns.items()}

    return Exported(rows("planned"), rows("reported"))


def check_plans(planned: dict[str, np.ndarray], ranks: list[Rank], served: list[Given]) -> None:
    """Whoever asked for a step, whenever, got the plan that stands in the journal, or a rank's slice of it."""
    plans = _plans_of(planned)
    for rank in ranks:
        for each in rank.given:
            positions = rank_positions(each.num_rehearsed, each.step, rank.rank, rank.world_size)
            slice_ = tuple(plans[each.step][i] for i in positions)
            assert each.sample_ids == slice_, f"rank {rank.rank} got another plan of step {each.step}"
    for each in served:
        assert each.sample_ids == plans.get(each.step, ()), f"the plan of step {each.step} changed"


def check_ratio(given: list[Given], config: RunConfig) -> None:
    """Of every prefix of steps, exactly floor(p * B * steps) sequences are rehearsal."""
    for each in given:
        assert each.rehearsed_before == rehearsed_before(each.step, config.ratio, config.global_batch_size)
        assert each.num_rehearsed == num_rehearsed(each.step, config.ratio, config.global_batch_size)


def check_epochs(planned: dict[str, np.ndarray], sizes: np.ndarray) -> int:
    """In each epoch of a stratum every sample stands once, and no epoch begins before the last has ended.

    Returns the most epochs that a stratum went through.
    """
    for stratum, size in enumerate(sizes):
        mine = planned["stratum"] == stratum
        # A plan is shuffled, so where an epoch ends within a step its order does not tell which draw was first.
        order = np.lexsort((planned["times_drawn"][mine], planned["step"][mine]))
        ids, times_drawn = planned["sample_id"][mine][order], planned["times_drawn"][mine][order]
        np.testing.assert_array_equal(times_drawn, 1 + np.arange(len(ids)) // size)
        for first in range(0, len(ids), size):
            epoch = ids[first : first + size]
            assert len(np.unique(epoch)) == len(epoch), f"a sample repeats in an epoch of stratum {stratum}"
    return int(planned["times_drawn"].max())


def check_reports(reported: dict[str, np.ndarray], ranks: list[Rank], stats: dict[str, Any]) -> None:
    """Every acknowledged row stands in the journal, none stands twice, and the statistics count them all."""
    pairs = list(zip(reported["step"].astype(int).tolist(), reported["sample_id"].astype(int).tolist(), strict=True))
    standing = set(pairs)
    assert len(standing) == len(pairs), "a report counts twice"
    for rank in ranks:
        lost = rank.acknowledged - standing
        assert not lost, f"{len(lost)} acknowledged rows of rank {rank.rank} are missing, such as {min(lost)}"
    assert stats["num_reported"] == len(pairs)


def check_log(path: Path) -> None:
    """No request was answered with 500, whoever got the answer."""
    errors = [line for line in path.read_text(errors="replace").splitlines() if "unexpected error" in line]
    assert not errors, f"{len(errors)} requests were answered with 500, such as: {errors[0]}"


def _plans_of(planned: dict[str, np.ndarray]) -> dict[int, tuple[int, ...]]:
    """The sample ids of each step, in the order in which they stand in the journal."""
    steps, first = np.unique(planned["step"].astype(int), return_index=True)
    parts = np.split(planned["sample_id"].astype(int), first[1:])
    return {int(step): tuple(part.tolist()) for step, part in zip(steps, parts, strict=True)}


def stratum_sizes(manifest: Manifest) -> np.ndarray:
    strata = np.array([(stratum, num) for each in manifest.segments for stratum, _, num in each.extents])
    return np.bincount(strata[:, 0], weights=strata[:, 1]).astype(int)


def undisturbed(folder: Path, config: RunConfig, num_steps: int, seed: int) -> Exported:
    """The journal of the same job when nothing is killed: one rank asks for one step after the other, and reports it.

    It is played in this process on the corpora in `folder`, into a journal of its own.
    """
    corpora = CorpusStore(folder / "corpora")
    journal = Journal(open_database(f"sqlite:///{folder / 'undisturbed.sqlite'}", "relaxed"))
    try:
        owners = Owners(journal, corpora.get)
        owners.create("undisturbed", "wiki", config, "2026-01-01T00:00:00Z")
        owner = owners.get("undisturbed")
        for step in range(num_steps):
            (plan,) = owner.window(step, 1, 1).plans
            owner.report(losses_of(seed, step, 0, plan.rows["sample_id"].tolist()))
        export_parquet(journal, "undisturbed", folder / "undisturbed.parquet")
    finally:
        journal.close()
    return read_export(folder / "undisturbed.parquet")


def check_undisturbed(planned: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    """The plans are those of an execution that nothing disturbed, with the same probabilities and policy versions."""
    for name, column in expected.items():
        np.testing.assert_array_equal(planned[name], column, f"the plans differ in {name}")
