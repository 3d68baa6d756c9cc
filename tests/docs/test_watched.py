"""Every fault of a job that is watched is told on the page, by the alerts and by the commands."""

from pathlib import Path

import pytest

from tests.databases import find_postgresql
from tests.deploy.promtool import RULES, prometheus
from tests.docs.watched import INTRODUCTION, SHORTENED, Seen, report, shortened, watch

SAID = {
    "nothing has begun": ("waiting",),
    "too few reports": ("running", "reports of too few steps"),
    "over budget": ("running", "OVER", "the budget is 0.02"),
    "ratio changed": ("running",),
    "reports stopped": ("waited unusually long for reports", "job's log"),
    "damaged segment": ("damaged", "cannot be read in part", "from a copy"),
    "another owner": ("two services take the run from each other", "one service"),
    "database away": ("The service does not answer (503)",),
    "corpus seen": ("of the draws are repeats", "ingest more"),
    "trainer gone": ("stale", "nothing was heard of the job", "last checkpoint"),
    "finished": ("finished",),
}
"""What the page says of each fault."""


@pytest.mark.slow
@pytest.mark.skipif(find_postgresql() is None, reason="PostgreSQL is not installed")
def test_every_fault_is_told(tmp_path: Path) -> None:
    prometheus()
    seen = watch(tmp_path)
    assert [each.fault for each in seen] == list(SAID)
    for each in seen:
        page = " ".join(each.page)
        assert all(text in page for text in SAID[each.fault]), (each.fault, page)
        assert (tmp_path / each.picture).stat().st_size
        if each.fault != "database away":
            assert each.shown.startswith("tuning  ") and each.top.startswith("tuning  ")
    assert seen[3].alerts.keys() <= {"ReplayForgettingOverBudget"}
    assert seen[-1].alerts.keys() <= {"ReplayCorpusSeen"}


def test_all_times_of_the_rules_are_shortened() -> None:
    rules = RULES.read_text()
    found = shortened(rules)
    assert rules.count("for: ") == found.count("for: 6s") > 5
    assert "1800" not in found and "[10m]" not in found and len(SHORTENED) == 4


def test_a_report_is_a_table_and_what_the_commands_printed() -> None:
    seen = Seen("a fault", ["stale", "LOOK a|b"], {"Gone": "for long"}, "tuning  stale", "tuning  stale  2/s", "a.png")
    lines = (INTRODUCTION + report([seen], "pictures/")).splitlines()
    assert "| [a fault](pictures/a.png) | stale<br>LOOK a\\|b | **Gone** for long |" in lines
    assert "$ replay-service top tuning --times 1" in lines and "tuning  stale  2/s" in lines
