"""Growth: staged rows become segments, and every segment a generation that can be rehearsed from at once.

The shards of an ingest have an order, and so have the rows of all of them. Segments are cut from this line one after
the other, as soon as the rows of the next one are staged. So which rows stand where does not depend on how many
workers scored them, on which was faster, or on how often an ingest was killed.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Final

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from replay_service.corpus.format.manifest import DomainSummary, Manifest, Segment, sync_folder, write_manifest
from replay_service.corpus.format.records import SampleRows
from replay_service.corpus.format.segment_file import write_segment
from replay_service.corpus.format.sketch import QuantileSketch
from replay_service.corpus.format.strata import assign_strata, grown
from replay_service.corpus.ingest.staging import SET_ASIDE, Packed, Piece, drop, read_packed, read_rows
from replay_service.errors import CorpusError
from replay_service.sampling.partition import extents_of
from replay_service.wire.samples import SAMPLE_FIELDS

GroupOf = Callable[[pa.Table], NDArray[np.str_]]
"""The group of each staged row."""

NO_LOSS: Final = "the base model gives no finite loss"


@dataclass(slots=True)
class GrowingCorpus:
    """A corpus that is being written.

    Attributes:
        folder: where it stands.
        staging: where its staged rows are.
        shards: the keys of all its shards, in their order; those that are in segments already come first.
        manifest: what it holds so far; generation 0 holds nothing, and is not written.
        rows_per_segment: rows of one segment.
        group_of: tells the group of staged rows.
        publish: is called with every manifest that was written.
    """

    folder: Path
    staging: Path
    shards: Sequence[str]
    manifest: Manifest
    rows_per_segment: int
    group_of: GroupOf
    publish: Callable[[Manifest], None] = lambda _: None

    def grow(self, ready: Callable[[str], int], is_all: bool = False) -> bool:
        """Write the next segments, if their rows are staged; `ready` tells how many rows of a shard are.

        With `is_all` every shard is staged, and what is left becomes the last segment. Returns whether a generation
        was written.
        """
        before = self.manifest.generation
        while self._grow_once(ready, is_all=False):
            pass
        if is_all:
            self._grow_once(ready, is_all=True)
        return self.manifest.generation > before

    def _grow_once(self, ready: Callable[[str], int], is_all: bool) -> bool:
        """Write one segment; False if there are not enough rows."""
        pieces, finished = self._next(ready)
        num_rows = sum(piece.stop - piece.first for piece in pieces)
        if num_rows < self.rows_per_segment and not is_all:
            return False
        manifest = self._counted(finished)
        if num_rows:
            manifest = self._with_segment(manifest, pieces, is_all)
        done = self.shards[self.manifest.num_shards : manifest.num_shards]
        for key in done:  # before the manifest counts them: an ingest that is killed between does it again
            self._keep_what_was_set_aside(key)
        if manifest != self.manifest and manifest.generation:
            write_manifest(self.folder, manifest)
            self.publish(manifest)
        self.manifest = manifest
        for key in done:
            drop(self.staging, key)
        return True

    def _next(self, ready: Callable[[str], int]) -> tuple[list[Piece], list[Packed]]:
        """The rows of the next segment, as far as they are staged, and the shards that end in them."""
        pieces: list[Piece] = []
        finished: list[Packed] = []
        first, missing = self.manifest.num_rows_of_next_shard, self.rows_per_segment
        for key in self.shards[self.manifest.num_shards :]:
            stop = min(ready(key), first + missing)
            if stop > first:
                pieces.append(Piece(key, first, stop))
                missing -= stop - first
            packed = read_packed(self.staging, key)
            if packed is None or stop < packed.num_rows:
                break
            finished.append(packed)
            first = 0
            if not missing:
                break
        return pieces, finished

    def _counted(self, finished: list[Packed]) -> Manifest:
        """The manifest with the documents of the finished shards."""
        set_aside = self.manifest.set_aside
        for packed in finished:
            set_aside = _with(set_aside, packed.set_aside)
        return replace(
            self.manifest,
            num_shards=self.manifest.num_shards + len(finished),
            num_rows_of_next_shard=self.manifest.num_rows_of_next_shard if not finished else 0,
            num_documents=self.manifest.num_documents + sum(packed.num_documents for packed in finished),
            set_aside=set_aside,
        )

    def _with_segment(self, manifest: Manifest, pieces: list[Piece], is_all: bool) -> Manifest:
        staged, num_lost = _finite(read_rows(self.staging, pieces))
        generation = manifest.generation + 1
        base_loss = staged["base_loss"].to_numpy()
        names, group = np.unique(self.group_of(staged), return_inverse=True)
        groups = grown(manifest.groups, base_loss, names.tolist(), group, manifest.num_quantiles, generation, is_all)
        place = {each.name: i for i, each in enumerate(groups)}
        index = np.array([place[str(name)] for name in names], dtype=np.int64)[group]
        edges = np.array([each.edges_nats for each in groups]).reshape(len(groups), -1)
        stratum = assign_strata(base_loss, index, edges)
        order = np.argsort(stratum, kind="stable")
        number = len(manifest.segments)
        file = f"segments/{number:08d}.arrow"
        (self.folder / "segments").mkdir(exist_ok=True)
        written = write_segment(self.folder / file, _rows(staged, stratum).take(order))
        sync_folder(self.folder / "segments")
        segment = Segment(
            file=file,
            num_rows=len(order),
            extents=[(each.stratum, each.first_row, each.num_rows) for each in extents_of(number, stratum[order])],
            **asdict(written),
            generation=generation,
        )
        return replace(
            manifest,
            generation=generation,
            set_aside=_with(manifest.set_aside, {NO_LOSS: num_lost} if num_lost else {}),
            num_rows_of_next_shard=self._place_after(manifest, pieces[-1]),
            domains=_domains(manifest.domains, staged),
            groups=groups,
            segments=[*manifest.segments, segment],
        )

    def _place_after(self, manifest: Manifest, last: Piece) -> int:
        """How many rows of the first unfinished shard are in segments."""
        unfinished = self.shards[manifest.num_shards : manifest.num_shards + 1]
        return last.stop if [last.shard_key] == list(unfinished) else 0

    def _keep_what_was_set_aside(self, key: str) -> None:
        path = self.staging / key / SET_ASIDE
        if path.exists():
            (self.folder / "set_aside").mkdir(exist_ok=True)
            path.replace(self.folder / "set_aside" / f"{key}.jsonl")


def _with(counts: dict[str, int], more: dict[str, int]) -> dict[str, int]:
    return counts | {reason: counts.get(reason, 0) + num for reason, num in more.items()}


def _finite(staged: pa.Table) -> tuple[pa.Table, int]:
    """The staged rows whose base loss is a number, and how many have another."""
    is_finite = np.isfinite(staged["base_loss"].to_numpy())
    if is_finite.all():
        return staged, 0
    if not is_finite.any():
        raise CorpusError(
            f"the base model gives no finite loss for any of {len(staged)} samples that stand together; look at what "
            "it gives for them, or score with --precision float32"
        )
    return staged.take(np.flatnonzero(is_finite)), int((~is_finite).sum())


def _rows(staged: pa.Table, stratum: NDArray[np.int64]) -> SampleRows:
    """Staged rows as samples in the given strata (int64 [n])."""
    (batch,) = (
        staged.select([name for name in SAMPLE_FIELDS if name in staged.column_names]).combine_chunks().to_batches()
    )
    return SampleRows.from_arrow(batch.append_column("stratum", pa.array(stratum.astype(np.int32))))


def _domains(domains: Sequence[DomainSummary], staged: pa.Table) -> list[DomainSummary]:
    """The domains, and what the staged rows add to them; new ones stand at the end, in name order."""
    known = {each.name: each for each in domains}
    domain = staged["domain"].to_numpy(zero_copy_only=False)
    base_loss, length = staged["base_loss"].to_numpy(), staged["length"].to_numpy()
    above = np.full(len(staged), np.nan)
    if "base_entropy" in staged.column_names:
        above = base_loss.astype(np.float64) - staged["base_entropy"].to_numpy()
    for name in np.unique(domain).tolist():
        here = domain == name
        known_above = above[here & np.isfinite(above)]
        sketch = QuantileSketch()
        sketch.add(base_loss[here])
        more = DomainSummary(
            name=name,
            num_samples=int(here.sum()),
            num_tokens=int(length[here].sum()),
            mean_base_loss_nats=float(base_loss[here].mean(dtype=np.float64)),
            base_losses=sketch.to_json(),
            num_entropies=len(known_above),
            loss_above_entropy_nats=float(known_above.mean()) if len(known_above) else 0.0,
        )
        known[name] = known[name].merged(more) if name in known else more
    return list(known.values())
