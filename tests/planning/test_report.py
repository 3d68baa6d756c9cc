import tomllib

from replay_service.planning.bootstrap import draws_of, resamples
from replay_service.planning.holdout import predict_largest
from replay_service.planning.identified import forgetting_runs
from replay_service.planning.plan import ForgettingFit, Plan, make_plan, planned
from replay_service.planning.report import report, section
from replay_service.planning.settings import PlanSettings
from replay_service.sampling.run_config import RunConfig
from replay_trainer.config import TrainConfig
from tests.planning.worlds import World


def run_of(plan: Plan) -> RunConfig:
    """The run of a job with the section."""
    content = tomllib.loads(section(plan))
    content["rehearsal"] |= {"corpus": "c", "run": "r", "service_url": "http://127.0.0.1:1"}
    data = {"target": "t"}
    job = TrainConfig.model_validate({"model": "m", "output": "o", "num_steps": 9, "data": data, **content})
    assert job.rehearsal is not None and job.rehearsal.rehearsal_weight == plan.settings.rehearsal_weight
    return RunConfig.from_dict(job.run_settings())


def test_the_section_is_of_a_valid_job_and_begins_with_the_ratio(plan: Plan) -> None:
    run = run_of(plan)
    assert run.is_auto and run.budget.nats == 0.1
    assert abs(float(run.budget.start()) / plan.ratio.value - 1) < 1e-3


def test_a_weight_and_a_high_ratio_stand_in_the_section() -> None:
    world = World(B=10.0)
    settings = PlanSettings(budget_nats=0.15, rehearsal_weight=2.0, num_resamples=20)
    made = make_plan(world.runs(ratios=(0.0, 0.1, 0.4)), settings)
    assert 0.2 < made.ratio.value < 1
    assert abs(float(run_of(made).budget.start()) / made.ratio.value - 1) < 1e-3


def test_the_report_has_coefficients_ratio_price_and_prediction(plan: Plan) -> None:
    said = report(plan, predict_largest(World().runs()))
    for part in (
        "45 runs: 3 model sizes (1,000,000 to 20,000,000 parameters)",
        "  alpha  0.39",
        "mean relative error:",
        "from 20 smaller and shorter ones",
        "Plan for 20,000,000 parameters and 10,000,000 target tokens:",
        f"injection ratio for 0.1 nats: {plan.ratio.value:.4g} (",
        "target loss, for as many tokens in all: +0.0",
        section(plan),
    ):
        assert part in said
    assert "cannot tell" not in said


def test_the_report_says_what_the_runs_cannot_tell(small_plan: Plan) -> None:
    said = report(small_plan)
    assert "The runs cannot tell everything:" in said
    assert "alpha  0.5 (fixed)" in said and "beta   0.5 (fixed)" in said
    assert "The target loss is fitted without alpha', beta', E" in said


def test_ratios_at_the_ends_and_beyond_the_runs_are_said() -> None:
    runs, law = World().runs(), forgetting_runs(World().runs())
    fit = ForgettingFit(law, draws_of(law, list(resamples(runs, 10, seed=0)), lambda: None))
    said = {budget: report(planned(fit, None, PlanSettings(budget_nats=budget))) for budget in (5.0, 0.05, 1e-4)}
    assert "no rehearsal is needed for 5 nats" in said[5.0]
    assert "outside the ratios of the runs" in said[0.05]
    assert "no injection ratio keeps forgetting within 0.0001 nats" in said[1e-4]
    assert "Section of the job" in said[0.05] and "Section of the job" not in said[1e-4]
    far = report(planned(fit, None, PlanSettings(budget_nats=0.05, num_parameters=1e9)))
    assert "that size is outside the runs'" in far


def test_a_law_that_the_runs_do_not_follow_is_said() -> None:
    runs = World(B=1e-9).runs()
    assert "is at the least value that is searched" in report(
        make_plan(runs, PlanSettings(budget_nats=0.05, num_resamples=20))
    )
