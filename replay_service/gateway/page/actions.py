"""Changes of a run from its page: which there are, what each one would do, and how it is carried out."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final, Literal, get_args

import numpy as np
from pydantic import ValidationError

from replay_service.errors import InvalidRequest, InvalidRun, ReplayError
from replay_service.gateway.middleware.access import Access
from replay_service.gateway.models import CloseRequest, RewindRequest, RunChange, RunInfo
from replay_service.gateway.page import words
from replay_service.gateway.routes.runs import close_run, configure_run, rewind_run
from replay_service.gateway.service import ReplayService
from replay_service.gateway.statistics import strata_of
from replay_service.gateway.statistics_models import StratumStats
from replay_service.sampling.policies import PolicyName
from replay_service.sampling.run_config import RunConfig
from replay_service.tokens import SCOPES

ActionName = Literal["injection_ratio", "policy", "floor", "rewind", "close"]
ACTION_NAMES: Final[tuple[ActionName, ...]] = get_args(ActionName)
SETTINGS: Final = ("injection_ratio", "policy", "floor")

_TITLES: Final[dict[ActionName, str]] = {
    "injection_ratio": "Change the injection ratio",
    "policy": "Change the policy",
    "floor": "Change the floor",
    "rewind": "Rewind the run",
    "close": "Close the run",
}
_MOST_DOMAINS: Final = 12
_DOMAINS_MOVED: Final = 0.001
"""A domain whose share of the draws changes by less than this stays out of the preview."""


@dataclass(frozen=True, slots=True)
class Action:
    """A change that the page offers.

    Attributes:
        kind: of the keys that a phone shows for its value; empty where it takes none.
        now: the value in force.
    """

    name: ActionName
    label: str
    button: str
    kind: Literal["", "decimal", "numeric", "text"] = ""
    now: str = ""
    choices: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Difference:
    """A number or a setting before and after a change."""

    name: str
    before: str
    after: str


@dataclass(frozen=True, slots=True)
class Preview:
    """What a change would do.

    Attributes:
        seen: tells the state of the run that the preview is of; a change of the run in between changes it.
    """

    title: str
    changes: Sequence[Difference]
    effects: Sequence[str]
    seen: str


def may_change(access: Access) -> bool:
    """Whether the caller's token is enough for changes of runs."""
    return SCOPES.index(access.caller.scope) >= SCOPES.index("train")


def actions_on(info: RunInfo) -> list[Action]:
    """The changes that a run can undergo now."""
    config = info.config.to_config()
    found: list[Action] = []
    if not info.closed:
        if not config.injection_fixed:
            found.append(Action("injection_ratio", "Injection ratio", "Change", "text", str(config.injection_ratio)))
        found.append(Action("policy", "Policy", "Change", "text", config.policy, get_args(PolicyName)))
        if config.policy in ("mix_cd", "permuted_mix_cd"):
            found.append(Action("floor", "Floor", "Change", "decimal", f"{config.floor:g}"))
    if info.next_step:
        found.append(Action("rewind", "Last step to keep", "Rewind", "numeric", str(info.next_step - 1)))
    if not info.closed:
        found.append(Action("close", "", "Close the run"))
    return found


def preview(service: ReplayService, info: RunInfo, action: ActionName, value: str) -> Preview:
    """What a change would do.

    Raises:
        ReplayError: why it cannot be done; the JSON routes say the same.
    """
    seen = _seen(info)
    if action == "close":
        return Preview(_TITLES[action], (), _effects_of_close(info), seen)
    if action == "rewind":
        return _preview_rewind(info, _step_in(value), seen)
    return _preview_setting(service, info, action, value, seen)


def _seen(info: RunInfo) -> str:
    """A short text that is another one after a change of the run, but not after its next step."""
    what = json.dumps([info.attempt, info.closed, info.generation, info.config.model_dump(mode="json")], sort_keys=True)
    return hashlib.sha256(what.encode()).hexdigest()[:16]


def carry_out(service: ReplayService, run: str, action: ActionName, value: str) -> None:
    """Make a change, as the JSON route does; raises what that raises."""
    if action == "close":
        close_run(run, CloseRequest(), service)
    elif action == "rewind":
        rewind_run(run, RewindRequest(step=_step_in(value)), service)
    else:
        configure_run(run, _change(action, value), service)


def title_of(action: ActionName) -> str:
    return _TITLES[action]


def _effects_of_close(info: RunInfo) -> list[str]:
    if info.closed:
        raise InvalidRun(f"run {info.run!r} is closed already")
    return [
        f"No step from {words.count(info.next_step)} on will be planned: a job that still trains is refused its next "
        "batch.",
        "Plans that were made are still served, and reports of them still count. A rewind opens the run again.",
    ]


def _preview_rewind(info: RunInfo, step: int, seen: str) -> Preview:
    if not -1 <= step < info.next_step:
        raise InvalidRun(f"run {info.run!r} has plans of the steps up to {info.next_step - 1}; -1 is the beginning")
    changes = [
        Difference("next step", words.count(info.next_step), words.count(step + 1)),
        Difference("attempt", str(info.attempt), str(info.attempt + 1)),
    ]
    effects = [
        f"Plans, reports and changes of the {words.count(info.next_step - 1 - step)} steps after step "
        f"{words.count(step)} are forgotten.",
        f"The job must go on from its checkpoint of step {words.count(step)}. Reports of batches that were served "
        "before the rewind are rejected.",
    ]
    return Preview(_TITLES["rewind"], changes, effects, seen)


def _preview_setting(service: ReplayService, info: RunInfo, action: ActionName, value: str, seen: str) -> Preview:
    before = info.config.to_config()
    try:
        after = before.changed(**_change(action, value).changes())
    except ValueError as error:
        raise InvalidRun(str(error)) from error
    if after == before:
        raise InvalidRun(f"{action} is {value} already; choose another value")
    changes = [Difference(action, *(f"{asdict(each)[action]}" for each in (before, after)))]
    if action == "injection_ratio":
        changes += _rows_a_step(before, after)
    else:
        changes += _draws_of_domains(service, info.run, after)
    effects = [f"It holds from the first step without a plan on, which is {words.count(info.next_step)} now."]
    return Preview(_TITLES[action], changes, effects, seen)


def _rows_a_step(before: RunConfig, after: RunConfig) -> list[Difference]:
    rows = [float(each.ratio) * each.global_batch_size for each in (before, after)]
    name = "rehearsed rows a step, at the start of an auto ratio" if after.is_auto else "rehearsed rows a step"
    return [Difference(name, *(f"{each:.4g}" for each in rows))]


def _draws_of_domains(service: ReplayService, run: str, after: RunConfig) -> list[Difference]:
    """The share of the draws of each domain that a change moves, those that it moves most."""
    try:
        strata = strata_of(service, run).strata
    except ReplayError:  # the corpus is away: the change can be made all the same
        return []
    sizes = np.array([each.num_samples for each in strata])
    rates = np.array([1.0 if each.damage_rate is None else each.damage_rate for each in strata])
    then = after.make_policy().probabilities(sizes, rates)
    shares = _by_domain(strata, [each.draw_share for each in strata]), _by_domain(strata, then.tolist())
    moved = sorted(shares[0], key=lambda name: -abs(shares[1][name] - shares[0][name]))[:_MOST_DOMAINS]
    return [
        Difference(f"draws of {name}", words.percent(shares[0][name]), words.percent(shares[1][name]))
        for name in moved
        if abs(shares[1][name] - shares[0][name]) >= _DOMAINS_MOVED
    ]


def _by_domain(strata: Sequence[StratumStats], shares: Sequence[float]) -> dict[str, float]:
    total: dict[str, float] = {}
    for each, share in zip(strata, shares, strict=True):
        total[each.domain] = total.get(each.domain, 0.0) + share
    return total


def _step_in(value: str) -> int:
    try:
        return RewindRequest(step=int(value)).step
    except ValueError:
        raise InvalidRequest("the last step to keep is a whole number, or -1 to keep none") from None


def _change(action: ActionName, value: str) -> RunChange:
    values: dict[str, Any] = {action: value}
    try:
        if action == "floor":
            values[action] = float(value)
        return RunChange.model_validate(values)
    except ValidationError as error:
        raise InvalidRequest(f"{action}: {error.errors()[0]['msg']}") from None
    except ValueError:
        raise InvalidRequest(f"{action} is a number") from None
