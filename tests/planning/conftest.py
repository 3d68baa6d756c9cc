import pytest

from replay_service.planning.plan import Plan, make_plan
from replay_service.planning.settings import PlanSettings
from tests.planning.worlds import World


@pytest.fixture(scope="session")
def plan() -> Plan:
    """Of three sizes, three lengths and five ratios."""
    return make_plan(World().runs(), PlanSettings(budget_nats=0.1, num_resamples=20))


@pytest.fixture(scope="session")
def small_plan() -> Plan:
    """Of one size, one length and two ratios."""
    runs = World().runs(sizes=(4e6,), lengths=(2e6,), ratios=(0.0, 0.05), times=3)
    return make_plan(runs, PlanSettings(budget_nats=0.2, num_resamples=20))
