"""Errors of ours out of those that Ray wraps around them."""

from ray.exceptions import ActorDiedError, RayTaskError

from replay_service.errors import CorpusError, ReplayError
from replay_service.ray_session import error_within


def of_a_task(error: Exception) -> Exception:
    """As Ray raises what a task has raised: of the class of both."""
    raised: Exception = RayTaskError("a_task", "Traceback: many lines", error).as_instanceof_cause()
    return raised


def test_an_error_of_ours_is_found_as_it_was_raised() -> None:
    ours = CorpusError("the model is none")
    assert error_within(ours, ReplayError) is ours
    of_task = of_a_task(ours)
    assert isinstance(of_task, CorpusError)
    assert error_within(of_task, ReplayError) is ours


def test_it_is_found_however_deep_it_is() -> None:
    ours = CorpusError("the model is none")
    outer = RuntimeError("a stage has failed")
    outer.__cause__ = of_a_task(ours)
    assert error_within(of_a_task(outer), ReplayError) is ours
    several = RuntimeError("workers have failed")
    several.worker_failures = {0: ValueError("no"), 1: of_a_task(ours)}  # type: ignore[attr-defined]
    assert error_within(several, ReplayError) is ours


def test_where_there_is_none_nothing_is_found() -> None:
    assert error_within(of_a_task(ValueError("no")), ReplayError) is None
    assert error_within(ActorDiedError(), ReplayError) is None
