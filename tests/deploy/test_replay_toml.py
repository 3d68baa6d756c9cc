import re
from pathlib import Path

import pytest

from replay_service.settings import ServiceSettings, load_settings

EXAMPLE = Path(__file__).parents[2] / "deploy" / "replay.toml"


@pytest.fixture(autouse=True)
def bare_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ServiceSettings.model_fields:
        monkeypatch.delenv(f"REPLAY_{name.upper()}", raising=False)


def test_the_example_names_every_setting_and_no_other() -> None:
    assert re.findall(r"^(?:# )?(\w+) = ", EXAMPLE.read_text(), re.MULTILINE) == list(ServiceSettings.model_fields)


def test_the_example_holds_the_defaults() -> None:
    assert load_settings(EXAMPLE).model_dump() == ServiceSettings().model_dump()


def test_what_is_commented_out_can_be_put_in(tmp_path: Path) -> None:
    file = tmp_path / "replay.toml"
    file.write_text(re.sub(r"^# (\w+ = )", r"\1", EXAMPLE.read_text(), flags=re.MULTILINE))
    assert load_settings(file).database_url == "sqlite:////var/lib/replay/journal.sqlite"
