"""Ray, started so that a person can watch: no log noise, no usage statistics, no spinning threads."""

import logging
import os
from collections.abc import Callable
from typing import TypeVar

from replay_service.errors import ReplayError

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


def start_ray() -> None:
    """Join the cluster that RAY_ADDRESS names, or start one on this machine; nothing if Ray runs already.

    On one machine Ray is told of at least four CPUs: a pipeline of two stages beside two workers would otherwise wait
    for a third one for ever.
    """
    os.environ.update({name: value for name, value in QUIET_ENVIRONMENT.items() if name not in os.environ})
    import ray
    from ray.data import DataContext

    if not ray.is_initialized():
        local = {} if "RAY_ADDRESS" in os.environ else {"num_cpus": max(4, os.cpu_count() or 1)}
        ray.init(
            include_dashboard=False,
            log_to_driver=False,
            logging_level=logging.ERROR,
            runtime_env={"env_vars": QUIET_ENVIRONMENT},
            **local,
        )
    context = DataContext.get_current()
    context.enable_progress_bars = False
    for name in ("ray", "ray.data", "ray.train"):
        logging.getLogger(name).setLevel(logging.ERROR)


def in_ray(num_gpus: float, function: Callable[..., Result], *arguments: object) -> Result:
    """What a function gives in a process of Ray; an error of ours is raised as it was there."""
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
