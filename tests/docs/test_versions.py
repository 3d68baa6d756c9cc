"""The table of formats states the versions that the code writes."""

import re
from importlib import import_module
from pathlib import Path

from alembic.script import ScriptDirectory

from replay_service.ledger import migrations

PAGE = Path(__file__).parents[2] / "docs" / "internals" / "versions.md"
ROWS = re.findall(r"^\| (\w+): [^|]+ \| (\d+) \| ([^|]+) \|", PAGE.read_text(), re.MULTILINE)


def test_each_version_is_that_of_its_constant() -> None:
    named = {name: (int(version), constant.strip("`")) for name, version, constant in ROWS if constant.startswith("`")}
    assert named.keys() == {"wire", "corpus", "state", "place"}
    for version, constant in named.values():
        module, _, name = constant.rpartition(".")
        assert getattr(import_module(module), name) == version, constant


def test_the_version_of_the_schema_is_that_of_the_latest_migration() -> None:
    (version,) = (int(version) for name, version, _ in ROWS if name == "schema")
    (head,) = ScriptDirectory(str(Path(migrations.__file__).parent)).get_heads()
    assert int(head) == version


def test_no_format_with_a_version_is_missing() -> None:
    packages = (Path(__file__).parents[2] / folder for folder in ("replay_service", "trainer/replay_trainer"))
    found = {
        name
        for package in packages
        for path in package.rglob("*.py")
        for name in re.findall(r"^(\w*_VERSION)\b.* = \d+$", path.read_text(), re.MULTILINE)
    }
    assert found == {constant.strip("`").rpartition(".")[2] for _, _, constant in ROWS if constant.startswith("`")}
