"""Whether every node of a Ray cluster can read what an ingest reads there: the base model and the shards."""

from collections.abc import Sequence
from pathlib import Path

from replay_service.classification.factory import is_factory
from replay_service.corpus.ingest.settings import IngestSettings
from replay_service.corpus.shards.places import locate_within
from replay_service.corpus.shards.sources import Columns, Shard, check_readable, is_url, printable
from replay_service.errors import ReplayError
from replay_service.language.checkpoint import checkpoint_fingerprint
from replay_service.language.model import load_config
from replay_service.ray_cluster import check_nodes, is_spread


def check_nodes_see(settings: IngestSettings, checkpoint: str, shards: Sequence[Shard]) -> None:
    """Ask every node before the work; nothing is asked where tasks run on this machine alone.

    Raises:
        RayUnavailable: names the nodes that cannot read the model or a shard, and what it is.
    """
    if is_spread():
        check_nodes(problem_of_node, settings.model, checkpoint, list(shards), settings.columns)


def problem_of_node(model: str, checkpoint: str, shards: Sequence[Shard], columns: Columns) -> str:
    """What this node cannot read, and what to do about it; empty if it can read all.

    Every local shard is looked at, and of those behind URLs the first, since they share access and network.

    Args:
        checkpoint: the fingerprint of the model where the ingest was started; empty where it is not known.
    """
    try:
        if not is_factory(model):
            load_config(model)
    except ReplayError as error:
        return f"cannot read the base model: {error.detail}; put it at the same path on all nodes"
    if Path(model).is_dir() and checkpoint not in ("", checkpoint_fingerprint(model)):
        return f"has another model at {model}; put the same one at this path on all nodes"
    local = [each for each in shards if not is_url(each.url)]
    missing = next((each for each in local if not _is_there(each)), None)
    if missing is not None:
        return (
            f"does not have shard {printable(missing.url)} as it is where the ingest was started; mount the folder of "
            "the shards on all nodes, or read them from object storage"
        )
    try:
        for each in [each for each in shards if is_url(each.url)][:1]:
            check_readable(each, columns)
    except ReplayError as error:
        return f"cannot read the shards: {error.detail}"
    return ""


def _is_there(shard: Shard) -> bool:
    """Whether a file of the same size stands there; times differ between copies."""
    version = locate_within(shard.url, shard.allowed).version()
    return version is not None and version.partition("-")[0] == str(shard.num_bytes)
