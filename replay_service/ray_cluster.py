"""The nodes of the Ray cluster that was joined: whether they have room, what each of them sees, why work waits."""

import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from replay_service.errors import RayUnavailable
from replay_service.ray_session import answer_within

_ROOM_WITHIN_S: Final = 20.0
"""CPUs of a job that has just ended are free again only after a moment."""
_ANSWER_WITHIN_S: Final = 5.0
_NODES_WITHIN_S: Final = 300.0
"""The first task on a node loads libraries, from a shared disk perhaps."""


@dataclass(frozen=True, slots=True)
class Node:
    """A node of the cluster: Ray's id of it, its address, and its name."""

    node_id: str
    address: str
    name: str

    def __str__(self) -> str:
        return f"node {self.address} ({self.name})"


def live_nodes() -> list[Node]:
    """The nodes that are alive."""
    return [node for node, _ in _nodes()]


def worker_nodes() -> list[Node]:
    """The nodes that run tasks: those that are alive and have CPUs."""
    return [node for node, resources in _nodes() if resources.get("CPU", 0) > 0]


def this_node() -> Node:
    """The node that this process runs on."""
    import ray

    node_id = ray.get_runtime_context().get_node_id()
    return next(each for each in live_nodes() if each.node_id == node_id)


def _nodes() -> list[tuple[Node, dict[str, float]]]:
    """The nodes that are alive, and what each has."""
    import ray

    return [
        (Node(each["NodeID"], each["NodeManagerAddress"], each["NodeManagerHostname"]), each["Resources"])
        for each in ray.nodes()
        if each["Alive"]
    ]


def is_spread() -> bool:
    """Whether tasks run on any node but the one of this process."""
    return any(each != this_node() for each in worker_nodes())


def check_nodes(problem: Callable[..., str], *arguments: object) -> None:
    """Ask every node what keeps it from the work.

    Args:
        problem: runs on each node; gives a sentence without its subject, such as "cannot read /data/a.parquet", or an
            empty text.

    Raises:
        RayUnavailable: names each node that has a problem, and the problem.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    nodes, task = worker_nodes(), ray.remote(num_cpus=0, max_retries=0)(problem)
    given = [ray.put(each) for each in arguments]
    asked = [
        task.options(scheduling_strategy=NodeAffinitySchedulingStrategy(each.node_id, soft=False)).remote(*given)
        for each in nodes
    ]
    ray.wait(asked, num_returns=len(asked), timeout=_NODES_WITHIN_S)
    problems = [f"{node} {found}" for node, each in zip(nodes, asked, strict=True) if (found := _answer(each))]
    if problems:
        raise RayUnavailable("; ".join(problems))


def check_shared(folder: Path) -> None:
    """Find out whether every node can write in one and the same folder; nothing is asked where tasks run here alone.

    Raises:
        RayUnavailable: names the nodes that cannot.
    """
    if not is_spread():
        return
    new = [each for each in (folder, *folder.parents) if not each.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    probe = folder / f".probe-{uuid.uuid4().hex}"
    probe.touch()
    try:
        check_nodes(_problem_with_folder_of, str(probe))
    except RayUnavailable:
        probe.unlink()
        for each in new:
            each.rmdir()
        raise
    probe.unlink()


def _problem_with_folder_of(probe: str) -> str:
    path = Path(probe)
    if not path.exists():
        return f"does not share the folder {path.parent}: mount it on all nodes, or choose one that is mounted there"
    mine = path.with_name(f"{path.name}-{uuid.uuid4().hex}")
    try:
        mine.touch()
        mine.unlink()
    except OSError as error:
        return f"cannot write in the folder {path.parent}: {error.strerror}"
    return ""


def _answer(asked: Any) -> str:
    """What a node has answered, or why it could not be asked."""
    import ray
    from ray.exceptions import GetTimeoutError, RayError

    try:
        found: str = ray.get(asked, timeout=0)
        return found
    except GetTimeoutError:
        return f"did not answer within {_NODES_WITHIN_S:.0f} s"
    except (RayError, ImportError) as error:
        lines = str(error).strip().splitlines()
        return f"cannot run this version of replay-service: {lines[-1] if lines else type(error).__name__}"


def check_room(bundles: Sequence[Mapping[str, float]], what: str, advice: str) -> None:
    """Find out whether the cluster has room for actors that all must run at a time, each on one node.

    Args:
        bundles: what each actor needs, such as {"CPU": 1}.
        what: they are for, as "this ingest".
        advice: how to need less.

    Raises:
        RayUnavailable: says how much is needed and how much is free.
    """
    import ray
    from ray.util import placement_group, remove_placement_group

    needed = {name: sum(each.get(name, 0) for each in bundles) for name in ("CPU", "GPU")}
    free, total = ray.available_resources(), ray.cluster_resources()
    if all(total.get(name, 0) >= amount for name, amount in needed.items()):
        group = placement_group([dict(each) for each in bundles])
        has_room = group.wait(_ROOM_WITHIN_S)
        remove_placement_group(group)
        if has_room:
            return
    said = " and ".join(
        f"{amount:g} {name}s at a time, of which Ray has {total.get(name, 0):g}, and {free.get(name, 0):g} free"
        for name, amount in needed.items()
        if amount
    )
    raise RayUnavailable(f"{what} needs {said}; {advice}, wait for other jobs, or add nodes to the cluster")


def why_waiting() -> str:
    """Why nothing moves, in a few words for a progress line."""
    return answer_within(_ANSWER_WITHIN_S, _reason) or "Ray does not answer"


def _reason() -> str:
    import ray

    nodes, free, total = ray.nodes(), ray.available_resources(), ray.cluster_resources()
    num_lost = sum(not each["Alive"] for each in nodes)
    if free.get("CPU", 0) < 1:
        return f"{free.get('CPU', 0):g} of {total.get('CPU', 0):g} CPUs free"
    if num_lost:
        return f"{num_lost} of {len(nodes)} nodes lost"
    return "base model at work"
