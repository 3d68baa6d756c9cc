"""Advice, each rule by itself: when it speaks, and when it does not."""

from dataclasses import replace

import pytest

from replay_service.gateway import advice
from replay_service.gateway.advice import RULES, DomainFigures, Situation, advice_on
from replay_service.ledger.owners import Ownership
from replay_service.sampling.forgetting import Forgetting
from replay_service.sampling.predicted_gain import Interval, PredictedGain
from replay_service.sampling.run_config import RunConfig


def forgetting(nats: float, half: float = 0.01) -> Forgetting:
    return Forgetting(nats, nats - half, nats + half, 80.0, 1.0, 900, 100, None)


def unknown(num_effective: float = 3.0, share_covered: float = 1.0) -> Forgetting:
    return Forgetting(None, None, None, num_effective, share_covered, 900, 100, "too few")


NO_GAIN = PredictedGain(None, None, None, None, 0.0, None, "too few")
GAIN = PredictedGain(*(Interval(0.2, 0.1, 0.3),) * 4, 100.0, "it does", None)
EVEN = PredictedGain(*(Interval(0.001, 0.0, 0.01),) * 4, 100.0, "it does not", None)


def domain(name: str, found: Forgetting, draw_share: float = 0.5, size_share: float = 0.5) -> DomainFigures:
    return DomainFigures(name, found, draw_share, size_share)


WELL = Situation(
    lifecycle="running",
    problem=None,
    ownership=Ownership(),
    silent_s=3.0,
    late_steps=0,
    config=RunConfig(global_batch_size=32, injection_ratio="0.05"),
    ratio=0.05,
    next_step=1000,
    corpus=forgetting(0.05),
    domains=(domain("en", forgetting(0.05)), domain("web", forgetting(0.06))),
    gain=GAIN,
    repeat_share=0.1,
)
AUTO = RunConfig.from_dict({"global_batch_size": 32, "injection_ratio": "auto", "budget": {"nats": 0.02}})
UNIFORM = RunConfig(global_batch_size=32, injection_ratio="0.05", policy="uniform")
APART = (domain("en", forgetting(0.04)), domain("web", forgetting(0.25)))
UNDERDRAWN = (domain("en", forgetting(0.04)), domain("web", forgetting(0.25), 0.2))


def changed(**changes: object) -> Situation:
    return replace(WELL, **changes)  # type: ignore[arg-type]


def test_nothing_is_said_of_a_run_that_is_well() -> None:
    assert advice_on(WELL) == []


@pytest.mark.parametrize(
    ("rule", "situation", "text", "remedy"),
    [
        ("damaged", changed(problem="segment 3 is cut short"), "segment 3 is cut short", "from a copy"),
        ("another-owner", changed(ownership=Ownership(True)), "another service on the same journal", "one service"),
        ("another-owner", changed(ownership=Ownership(False, 7)), "7 times in ten minutes", "one service"),
        ("another-owner", changed(ownership=Ownership(True, 3)), "3 times in ten minutes", "one service"),
        ("stale", changed(lifecycle="stale", silent_s=1800.0), "for 30 min", "last checkpoint"),
        ("stale", changed(lifecycle="stale", silent_s=28.0), "for 28 s", "last checkpoint"),
        ("stale", changed(lifecycle="stale", silent_s=86_400.0), "for 24 h", "last checkpoint"),
        ("stale", changed(lifecycle="stale", silent_s=None), "for long", "last checkpoint"),
        ("reports-stopped", changed(late_steps=1), "1 step has", "job's log"),
        ("reports-stopped", changed(late_steps=40), "40 steps have", "job's log"),
        ("over-budget", changed(config=AUTO, ratio=0.2), "above 0.04 nats and the budget is 0.02", "budget.most_ratio"),
        ("domain-forgotten", changed(domains=APART), "'web' is forgotten 5.0 times", "raise sharpness"),
        ("domain-forgotten", changed(domains=UNDERDRAWN), "'web'", "raise floor above 0.1"),
        ("domain-forgotten", changed(domains=APART, config=UNIFORM), "'web'", "set policy to mix_cd"),
        ("domain-forgotten", changed(domains=APART, corpus=forgetting(-0.001)), "more than the corpus", "sharpness"),
        ("corpus-seen", changed(repeat_share=0.55), "55% of the draws", "ingest more"),
        (
            "blind",
            changed(corpus=unknown(), ratio=0.0001, domains=()),
            "3.0 effective reports",
            "raise injection_ratio",
        ),
        ("blind", changed(corpus=unknown(50.0, 0.6), domains=()), "60% of the corpus", "raise floor"),
        ("damage-even", changed(gain=EVEN), "damage is even", "uniform"),
    ],
)
def test_each_rule_says_what_it_sees_and_what_to_do(rule: str, situation: Situation, text: str, remedy: str) -> None:
    (found,) = advice_on(situation)
    assert (found.id, text in found.text, remedy in found.remedy) == (rule, True, True), found


@pytest.mark.parametrize(
    "situation",
    [
        changed(late_steps=40, lifecycle="stale", silent_s=900.0),
        changed(ownership=Ownership(False, 2)),
        changed(config=AUTO, ratio=0.1),
        changed(config=AUTO, ratio=0.2, corpus=unknown(), next_step=10, domains=()),
        changed(config=AUTO, ratio=0.2, corpus=forgetting(0.025), domains=()),
        changed(domains=(domain("en", forgetting(0.05)), domain("web", forgetting(0.25, 0.3)))),
        changed(domains=(domain("web", unknown()),)),
        changed(domains=(domain("web", forgetting(0.07, 0.001)),)),
        changed(repeat_share=1.0, next_step=0),
        changed(corpus=unknown(), ratio=0.0001, next_step=100, domains=()),
        changed(corpus=unknown(30.0), domains=()),
        changed(gain=NO_GAIN),
    ],
)
def test_a_rule_keeps_silent_where_it_cannot_be_sure(situation: Situation) -> None:
    assert [each.id for each in advice_on(situation) if each.id != "stale"] == []


def test_who_has_seen_the_corpus_is_told_to_ingest_more_and_nothing_else() -> None:
    seen, blind = advice_on(changed(corpus=unknown(50.0, 0.6), domains=(), repeat_share=0.9))
    assert (seen.id, blind.id) == ("corpus-seen", "blind")
    assert "floor" not in blind.remedy and "ingest more text" in blind.remedy


def test_the_most_urgent_comes_first_and_no_id_comes_twice() -> None:
    everything = changed(
        problem="gone",
        lifecycle="stale",
        late_steps=3,
        config=AUTO,
        ratio=0.2,
        domains=APART,
        repeat_share=0.9,
        gain=EVEN,
    )
    ids = ["damaged", "stale", "over-budget", "domain-forgotten", "corpus-seen", "damage-even"]
    assert [each.id for each in advice_on(everything)] == ids
    assert RULES[0] is advice.damaged


@pytest.mark.parametrize("lifecycle", ["closed", "finished"])
def test_of_a_run_that_is_over_only_damage_is_told(lifecycle: str) -> None:
    over = changed(lifecycle=lifecycle, domains=APART, late_steps=3, repeat_share=0.9, gain=EVEN)
    assert advice_on(over) == []
    assert [each.id for each in advice_on(replace(over, problem="gone"))] == ["damaged"]


def test_the_worst_domain_is_the_one_that_has_surely_forgotten_most() -> None:
    unsure = domain("unsure", forgetting(0.5, 0.6))
    worst = changed(domains=(unsure, domain("sure", forgetting(0.2, 0.05)), domain("unknown", unknown()))).worst()
    assert worst is not None and worst.name == "sure"
    assert changed(domains=(domain("unknown", unknown()),)).worst() is None
