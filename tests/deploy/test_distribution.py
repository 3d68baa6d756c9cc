"""The wheel and the source archive: what is in them, and a training node that has nothing else."""

import os
import shutil
import subprocess
import sys
import tarfile
import tomllib
import venv
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from packaging.metadata import Metadata
from packaging.requirements import Requirement

from replay_service import __version__
from replay_service.testing import ServiceUnderTest, replay_service

ROOT = Path(__file__).parents[2]
PACKAGED = {"replay_service": ROOT / "replay_service", "replay_trainer": ROOT / "trainer" / "replay_trainer"}
"""Where each package lies."""
LICENCES = {"LICENSE"} | {
    f"replay_service/gateway/page/vendor/{name}"
    for name in (
        "htmx.LICENSE",
        "uplot.LICENSE",
        "swagger-ui.LICENSE",
        "swagger-ui.NOTICE",
        "swagger-ui-bundle.js.LICENSE.txt",
    )
}
LOOP = """
import importlib, sys
import numpy as np
from replay_service.wire.losses import LOSS_ROW
from replay_trainer.client import ReplayClient
from replay_trainer.rehearsal import RehearsalStream
from replay_trainer.reporting import LossReporter

with ReplayClient(sys.argv[1]) as client:
    client.ensure_run(sys.argv[2], "pretraining", {"global_batch_size": 8, "injection_ratio": "0.25"})
    stream, reporter = RehearsalStream(client, sys.argv[2], 0, 1, num_steps=4), LossReporter(client, sys.argv[2])
    for batch in stream:
        rows = np.zeros(len(batch), dtype=LOSS_ROW)
        rows["step"], rows["sample_id"], rows["attempt"] = batch.step, batch.sample_id, batch.header.attempt
        rows["loss_nats"], rows["num_tokens"] = 1.0, batch.length - 1
        reporter.send(rows)
    reporter.flush()
for name in sys.argv[3:]:
    print(name, importlib.util.find_spec(name) is not None)
import replay_service, replay_trainer
print("from", replay_service.__file__, replay_trainer.__file__)
"""
"""A training loop of the client alone: a service's URL, the name of a run, and packages to look for."""


@dataclass(frozen=True, slots=True)
class Built:
    """The two artefacts of a release."""

    wheel: Path
    archive: Path

    def names(self) -> set[str]:
        return set(zipfile.ZipFile(self.wheel).namelist())

    def text(self, name: str) -> str:
        """A file of the wheel's `dist-info`."""
        return zipfile.ZipFile(self.wheel).read(f"{self.info}/{name}").decode()

    @property
    def info(self) -> str:
        return f"replay_service-{__version__}.dist-info"


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    """The wheel, built from the archive, which is built from a copy of the sources with what else lies beside them."""
    source, dist = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("dist")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    for name in ("replay_service", "trainer", "tests/wire"):
        shutil.copytree(ROOT / name, source / name)
    (source / "replay_service" / "gateway" / "__pycache__").mkdir(exist_ok=True)
    (source / "replay_service" / "gateway" / "__pycache__" / "left.cpython-311.pyc").write_bytes(b"")
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(dist), str(source)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    (wheel,), (archive,) = dist.glob("*.whl"), dist.glob("*.tar.gz")
    return Built(wheel, archive)


def sources() -> Iterator[str]:
    """The files of both packages by their places in a wheel."""
    for package, folder in PACKAGED.items():
        for path in folder.rglob("*"):
            if path.is_file() and "__pycache__" not in path.parts:
                yield f"{package}/{path.relative_to(folder).as_posix()}"


def test_the_wheel_holds_the_files_of_both_packages_and_nothing_else(built: Built) -> None:
    packaged = {name for name in built.names() if not name.startswith(built.info)}
    assert packaged == set(sources())
    needed = {
        "replay_service/py.typed",
        "replay_trainer/py.typed",
        "replay_service/gateway/page/templates/base.html",
        "replay_service/gateway/page/static/page.css",
        "replay_service/gateway/page/vendor/htmx.min.js",
        "replay_service/ledger/migrations/env.py",
        "replay_service/ledger/migrations/versions/v0001_runs_events_snapshots.py",
    }
    assert needed <= packaged


def test_the_source_archive_holds_what_a_build_needs_and_no_tests_or_caches(built: Built) -> None:
    with tarfile.open(built.archive) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    packaged = {name.replace("replay_trainer/", "trainer/replay_trainer/", 1) for name in sources()}
    assert packaged | {"pyproject.toml", "README.md", "LICENSE"} <= names
    assert not [name for name in names if name.endswith(".pyc") or name.startswith("tests")]


def test_the_licences_of_all_that_is_in_it_are_in_it(built: Built) -> None:
    metadata = Metadata.from_email(built.text("METADATA"))
    assert metadata.license_expression == "Apache-2.0 AND 0BSD AND BSD-3-Clause AND MIT"
    assert set(metadata.license_files or []) == LICENCES
    assert {f"{built.info}/licenses/{name}" for name in LICENCES} <= built.names()
    vendored = PACKAGED["replay_service"] / "gateway" / "page" / "vendor"
    beside = {each.name for each in vendored.iterdir() if "LICENSE" in each.name or "NOTICE" in each.name}
    assert {Path(name).name for name in LICENCES} == beside | {"LICENSE"}


def test_its_metadata_are_valid_and_those_of_the_project(built: Built) -> None:
    metadata = Metadata.from_email(built.text("METADATA"), validate=True)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert (metadata.name, str(metadata.version)) == ("replay-service", __version__)
    assert str(metadata.requires_python) == project["requires-python"]
    assert metadata.description_content_type == "text/markdown"
    assert (metadata.description or "").strip() == (ROOT / "README.md").read_text().strip()
    assert set(metadata.provides_extra or []) == set(project["optional-dependencies"])
    base = {str(each) for each in metadata.requires_dist or [] if each.marker is None}
    assert base == {str(Requirement(each)) for each in project["dependencies"]}
    assert "replay-service = replay_service.cli:main" in built.text("entry_points.txt")


@pytest.fixture(scope="module")
def service() -> Iterator[ServiceUnderTest]:
    with replay_service(serve=True) as found:
        yield found


def trained(python: Path | str, service: ServiceUnderTest, run: str, looked_for: list[str], **added: str) -> list[str]:
    """What LOOP prints, in an interpreter that sees nothing of the sources."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | added
    command = [str(python), "-c", LOOP, service.url, run, *looked_for]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment, cwd=service.root)
    assert done.returncode == 0, done.stderr
    with service.client() as client:
        stats = client.stats(run)
    assert stats["num_reported"] == stats["rows_rehearsed"] == 8
    return done.stdout.splitlines()


def test_a_client_trains_from_the_wheel(built: Built, service: ServiceUnderTest, tmp_path: Path) -> None:
    place = tmp_path / "installed"
    zipfile.ZipFile(built.wheel).extractall(place)
    printed = trained(sys.executable, service, "from-wheel", [], PYTHONPATH=str(place))
    assert printed[-1].split()[1:] == [str(place / package / "__init__.py") for package in PACKAGED]


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_training_node_installs_the_client_alone(built: Built, service: ServiceUnderTest, tmp_path: Path) -> None:
    venv.create(tmp_path / "node", with_pip=True)
    python = tmp_path / "node" / "bin" / "python"
    constraints = ROOT / "deploy" / "constraints.txt"
    command = [str(python), "-m", "pip", "install", "--quiet", "-c", str(constraints), str(built.wheel)]
    subprocess.run(command, check=True, timeout=500)
    absent = [
        "fastapi",
        "uvicorn",
        "sqlalchemy",
        "alembic",
        "jinja2",
        "prometheus_client",
        "torch",
        "ray",
        "transformers",
    ]
    printed = trained(python, service, "from-venv", absent)
    assert printed[:-1] == [f"{name} False" for name in absent]
    for name in ("replay-service", "replay-trainer"):
        subprocess.run([str(python.parent / name), "--version"], check=True, stdout=subprocess.DEVNULL)
