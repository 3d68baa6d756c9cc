import io
import subprocess
import tarfile
from pathlib import Path

import pytest

from replay_service.demo.materials import MaterialsError
from tests.evidence.packages import Package, fetch


@pytest.fixture
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a package of npm that was fetched before."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    folder = tmp_path / "replay-service" / "evidence" / "packages" / "@some+texts"
    folder.mkdir(parents=True)
    with tarfile.open(folder / "some-texts-1.0.0.tgz", "w:gz") as archive:
        for name in ("package/b.txt", "package/a.txt", "package/a.json"):
            member = tarfile.TarInfo(name)
            member.size = 3
            archive.addfile(member, io.BytesIO(b"abc"))
        link = tarfile.TarInfo("package/c.txt")
        link.type, link.linkname = tarfile.SYMTYPE, "a.txt"
        archive.addfile(link)
    return folder


def test_members_are_given_in_the_order_of_their_names_and_links_left_out(kept: Path) -> None:
    package = Package("npm", "@some/texts", "1.0.0", "unused")
    assert [*package.members("package/*.txt")] == [("package/a.txt", b"abc"), ("package/b.txt", b"abc")]


def test_a_package_that_cannot_be_fetched_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("PATH", "")
    with pytest.raises(MaterialsError, match="npm"):
        fetch(Package("npm", "some-texts", "1.0.0"))


def test_another_file_than_the_one_that_was_measured_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A program of that name in PATH stands for the registry, which tests do not ask."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    program = tmp_path / "npm"
    program.write_text("#!/bin/sh\necho other > some-texts-1.0.0.tgz\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    assert subprocess.run(["npm"], cwd=tmp_path, check=True).returncode == 0
    with pytest.raises(MaterialsError, match="checksum"):
        fetch(Package("npm", "some-texts", "1.0.0", "0" * 64))
