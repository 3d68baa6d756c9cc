"""Who may import whom, held by reading the sources."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from replay_service.extras import PACKAGES

ROOT = Path(__file__).parent.parent
SOURCES = {"replay_service": ROOT, "replay_trainer": ROOT / "trainer"}
"""Where each package lies."""
HEAVY = ("ray", "torch", "transformers")
SERVER = PACKAGES["server"]


def path_of(name: str) -> Path:
    """The path of a package or, without its ending, of a module."""
    return SOURCES.get(name.partition(".")[0], ROOT) / name.replace(".", "/")


def modules(package: str) -> dict[str, Path]:
    """The modules of a package, by dotted name."""
    found = {}
    for path in sorted(path_of(package).rglob("*.py")):
        parts = path.relative_to(SOURCES[package.partition(".")[0]]).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imports(module: str, path: Path) -> Iterator[str]:
    """What a module imports anywhere in it, as dotted names; a submodule taken from its package counts as itself."""
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            yield from (f"{base}.{alias.name}" if is_module(f"{base}.{alias.name}") else base for alias in node.names)


def is_module(name: str) -> bool:
    path = path_of(name)
    return path.is_dir() or path.with_suffix(".py").is_file()


def within(name: str, *packages: str) -> bool:
    return any(name == each or name.startswith(f"{each}.") for each in packages)


def edges(*packages: str) -> list[tuple[str, str]]:
    """(module, what it imports) for every import of every module in the packages."""
    return [
        (module, name)
        for package in packages
        for module, path in modules(package).items()
        for name in imports(module, path)
    ]


def ours(*packages: str) -> list[tuple[str, str]]:
    return [(module, name) for module, name in edges(*packages) if within(name, "replay_service", "replay_trainer")]


def strangers(found: list[tuple[str, str]], *allowed: str) -> list[tuple[str, str]]:
    return [(module, name) for module, name in found if not within(name, *allowed)]


def loaded_by(statement: str) -> set[str]:
    """The modules that a fresh interpreter has loaded after the statement."""
    code = f"{statement}\nimport sys\nprint('\\n'.join(sys.modules))"
    command = [sys.executable, "-W", "error", "-c", code]
    return set(subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True, cwd=ROOT).stdout.split())


def test_the_parser_sees_every_form_of_import(tmp_path: Path) -> None:
    path = tmp_path / "forms.py"
    path.write_text(
        "import a.b\nfrom c import d\nfrom . import errors\nfrom ..sampling.events import X\n"
        "def f():\n    from replay_service.corpus.format import layout, manifest\n"
    )
    assert list(imports("replay_service.gateway.forms", path)) == [
        "a.b",
        "c",
        "replay_service.gateway",
        "replay_service.sampling.events",
        "replay_service.corpus.format.layout",
        "replay_service.corpus.format.manifest",
    ]


def test_sampling_is_pure() -> None:
    found = strangers(edges("replay_service.sampling"), "numpy", "replay_service.sampling", *sys.stdlib_module_names)
    assert found == []


def test_the_ledger_knows_sampling_alone_and_neither_the_web_nor_ray() -> None:
    allowed = (
        "replay_service.sampling",
        "replay_service.errors",
        "replay_service.ledger",
        "replay_service.wire.losses",
    )
    assert strangers(ours("replay_service.ledger"), *allowed) == []
    assert [edge for edge in edges("replay_service.ledger") if within(edge[1], "fastapi", "starlette", *HEAVY)] == []


def test_the_wire_stands_alone() -> None:
    assert strangers(ours("replay_service.wire"), "replay_service.wire") == []


def test_planning_takes_of_sampling_the_law_alone() -> None:
    allowed = (
        "replay_service.errors",
        "replay_service.planning",
        "replay_service.sampling.bounds",
        "replay_service.sampling.controller",
    )
    assert strangers(ours("replay_service.planning"), *allowed) == []
    assert [edge for edge in edges("replay_service.planning") if within(edge[1], *HEAVY, *SERVER)] == []


def test_language_stands_alone() -> None:
    allowed = ("replay_service.errors", "replay_service.language")
    assert strangers(ours("replay_service.language"), *allowed) == []


def test_classification_stands_beside_language_and_takes_its_arithmetic() -> None:
    allowed = ("replay_service.errors", "replay_service.language", "replay_service.classification")
    assert strangers(ours("replay_service.classification"), *allowed) == []


def test_the_gateway_reads_corpora_and_knows_what_to_ingest_but_not_how() -> None:
    ingest = [f"replay_service.corpus.ingest.{name}" for name in ("settings", "status", "model_files")]
    shards = [f"replay_service.corpus.shards.{name}" for name in ("documents", "places", "urls")]
    allowed = ["replay_service.corpus.format", "replay_service.corpus.reading", *ingest, *shards]
    found = [edge for edge in edges("replay_service.gateway") if within(edge[1], "replay_service.corpus")]
    assert strangers(found, *allowed) == []
    forbidden = (
        "replay_service.demo",
        "replay_service.ray_cluster",
        "replay_service.ray_session",
        "replay_trainer",
        *HEAVY,
    )
    assert [edge for edge in edges("replay_service.gateway") if within(edge[1], *forbidden)] == []


def test_only_the_writing_side_of_a_corpus_imports_the_heavy_libraries() -> None:
    heavy = {module for module, name in edges("replay_service.corpus") if within(name, *HEAVY)}
    assert heavy <= {f"replay_service.corpus.ingest.{name}" for name in ("driver", "pipeline")}


def test_the_folders_of_a_corpus_stand_on_each_other_in_one_order() -> None:
    folders = [f"replay_service.corpus.{name}" for name in ("format", "reading", "shards", "ingest")]
    assert [edge for edge in ours(folders[0]) if within(edge[1], *folders[1:])] == []
    assert [edge for edge in ours(folders[1]) if within(edge[1], *folders[3:])] == []
    assert [edge for edge in ours(folders[2]) if within(edge[1], *folders[1:2], folders[3])] == []
    assert [edge for edge in ours(folders[3]) if within(edge[1], folders[1])] == []


def test_the_folders_of_the_gateway_stand_on_each_other_in_one_order() -> None:
    folders = [f"replay_service.gateway.{name}" for name in ("middleware", "routes", "page", "processes")]
    for i, each in enumerate(folders):
        assert [edge for edge in ours(each) if within(edge[1], *folders[i + 1 :])] == []


def test_only_the_demo_and_the_service_under_test_know_the_trainer_and_only_the_command_line_knows_the_demo() -> None:
    for module, name in ours("replay_service"):
        if within(name, "replay_trainer"):
            assert within(module, "replay_service.demo", "replay_service.testing"), (module, name)
        if within(name, "replay_service.demo"):
            assert within(module, "replay_service.demo", "replay_service.cli"), (module, name)


def test_nothing_of_ours_needs_what_is_for_the_tests_of_others() -> None:
    users = {
        module for module, name in ours("replay_service", "replay_trainer") if within(name, "replay_service.testing")
    }
    assert all(within(module, "replay_service.testing") for module in users)


def test_the_service_under_test_takes_of_the_trainer_the_client_alone() -> None:
    allowed = ("replay_service", "replay_trainer.client")
    assert strangers(ours("replay_service.testing"), *allowed) == []
    assert loaded_by("import replay_service.testing").isdisjoint(HEAVY)


def test_the_trainer_shares_the_wire_and_the_arithmetic_with_the_service() -> None:
    allowed = (
        "replay_service.wire",
        "replay_service.sampling.injection",
        "replay_service.sampling.events",
        "replay_service.sampling.damage",
        "replay_service.sampling.policies",
        "replay_service.sampling.run_config",
        "replay_service.sampling.controller",
        "replay_service.sampling.schedule",
        "replay_service.sampling.bounds",
        "replay_service.setting_models",
        "replay_service.setting_options",
        "replay_service.sampling.trained",
        "replay_service.corpus.shards",
        "replay_service.language",
        "replay_service.classification",
        "replay_service.errors",
        "replay_service.extras",
        "replay_service.names",
        "replay_service.ray_cluster",
        "replay_service.ray_session",
        "replay_service.progress",
        "replay_service.stopping",
        "replay_service.version",
        "replay_trainer",
    )
    assert strangers(ours("replay_trainer"), *allowed) == []


def test_the_folders_of_the_trainer_stand_on_each_other_in_one_order() -> None:
    above = (
        "replay_trainer.job",
        "replay_trainer.plain",
        "replay_trainer.rehearsal_loop",
        "replay_trainer.hf",
        "replay_trainer.scoring",
        "replay_trainer.study",
        "replay_trainer.cli",
    )
    assert [edge for edge in ours("replay_trainer.job") if within(edge[1], "replay_trainer.study")] == []
    assert [edge for edge in ours("replay_trainer.batches") if within(edge[1], *above)] == []
    allowed = ("replay_trainer.methods", "replay_trainer.errors", "replay_service.language", "replay_service.errors")
    assert strangers(ours("replay_trainer.methods"), *allowed) == []


@pytest.mark.parametrize(
    "module", ["replay_service.gateway.app", "replay_service.gateway.serving", "replay_service.cli"]
)
def test_the_service_starts_without_the_heavy_libraries(module: str) -> None:
    assert loaded_by(f"import {module}").isdisjoint(HEAVY)


def test_shards_are_read_without_the_heavy_libraries() -> None:
    assert loaded_by("import replay_service.corpus.shards.sources").isdisjoint(HEAVY)


def test_the_client_loads_neither_torch_nor_ray() -> None:
    assert loaded_by("import replay_trainer.client").isdisjoint(HEAVY)


@pytest.mark.parametrize("module", ["client", "cli", "plain", "hf", "job.ray_train", "scoring"])
def test_a_training_node_needs_nothing_of_the_server(module: str) -> None:
    """anyio is httpx2's as well; other packages of the server may be there because a library of the loop has them."""
    loaded = {name for name in loaded_by(f"import replay_trainer.{module}") if within(name, "replay_service")}
    files = [path for name, path in modules("replay_service").items() if name in loaded]
    assert [edge for path in files for edge in imports("replay_service.any", path) if within(edge, *SERVER)] == []
