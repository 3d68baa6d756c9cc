"""The extras of pyproject.toml, as messages about missing packages name them."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from replay_service.extras import PACKAGES, missing_package

PROJECT = tomllib.loads((Path(__file__).parent.parent / "pyproject.toml").read_text())["project"]


def packages_of(extra: str) -> set[str]:
    requirements = PROJECT["optional-dependencies"][extra]
    return {re.split(r"[\[<>=]", each)[0].replace("-", "_") for each in requirements}


@pytest.mark.parametrize("extra", PACKAGES)
def test_an_extra_holds_the_packages_that_are_looked_for_in_it(extra: str) -> None:
    # fastapi brings starlette.
    assert set(PACKAGES[extra]) - {"starlette"} <= packages_of(extra)


@pytest.mark.parametrize(
    ("name", "command", "extra"),
    [("uvicorn.config", "corpus", "server"), ("torch", "corpus", "corpus"), ("ray.train", "train", "train")],
)
def test_a_missing_package_is_named_with_its_extra(name: str, command: str, extra: str) -> None:
    said = missing_package(ModuleNotFoundError(name=name), command)  # type: ignore[arg-type]
    assert said.startswith(f"{name.partition('.')[0]} is not installed;")
    assert said.endswith(f"pip install 'replay-service[{extra}]'")


WITHOUT = """
import sys
from importlib.abc import MetaPathFinder
class Without(MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {missing!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Without())
sys.argv = {command!r}
from {module} import main
main()
"""


@pytest.mark.parametrize(
    ("module", "command", "missing", "extra"),
    [
        ("replay_service.cli", ["replay-service", "serve"], PACKAGES["server"], "server"),
        ("replay_service.cli", ["replay-service", "corpus", "describe", "wiki"], PACKAGES["server"], "server"),
        ("replay_service.cli", ["replay-service", "plan", "runs.csv", "--budget-nats", "1"], PACKAGES["plan"], "plan"),
        (
            "replay_trainer.cli",
            ["replay-trainer", "score", "rows.jsonl", "--model", "m", "--output", "o"],
            ("torch",),
            "train",
        ),
    ],
)
def test_a_command_without_its_packages_says_what_to_install(
    module: str, command: list[str], missing: tuple[str, ...], extra: str, tmp_path: Path
) -> None:
    (tmp_path / "rows.jsonl").write_text('{"text": "a"}\n')
    code = WITHOUT.format(missing=missing, command=command, module=module)
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 2, done.stderr
    assert f"pip install 'replay-service[{extra}]'" in done.stderr and "Traceback" not in done.stderr
