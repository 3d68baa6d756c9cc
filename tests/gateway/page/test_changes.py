"""Changes of a run by its page."""

import re
from pathlib import Path
from typing import Any

from fastapi.testclient import TestClient

from replay_service.gateway.page import words
from tests.gateway.page.worlds import OWN, text_of, train
from tests.gateway.worlds import create_run


class TestChanges:
    """A preview first, then the run's name."""

    def post(self, client: TestClient, **fields: str) -> Any:
        query = {name: fields[name] for name in ("action", "value") if name in fields}
        shown = client.get("/runs/tune/change", params=query).text
        seen = re.findall(r'name="seen" value="([^"]*)"', shown) or [""]
        data = {"seen": seen[0], "confirm": "tune"} | fields
        return client.post("/runs/tune/change", data=data, headers=OWN, follow_redirects=False)

    def test_a_preview_changes_nothing_and_says_what_would_change(self, trained: TestClient) -> None:
        before = trained.get("/v1/runs/tune").json()
        page = text_of(trained.get("/runs/tune/change?action=injection_ratio&value=0.5").text)
        assert re.search(r"injection_ratio 0\.3 0\.5 rehearsed rows a step 2\.4 4", page)
        assert "from the first step without a plan on, which is 6 now" in page
        assert trained.get("/v1/runs/tune").json() == before

    def test_the_preview_of_a_policy_tells_the_draws_of_each_domain(self, root: Path, trained: TestClient) -> None:
        page = text_of(trained.get("/runs/tune/change?action=policy&value=stratified").text)
        assert "policy mix_cd stratified" in page
        strata = trained.get("/v1/runs/tune/strata").json()["strata"]
        now = sum(each["draw_share"] for each in strata if each["domain"] == "en")
        if abs(now - 0.5) >= 0.001:
            assert f"draws of en {words.percent(now)} 50 %" in page

    def test_a_setting(self, trained: TestClient) -> None:
        for action, value, then in (
            ("injection_ratio", "0.5", "0.5"),
            ("floor", "0.25", 0.25),
            ("policy", "uniform", "uniform"),
            ("injection_ratio", "auto", "auto"),
        ):
            answer = self.post(trained, action=action, value=value)
            assert answer.status_code == 303 and answer.headers["location"] == "/runs/tune", action
            assert trained.get("/v1/runs/tune").json()["config"][action] == then
            assert f"configured {action} " in text_of(trained.get("/runs/tune").text)

    def test_a_rewind(self, trained: TestClient) -> None:
        assert self.post(trained, action="rewind", value="2").status_code == 303
        run = trained.get("/v1/runs/tune").json()
        assert (run["next_step"], run["attempt"]) == (3, 2)

    def test_closing(self, trained: TestClient) -> None:
        assert self.post(trained, action="close").status_code == 303
        assert trained.get("/v1/runs/tune").json()["closed"]

    def test_without_the_name_nothing_changes(self, trained: TestClient) -> None:
        for confirm in ("", "tun", "TUNE", "other", "tune2"):
            answer = self.post(trained, action="close", confirm=confirm)
            assert answer.status_code == 422 and "nothing was changed" in answer.text, confirm
        assert not trained.get("/v1/runs/tune").json()["closed"]

    def test_a_run_that_has_changed_since_the_preview_is_shown_again(self, trained: TestClient) -> None:
        shown = trained.get("/runs/tune/change?action=floor&value=0.5").text
        (seen,) = re.findall(r'name="seen" value="([^"]*)"', shown)
        trained.patch("/v1/runs/tune", json={"sharpness": 2.0}).raise_for_status()
        answer = self.post(trained, action="floor", value="0.5", seen=seen)
        assert answer.status_code == 422 and "has changed since" in answer.text
        assert trained.get("/v1/runs/tune").json()["config"]["floor"] == 0.1

    def test_a_bad_value_is_refused_in_the_preview(self, trained: TestClient) -> None:
        before = trained.get("/v1/runs/tune").json()
        for action, value, said in (
            ("injection_ratio", "2", "[0, 1]"),
            ("injection_ratio", "<b>", "injection_ratio"),
            ("injection_ratio", "0.3", "already"),
            ("policy", "best", "policy"),
            ("floor", "x", "number"),
            ("floor", "2", "floor"),
            ("floor", "nan", "floor"),
            ("rewind", "6", "up to 5"),
            ("rewind", "-2", "whole number"),
            ("rewind", "9" * 80, "whole number"),
            ("rewind", "x", "whole number"),
        ):
            answer = trained.get("/runs/tune/change", params={"action": action, "value": value})
            assert answer.status_code == 422 and said in text_of(answer.text), (action, value)
            assert "<b>" not in answer.text
            assert self.post(trained, action=action, value=value).status_code == 422, (action, value)
        assert trained.get("/v1/runs/tune").json() == before

    def test_steps_that_come_meanwhile_are_no_change(self, trained: TestClient) -> None:
        shown = trained.get("/runs/tune/change?action=floor&value=0.5").text
        (seen,) = re.findall(r'name="seen" value="([^"]*)"', shown)
        train(trained, 2, 6)
        assert self.post(trained, action="floor", value="0.5", seen=seen).status_code == 303

    def test_a_fixed_ratio_is_not_offered(self, client: TestClient) -> None:
        create_run(client, injection_fixed=True)
        assert 'value="injection_ratio"' not in client.get("/runs/tune").text

    def test_a_change_is_in_the_audit_with_the_run(self, trained: TestClient) -> None:
        from structlog.testing import capture_logs

        with capture_logs() as logs:
            self.post(trained, action="close")
        (line,) = [each for each in logs if each["event"] == "audit"]
        assert {"route": "/runs/{run}/change", "run": "tune", "status": 303}.items() <= line.items()
