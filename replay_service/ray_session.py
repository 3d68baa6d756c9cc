"""Ray, started so that a person can watch: no log noise, no usage statistics, no spinning threads."""

import contextlib
import json
import logging
import os
import platform
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from queue import Empty, SimpleQueue
from typing import Any, Final, TypeVar
from urllib.parse import urlsplit

from replay_service.errors import RayUnavailable, ReplayError

Ours = TypeVar("Ours", bound=Exception)
Result = TypeVar("Result")

QUIET_ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
    "OMP_WAIT_POLICY": "PASSIVE",
    "TOKENIZERS_PARALLELISM": "false",
    "TRANSFORMERS_VERBOSITY": "error",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
}
"""OMP_WAIT_POLICY: waiting torch threads otherwise spin against each other when cores are few."""


_SINGLE_MACHINE: Final = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}
"""Ray listens on all interfaces, but for systems on which it takes this machine for all there is: then on loopback."""

_CONNECT_TIMEOUT_S: Final = 5.0
"""How long a cluster may take to accept a connection, and to say which Ray it runs."""

_MOST_OF_A_REASON: Final = 400
"""Characters of an error of Ray's, some of which have many lines."""

_RAY_CLIENT: Final = "ray://"


def start_ray() -> None:
    """Join a Ray cluster, or start one on this machine; nothing if Ray runs already.

    The cluster is the one that RAY_ADDRESS names, or else the one that `ray start` has made of this machine.
    RAY_ADDRESS=local starts one of its own in any case.

    One of its own listens on loopback alone. It is told of at least four CPUs: a pipeline of two stages beside two
    workers would otherwise wait for a third one for ever.

    Raises:
        RayUnavailable: when the cluster does not answer, runs other versions, or none can be started.
    """
    _set_environment(QUIET_ENVIRONMENT)
    address = os.environ.get("RAY_ADDRESS", "")
    if not address:
        address = _cluster_of_this_machine()
    is_own = address in ("", "local")
    if is_own:
        _set_environment(_SINGLE_MACHINE)
    import ray
    from ray.data import DataContext

    if not ray.is_initialized():
        with _failures_named(address), _own_signals():
            if is_own:
                _listen_on_loopback()
            else:
                _check_answers(address)
            ray.init(
                address="local" if is_own else address,
                include_dashboard=False if is_own else None,
                log_to_driver=False,
                logging_level=logging.ERROR,
                runtime_env={"env_vars": QUIET_ENVIRONMENT},
                **({"num_cpus": max(4, os.cpu_count() or 1)} if is_own else {}),
            )
    context = DataContext.get_current()
    context.enable_progress_bars = False
    for name in ("ray", "ray.data", "ray.train"):
        logging.getLogger(name).setLevel(logging.ERROR)


def join_ray(address: str) -> None:
    """Join the cluster at an address; `auto`: the one that RAY_ADDRESS names, or of which this machine is a node.

    Raises:
        RayUnavailable: when there is none, or it does not answer.
    """
    found = address if address != "auto" else os.environ.get("RAY_ADDRESS") or _cluster_of_this_machine()
    if found in ("", "local"):
        raise RayUnavailable(
            "no Ray cluster runs on this machine; start one with `ray start --head`, or name one with --address"
        )
    os.environ["RAY_ADDRESS"] = found
    start_ray()


def _set_environment(variables: dict[str, str]) -> None:
    os.environ.update({name: value for name, value in variables.items() if name not in os.environ})


def _listen_on_loopback() -> None:
    """Ray reads the environment when it is imported, which may have been before it was set."""
    from ray._private import ray_constants

    ray_constants.ENABLE_RAY_CLUSTER = os.environ[next(iter(_SINGLE_MACHINE))] not in ("0", "false", "False")


def _cluster_of_this_machine() -> str:
    """The address of the cluster that `ray start` has made this machine a node of; empty when none answers."""
    from ray._private.utils import read_ray_address

    address: str = read_ray_address() or ""
    try:
        if address:
            _connect(address)
    except OSError:  # `ray stop` was not run: what has ended has left its address
        return ""
    return address


def _check_answers(address: str) -> None:
    """Ray tries for minutes to reach a cluster that is gone, and says in several lines which versions differ.

    Raises:
        OSError: when nothing answers there.
        ValueError: when another version of Ray or Python runs there.
    """
    if not _connect(address) or address.startswith(_RAY_CLIENT):
        return
    found = answer_within(_CONNECT_TIMEOUT_S, lambda: _versions_at(address))
    if found is None:
        raise OSError(f"nothing at {address} answered as Ray does within {_CONNECT_TIMEOUT_S:.0f} s")
    if found != (ours := _own_versions()):
        raise ValueError(f"the cluster runs {found}, and this command {ours}")


def _connect(address: str) -> bool:
    """Whether the address names a host and a port; raises OSError when nothing listens there."""
    parts = urlsplit(address if "://" in address else f"//{address}")
    if parts.hostname is None or parts.port is None:
        return False
    socket.create_connection((parts.hostname, parts.port), _CONNECT_TIMEOUT_S).close()
    return True


def _versions_at(address: str) -> str:
    import ray._raylet

    about = json.loads(ray._raylet.GcsClient(address=address).internal_kv_get(b"CLUSTER_METADATA", b"cluster"))
    return _versions(about["ray_version"], about["python_version"])


def _own_versions() -> str:
    import ray

    return _versions(ray.__version__, platform.python_version())


def _versions(of_ray: str, of_python: str) -> str:
    """What must be equal: Ray's version, and Python's without its last part."""
    return f"Ray {of_ray} on Python {'.'.join(of_python.split('.')[:2])}"


def answer_within(seconds: float, ask: Callable[[], Result]) -> Result | None:
    """What `ask` gives, or None when it fails or takes longer: Ray waits for minutes for a cluster that is gone."""
    answers: SimpleQueue[Result] = SimpleQueue()

    def put() -> None:
        with contextlib.suppress(Exception):
            answers.put(ask())

    threading.Thread(target=put, daemon=True).start()
    try:
        return answers.get(timeout=seconds)
    except Empty:
        return None


@contextmanager
def _failures_named(address: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # a node that takes too long to start is a plain one
        reason = " ".join(str(error).split())
        reason = reason if len(reason) <= _MOST_OF_A_REASON else f"{reason[:_MOST_OF_A_REASON]}..."
        if "AF_UNIX path length" in reason:
            advice = "set TMPDIR or RAY_TMPDIR to a folder with a short path, such as /tmp"
        elif address not in ("", "local"):
            advice = f"see to the cluster at {address}, or set RAY_ADDRESS=local to use this machine alone"
        else:
            advice = "see to the memory, the disk and the limits of this machine"
        raise RayUnavailable(f"Ray cannot be used: {reason}; {advice}") from error


@contextmanager
def _own_signals() -> Iterator[None]:
    """Put back the program's own handler of SIGTERM: Ray replaces it by one that ends the program at once."""
    usual: Any = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        if callable(usual) and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, usual)


def in_ray(num_gpus: float, function: Callable[..., Result], *arguments: object) -> Result:
    """The result of a function in a process of Ray; an error of ours is raised as it was there."""
    import ray
    from ray.exceptions import RayError

    try:
        result: Result = ray.get(ray.remote(num_gpus=num_gpus, max_retries=0)(function).remote(*arguments))
    except RayError as error:
        raise error_within(error, ReplayError) or error from error
    return result


def error_within(error: BaseException, kind: type[Ours]) -> Ours | None:
    """The error of this kind that a task, an actor or a worker raised, out of those that Ray wraps around it."""
    from ray.exceptions import RayError

    # An error that Ray gives for one of a task is of the class of both, and shows a trace.
    if isinstance(error, kind) and not isinstance(error, RayError):
        return error
    inner = [getattr(error, "cause", None), error.__cause__, *getattr(error, "worker_failures", {}).values()]
    found = (error_within(each, kind) for each in inner if isinstance(each, BaseException))
    return next((each for each in found if each is not None), None)
