"""The releases of training libraries that are told of, and those of the project's own files."""

import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from replay_trainer import frameworks
from replay_trainer.frameworks import TESTED, warn_if_untested
from replay_trainer.job.ray_train import preflight
from tests.trainer.worlds import a_job

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def nothing_was_told() -> Iterator[None]:
    for each in (warn_if_untested, frameworks._warn):
        each.cache_clear()
    yield
    for each in (warn_if_untested, frameworks._warn):
        each.cache_clear()


@pytest.mark.parametrize("name", TESTED)
def test_the_newest_is_the_one_of_the_constraints_and_the_package_asks_for_the_oldest(name: str) -> None:
    (pinned,) = re.findall(rf"^{name}==(\d+\.\d+)", (ROOT / "deploy" / "constraints.txt").read_text(), re.MULTILINE)
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    (asked,) = {each for extra in extras.values() for each in extra if re.match(rf"{name}\b", each)}
    assert TESTED[name][1] == pinned
    # No older torch could be tried.
    assert asked == f"{name}>={'2.5' if name == 'torch' else TESTED[name][0]}"


def test_the_releases_of_the_tests_are_not_told_of() -> None:
    with capture_logs() as logs:
        warn_if_untested(*TESTED)
    assert logs == []


@pytest.mark.parametrize("bounds", [("3.0", "3.1"), ("1.0", "1.9"), ("1.9", "1.9")])
def test_another_release_is_told_of_once(monkeypatch: pytest.MonkeyPatch, bounds: tuple[str, str]) -> None:
    monkeypatch.setitem(TESTED, "torch", bounds)
    with capture_logs() as logs:
        warn_if_untested("torch", "transformers")
        warn_if_untested("torch")
    (told,) = logs
    assert (told["event"], told["library"], told["newest"]) == ("untested_version", "torch", bounds[1])
    assert f"tried with torch {' and '.join(dict.fromkeys(bounds))};" in told["hint"]


def test_a_library_that_is_not_installed_is_not_told_of(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(TESTED, "no-such-library", ("1.0", "1.0"))
    with capture_logs() as logs:
        warn_if_untested("no-such-library")
    assert logs == []


def test_a_job_tells_of_the_libraries_that_it_uses(
    tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("transformers", "peft"):
        monkeypatch.setitem(TESTED, name, ("1.0", "1.0"))
    with capture_logs() as logs:
        preflight(a_job(tmp_path, tiny_model, None))
        preflight(a_job(tmp_path, tiny_model, None, lora={"r": 2}))
    assert [each["library"] for each in logs if each["event"] == "untested_version"] == ["transformers", "peft"]
