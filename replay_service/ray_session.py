"""Ray, started so that a person can watch: no log noise, no usage statistics, no spinning threads."""

import logging
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
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


def start_ray() -> None:
    """Join the cluster that RAY_ADDRESS names, or start one on this machine; nothing if Ray runs already.

    One on this machine listens on loopback alone. It is told of at least four CPUs: a pipeline of two stages beside two
    workers would otherwise wait for a third one for ever.

    Raises:
        RayUnavailable: when the cluster does not answer, or none can be started.
    """
    address = os.environ.get("RAY_ADDRESS", "")
    is_local = address in ("", "local")
    _set_environment(QUIET_ENVIRONMENT)
    if is_local:
        _set_environment(_SINGLE_MACHINE)
    import ray
    from ray.data import DataContext

    if not ray.is_initialized():
        with _failures_named(address), _own_signals():
            if is_local:
                _listen_on_loopback()
            else:
                _check_answers(address)
            ray.init(
                include_dashboard=False,
                log_to_driver=False,
                logging_level=logging.ERROR,
                runtime_env={"env_vars": QUIET_ENVIRONMENT},
                **({"num_cpus": max(4, os.cpu_count() or 1)} if is_local else {}),
            )
    context = DataContext.get_current()
    context.enable_progress_bars = False
    for name in ("ray", "ray.data", "ray.train"):
        logging.getLogger(name).setLevel(logging.ERROR)


def _set_environment(variables: dict[str, str]) -> None:
    os.environ.update({name: value for name, value in variables.items() if name not in os.environ})


def _listen_on_loopback() -> None:
    """Ray reads the environment when it is imported, which may have been before it was set."""
    from ray._private import ray_constants

    ray_constants.ENABLE_RAY_CLUSTER = os.environ[next(iter(_SINGLE_MACHINE))] not in ("0", "false", "False")


def _check_answers(address: str) -> None:
    """Ray tries for minutes to reach a cluster that is gone; raises OSError when nothing listens there."""
    parts = urlsplit(address if "://" in address else f"//{address}")
    if parts.hostname is not None and parts.port is not None:
        socket.create_connection((parts.hostname, parts.port), _CONNECT_TIMEOUT_S).close()


@contextmanager
def _failures_named(address: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # a node that takes too long to start is a plain one
        reason = str(error).strip().partition("\n")[0]
        if "AF_UNIX path length" in reason:
            advice = "set TMPDIR or RAY_TMPDIR to a folder with a short path, such as /tmp"
        elif address:
            advice = f"see to the cluster at RAY_ADDRESS={address}, or unset RAY_ADDRESS to use this machine alone"
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
