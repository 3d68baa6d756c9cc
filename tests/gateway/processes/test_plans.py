import json
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from replay_service import errors
from replay_service.errors import ReplayError
from replay_service.gateway.middleware.problems import of_error
from replay_service.gateway.processes.plans import decode_plans, decode_window, encode_plans, encode_window, error_of
from replay_service.ledger.plan_windows import Window
from replay_service.sampling.events import PLANNED_ROW, Planned


def plans_of(sizes: list[int], first_step: int) -> list[Planned]:
    rng = np.random.default_rng(first_step % 1000)
    plans = []
    for step, size in enumerate(sizes, first_step):
        rows = np.frombuffer(rng.bytes(size * PLANNED_ROW.itemsize), PLANNED_ROW)
        plans.append(Planned(step, step % 7, 11 * step, rows))
    return plans


def same_plans(left: list[Planned], right: list[Planned]) -> bool:
    return [(each.step, each.policy_version, each.rehearsed_before, each.rows.tobytes()) for each in left] == [
        (each.step, each.policy_version, each.rehearsed_before, each.rows.tobytes()) for each in right
    ]


@given(st.lists(st.integers(0, 40), max_size=9), st.integers(0, 2**40))
def test_a_window_arrives_as_it_was_sent(sizes: list[int], first_step: int) -> None:
    plans = plans_of(sizes, first_step)
    sent = Window("tune", "wiki", "f00d", 3, 2, "0.05", plans)
    found = decode_window(encode_window(sent))
    assert replace(found, plans=plans) == sent
    assert same_plans(list(found.plans), plans)
    assert same_plans(decode_plans(encode_plans(plans))[0], plans)


def kinds(kind: type[ReplayError] = ReplayError) -> Iterator[type[ReplayError]]:
    for each in kind.__subclasses__():
        if each.__module__ == errors.__name__:
            yield each
            yield from kinds(each)


@pytest.mark.parametrize("kind", list(kinds()))
def test_an_error_is_answered_alike_by_whoever_heard_of_it(kind: type[ReplayError]) -> None:
    raised = of_error(kind("what was wrong", next_step=7, awaited_steps=[1, 2]))
    heard = error_of(json.loads(bytes(raised.body)))
    assert type(heard) is kind
    answered = of_error(heard)
    assert (answered.status_code, answered.body, answered.raw_headers) == (
        raised.status_code,
        raised.body,
        raised.raw_headers,
    )


def test_what_is_no_error_of_a_caller_is_none() -> None:
    assert error_of({"type": "urn:replay-service:problem:internal-error", "detail": "?"}) is None
