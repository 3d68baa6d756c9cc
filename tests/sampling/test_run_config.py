import json
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from replay_service.sampling.policies import MixCd, Uniform
from replay_service.sampling.run_config import RunConfig

configs = st.builds(
    RunConfig,
    global_batch_size=st.integers(1, 10**6),
    injection_ratio=st.decimals(0, 1, places=6).map(str),
    seed=st.integers(0, 2**63 - 1),
    policy=st.sampled_from(["uniform", "mix_cd"]),
    sharpness=st.floats(0.0, 16.0),
    floor=st.floats(0.0, 1.0),
    signal=st.sampled_from(["token_flip", "excess_loss", "threshold"]),
    learnable_nats=st.floats(-10, 10),
    delta_nats=st.floats(-10, 10),
    prior_weight=st.floats(0.01, 1e6),
    half_life_steps=st.floats(0.01, 1e12),
    report_window_steps=st.integers(1, 10**6),
    adopt_every_steps=st.integers(0, 2**61),
    injection_fixed=st.booleans(),
)


@given(configs)
@settings(max_examples=50, deadline=None)
def test_a_configuration_survives_being_written_down(config: RunConfig) -> None:
    assert RunConfig.from_json(config.to_json()) == config
    assert RunConfig.from_json(config.to_json()).ratio == config.ratio


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("global_batch_size", 0),
        ("injection_ratio", "1.5"),
        ("injection_ratio", "a little"),
        ("seed", -1),
        ("seed", 2**63),
        ("policy", "oracle"),
        ("signal", "hunch"),
        ("sharpness", -0.1),
        ("sharpness", 17.0),
        ("sharpness", math.nan),
        ("floor", -0.01),
        ("floor", 1.01),
        ("floor", math.nan),
        ("learnable_nats", math.inf),
        ("delta_nats", math.nan),
        ("prior_weight", 0.0),
        ("prior_weight", math.inf),
        ("half_life_steps", 0.0),
        ("half_life_steps", math.nan),
        ("report_window_steps", 0),
        ("adopt_every_steps", -1),
        ("adopt_every_steps", 2**62),
    ],
)
def test_a_value_out_of_range_is_refused_by_name(name: str, value: object) -> None:
    with pytest.raises(ValueError, match=name):
        RunConfig(**{"global_batch_size": 8, "injection_ratio": "0.1", name: value})


def test_the_policy_is_made_with_the_runs_numbers() -> None:
    assert RunConfig(8, "0.1", policy="uniform").make_policy() == Uniform()
    assert RunConfig(8, "0.1", sharpness=2.0, floor=0.3).make_policy() == MixCd(2.0, 0.3)


def test_what_may_change_changes_and_the_rest_stays() -> None:
    config = RunConfig(global_batch_size=8, injection_ratio="0.1")
    changed = config.changed(floor=0.5, policy="uniform")
    assert (changed.floor, changed.policy, changed.injection_ratio) == (0.5, "uniform", "0.1")
    for name in ("seed", "global_batch_size", "feedback", "nonsense"):
        with pytest.raises(ValueError, match=f"{name} cannot be changed"):
            config.changed(**{name: 1})


def test_feedback_out_of_range_is_named() -> None:
    for values in ({"mode": "sometimes"}, {"lag": 0}):
        with pytest.raises(ValueError, match="feedback"):
            RunConfig.from_dict({"global_batch_size": 8, "injection_ratio": "0.1", "feedback": values})


def test_a_fenced_run_adopts_no_generation_of_itself() -> None:
    fenced = {"mode": "fenced", "lag": 4}
    values = {"global_batch_size": 8, "injection_ratio": "0.5", "feedback": fenced}
    assert RunConfig.from_dict(values).fence == 4
    with pytest.raises(ValueError, match="adopt_every_steps"):
        RunConfig.from_dict({**values, "adopt_every_steps": 10})
    with pytest.raises(ValueError, match="adopt_every_steps"):
        RunConfig.from_dict(values).changed(adopt_every_steps=10)


def test_a_promise_of_fixed_injection_holds_for_the_life_of_the_run() -> None:
    config = RunConfig(global_batch_size=8, injection_ratio="0.1", injection_fixed=True)
    for name in ("injection_ratio", "schedule", "budget"):
        with pytest.raises(ValueError, match=f"{name} cannot be changed: .* injection_fixed"):
            config.changed(**{name: getattr(config, name)})
    for each in (config, RunConfig(8, "0.1")):
        with pytest.raises(ValueError, match="injection_fixed cannot be changed"):
            each.changed(injection_fixed=not each.injection_fixed)
    assert config.changed(floor=0.5).injection_fixed


@pytest.mark.parametrize(
    "values",
    [
        {"injection_ratio": "auto"},
        {"schedule": {"curve": "warmup", "num_steps": 3}},
        {"schedule": {"curve": "steps", "points": [[3, "0.2"]]}},
    ],
)
def test_only_a_constant_ratio_can_be_promised(values: dict[str, object]) -> None:
    whole = {"global_batch_size": 8, "injection_ratio": "0.1", **values}
    assert not RunConfig.from_dict(whole).injection_fixed
    with pytest.raises(ValueError, match="injection_fixed promises the same injection ratio in all steps"):
        RunConfig.from_dict({**whole, "injection_fixed": True})


def test_a_configuration_of_before_there_was_the_promise_makes_none() -> None:
    values = json.loads(RunConfig(8, "0.1").to_json())
    del values["injection_fixed"]
    assert RunConfig.from_dict(values) == RunConfig(8, "0.1")
