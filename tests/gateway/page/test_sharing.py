"""What those who look at pages share, and what they do not."""

from fastapi.testclient import TestClient

from replay_service.gateway.recent_answers import Allowance, RecentAnswers
from replay_service.gateway.service import ReplayService
from tests.gateway.page.worlds import runs_in, text_of, train
from tests.gateway.worlds import create_run


class TestSharing:
    """Those who look again and again share what they are given; who opens a page gets it new."""

    def test_a_part_is_the_same_for_all_until_somebody_opens_the_page(self, trained: TestClient) -> None:
        def part() -> str:
            return text_of(trained.get("/runs/tune/live").text)

        service: ReplayService = trained.app.state.service  # type: ignore[attr-defined]
        service.watched.fragments = RecentAnswers(Allowance(share=0.0, burst_s=0.0))
        before = part()
        assert "step 6" in before and "As of 20" in before
        train(trained, 1, 6)
        assert part() == before
        assert "step 7" in text_of(trained.get("/runs/tune").text)
        assert "step 7" in part()

    def test_a_rewind_and_another_run_of_the_name_have_parts_of_their_own(self, trained: TestClient) -> None:
        assert "step 6" in text_of(trained.get("/runs/tune/live").text)
        trained.post("/v1/runs/tune/rewind", json={"step": 2}).raise_for_status()
        assert "step 3, attempt 2" in text_of(trained.get("/runs/tune/live").text)
        trained.post("/v1/runs/tune/close", json={}).raise_for_status()
        trained.delete("/v1/runs/tune").raise_for_status()
        assert trained.get("/runs/tune/live").status_code == 404
        create_run(trained)
        assert "waiting" in text_of(trained.get("/runs/tune/live").text)

    def test_the_list_is_shared_by_those_who_look_on(self, trained: TestClient) -> None:
        def names(headers: dict[str, str]) -> list[str]:
            return runs_in(trained.get("/", headers=headers).text)

        service: ReplayService = trained.app.state.service  # type: ignore[attr-defined]
        service.watched.fragments = RecentAnswers(Allowance(share=0.0, burst_s=0.0))
        again = {"hx-request": "true"}
        assert names(again) == ["tune"]
        create_run(trained, run="born-later")
        assert names(again) == ["tune"]
        assert names({}) == names(again) == ["born-later", "tune"]

    def test_of_runs_that_cost_too_much_the_list_has_the_rest_later(self, trained: TestClient) -> None:
        service: ReplayService = trained.app.state.service  # type: ignore[attr-defined]
        service.watched.statistics = RecentAnswers(Allowance(share=0.0, burst_s=0.0))
        assert "open the run to see" in text_of(trained.get("/").text)
        trained.get("/runs/tune/live")
        assert "open the run to see" not in text_of(trained.get("/").text)
