from pathlib import Path

import pytest
from matplotlib import image

from replay_service.errors import UnusableRuns
from replay_service.planning.picture import check_path, draw
from replay_service.planning.plan import Plan


def test_a_plan_is_drawn(plan: Plan, small_plan: Plan, tmp_path: Path) -> None:
    for name, each in (("one", plan), ("two", small_plan)):
        draw(each, tmp_path / f"{name}.png")
        assert image.imread(tmp_path / f"{name}.png").std() > 0


def test_a_path_that_cannot_be_drawn_to_is_refused_beforehand(tmp_path: Path) -> None:
    check_path(tmp_path / "plan.pdf")
    with pytest.raises(UnusableRuns, match="name a file that ends in"):
        check_path(tmp_path / "plan.docx")
    with pytest.raises(UnusableRuns, match=r"there is no folder .*none"):
        check_path(tmp_path / "none" / "plan.png")
