"""Bringing the service up on a Ray cluster, changing it node by node, and taking it down."""

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Final

from replay_service.errors import RayUnavailable
from replay_service.ray_cluster import Node, live_nodes, this_node
from replay_service.ray_service.supervisor import NodeStatus, ServeCommand, Supervisor

NAMESPACE: Final = "replay-service"
_PREFIX: Final = "supervisor-"
_ANSWER_WITHIN_S: Final = 30.0
_STOP_WITHIN_S: Final = 3600.0
"""As long as open requests may take at most; the supervisor itself gives up earlier."""
_LOOK_EVERY_S: Final = 0.5


@dataclass(frozen=True, slots=True)
class Change:
    """What was done on a node: `started`, `restarted` or `unchanged`."""

    node: str
    done: str


def bring_up(
    command: ServeCommand, on_every_node: bool, ready_within_s: float, on_change: Callable[[Change], None]
) -> None:
    """Run the command on this node or on every one: one after the other, each until it is ready. Ray must run.

    A node that runs the same command with the same configuration file and version already is left as it is, and waited
    for likewise. So called again it goes on where it was.

    Raises:
        RayUnavailable: names the node that did not become ready, and why; nodes after it are as they were.
    """
    _forget_lost_nodes()
    for node in live_nodes() if on_every_node else [this_node()]:
        supervisor = _supervisor_of(node)
        if supervisor is not None and _is_same(supervisor, command):
            _wait_until_ready(supervisor, node, ready_within_s)
            on_change(Change(str(node), "unchanged"))
            continue
        if supervisor is not None:
            _end(supervisor)
        _wait_until_ready(_start(command, node), node, ready_within_s)
        on_change(Change(str(node), "started" if supervisor is None else "restarted"))


def statuses() -> list[NodeStatus]:
    """What runs, node by node; a supervisor that does not answer is told of as not ready."""
    import ray

    supervisors = list(_supervisors())
    asked = [each.status.remote() for _, each in supervisors]
    if asked:
        ray.wait(asked, num_returns=len(asked), timeout=_ANSWER_WITHIN_S)
    return [_status(name, answer) for (name, _), answer in zip(supervisors, asked, strict=True)]


def take_down() -> int:
    """Stop the service on all nodes, and wait until open requests are finished; gives on how many it ran."""
    import ray
    from ray.exceptions import RayError

    there = {_PREFIX + node.node_id for node in live_nodes()}
    supervisors = list(_supervisors())
    for stopping in [each.stop.remote() for name, each in supervisors if name in there]:
        with contextlib.suppress(RayError):  # it has ended by itself
            ray.get(stopping, timeout=_STOP_WITHIN_S)
    for _, each in supervisors:
        ray.kill(each, no_restart=True)
    return len(supervisors)


def _forget_lost_nodes() -> None:
    """Ray would go on trying to start a supervisor on a node that is gone."""
    import ray

    there = {_PREFIX + node.node_id for node in live_nodes()}
    for name, each in _supervisors():
        if name not in there:
            ray.kill(each, no_restart=True)


def _supervisors() -> Iterator[tuple[str, Any]]:
    """The names and handles of all supervisors of the cluster."""
    import ray
    from ray.util import list_named_actors

    for each in list_named_actors(all_namespaces=True):
        if each["namespace"] == NAMESPACE and each["name"].startswith(_PREFIX):
            yield each["name"], ray.get_actor(each["name"], namespace=NAMESPACE)


def _supervisor_of(node: Node) -> Any | None:
    return dict(_supervisors()).get(_PREFIX + node.node_id)


def _start(command: ServeCommand, node: Node) -> Any:
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    actor = ray.remote(Supervisor).options(
        name=_PREFIX + node.node_id,
        namespace=NAMESPACE,
        lifetime="detached",
        max_restarts=-1,
        num_cpus=0,
        max_concurrency=4,
        scheduling_strategy=NodeAffinitySchedulingStrategy(node.node_id, soft=False),
    )
    return actor.remote(command, str(node))


def _is_same(supervisor: Any, command: ServeCommand) -> bool:
    import ray
    from ray.exceptions import RayError

    try:
        return bool(ray.get(supervisor.is_same.remote(command), timeout=_ANSWER_WITHIN_S))
    except RayError:
        return False


def _end(supervisor: Any) -> None:
    import ray
    from ray.exceptions import RayError

    with contextlib.suppress(RayError):  # it has ended by itself
        ray.get(supervisor.stop.remote(), timeout=_STOP_WITHIN_S)
    ray.kill(supervisor, no_restart=True)


def _wait_until_ready(supervisor: Any, node: Node, ready_within_s: float) -> None:
    """Raises RayUnavailable, with the reason, when the service on a node is not ready in time."""
    import ray
    from ray.exceptions import RayError

    ends_at = time.monotonic() + ready_within_s
    problem = "it has not started"
    while time.monotonic() < ends_at:
        try:
            status: NodeStatus = ray.get(supervisor.status.remote(), timeout=max(1.0, ends_at - time.monotonic()))
        except RayError as error:
            problem = str(error).strip().splitlines()[-1]
            if "Error" in problem:
                break
        else:
            if status.is_ready:
                return
            problem = status.problem
        time.sleep(_LOOK_EVERY_S)
    raise RayUnavailable(
        f"the service on {node} was not ready within {ready_within_s:.0f} s: {problem}; nodes after it were left as "
        "they were: mend it, and run the same command again"
    )


def _status(name: str, answer: Any) -> NodeStatus:
    import ray
    from ray.exceptions import RayError

    try:
        status: NodeStatus = ray.get(answer, timeout=0)
        return status
    except RayError as error:
        known = {each.node_id: str(each) for each in live_nodes()}
        node_id = name.removeprefix(_PREFIX)
        problem = "the supervisor does not answer" if node_id in known else "the node is lost"
        return NodeStatus(known.get(node_id, node_id), "", None, False, f"{problem}: {type(error).__name__}", "")
