"""Reports damaged on the way: refused, or taken for what they are, and nothing changes."""

from fastapi.testclient import TestClient
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from replay_service.wire.losses import encode_losses
from tests.gateway.worlds import all_of, assert_problem, batch_of, losses_of, report_bytes


def test_damaged_reports_are_refused_and_change_nothing(running: TestClient) -> None:
    body = bytes(encode_losses(losses_of(batch_of(running, 0, 5))))
    before = all_of(running)
    end = len(body) - 8
    for length in range(0, end, 37):
        assert_problem(report_bytes(running, body[:length]), 422, "invalid-report")
    assert all_of(running) == before


@given(place=st.integers(0, 2000), value=st.integers(0, 2**64 - 1), width=st.sampled_from([1, 2, 4, 8]))
@settings(
    max_examples=40, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
def test_no_damage_makes_the_service_fail(running: TestClient, place: int, value: int, width: int) -> None:
    body = bytearray(encode_losses(losses_of(batch_of(running, 0, 5))))
    place %= len(body) - width
    body[place : place + width] = (value % 2 ** (8 * width)).to_bytes(width, "little")
    before = all_of(running)
    response = report_bytes(running, bytes(body))
    if response.status_code != 200:
        assert_problem(response, 422, "invalid-report")
        assert all_of(running) == before
