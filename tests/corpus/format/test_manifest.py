import json
import re
from pathlib import Path

import pytest

from replay_service.corpus.format.manifest import MANIFEST_NAME, Manifest, read_manifest, write_json, write_manifest
from replay_service.errors import CorpusError, UnknownCorpus
from replay_service.sampling.partition import Extent
from tests.support import make_corpus


@pytest.fixture
def manifest(tmp_path: Path) -> Manifest:
    return make_corpus(tmp_path)


@pytest.fixture
def folder(tmp_path: Path, manifest: Manifest) -> Path:
    return tmp_path / manifest.name


def test_a_manifest_is_read_back_as_it_was_written(folder: Path, manifest: Manifest) -> None:
    read = read_manifest(folder)
    assert read.partition() == manifest.partition()
    assert (read.name, read.domains, read.num_samples) == (manifest.name, manifest.domains, manifest.num_samples)
    write_manifest(folder, read)
    assert read_manifest(folder) == read


def test_a_corpus_from_before_there_were_kinds_is_of_language(folder: Path) -> None:
    content = json.loads((folder / MANIFEST_NAME).read_text())
    del content["kind"], content["classes"]
    write_json(folder / MANIFEST_NAME, content)
    assert (read_manifest(folder).kind, read_manifest(folder).classes) == ("language", None)


@pytest.mark.parametrize("changes", [{"kind": "speech"}, {"kind": "classification"}])
def test_a_manifest_of_another_kind_than_it_says_is_damaged(folder: Path, changes: dict[str, str]) -> None:
    write_json(folder / MANIFEST_NAME, json.loads((folder / MANIFEST_NAME).read_text()) | changes)
    with pytest.raises(CorpusError, match="is damaged: a corpus of kind"):
        read_manifest(folder)


def test_a_manifest_adds_up(manifest: Manifest) -> None:
    partition = manifest.partition()
    assert manifest.num_samples == partition.num_samples == sum(domain.num_samples for domain in manifest.domains) == 80
    assert manifest.num_tokens == 80 * 12


def test_the_partition_follows_the_domains_and_the_segments(manifest: Manifest) -> None:
    partition = manifest.partition()
    assert partition.groups == ("en", "fr")
    assert partition.sizes.tolist() == [20, 20, 20, 20]
    assert partition.extents == (
        Extent(0, 0, 0, 20),
        Extent(1, 0, 20, 10),
        Extent(1, 1, 0, 10),
        Extent(2, 1, 10, 20),
        Extent(3, 2, 0, 20),
    )


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b"{}",
        b"7",
        b"null",
        b'"text"',
        b"\xff\xfe",
        b'{"format_version": 3}',
        b'{"format_version": 3, "domains": 3, "segments": []}',
        b'{"format_version": 3, "domains": [{"name": "en"}], "segments": []}',
    ],
)
def test_a_damaged_manifest_is_named(folder: Path, content: bytes) -> None:
    (folder / MANIFEST_NAME).write_bytes(content)
    with pytest.raises(CorpusError, match=re.escape(str(folder / MANIFEST_NAME))):
        read_manifest(folder)


def test_a_manifest_that_is_cut_short_anywhere_is_damaged(folder: Path) -> None:
    whole = (folder / MANIFEST_NAME).read_text()
    for length in range(0, len(whole) - 1, 97):
        (folder / MANIFEST_NAME).write_text(whole[:length])
        with pytest.raises(CorpusError, match="damaged"):
            read_manifest(folder)


@pytest.mark.parametrize("name", ["segments", "domains", "seq_len", "format_version"])
def test_a_manifest_that_lacks_something_is_damaged(folder: Path, name: str) -> None:
    content = json.loads((folder / MANIFEST_NAME).read_text())
    del content[name]
    (folder / MANIFEST_NAME).write_text(json.dumps(content))
    with pytest.raises(CorpusError, match="damaged"):
        read_manifest(folder)


@pytest.mark.parametrize("version", [0, 1, 2, 4, "3"])
def test_another_format_version_is_refused(folder: Path, version: object) -> None:
    content = json.loads((folder / MANIFEST_NAME).read_text())
    (folder / MANIFEST_NAME).write_text(json.dumps({**content, "format_version": version}))
    with pytest.raises(CorpusError, match=f"format version {version}; this release reads version 3"):
        read_manifest(folder)


def test_a_folder_without_a_manifest_is_no_corpus(tmp_path: Path) -> None:
    (tmp_path / "half").mkdir()
    for name in ("half", "nowhere"):
        with pytest.raises(UnknownCorpus, match=name):
            read_manifest(tmp_path / name)


def test_a_file_in_the_place_of_a_corpus_is_no_corpus(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UnknownCorpus, match="file"):
        read_manifest(tmp_path / "file")


def test_a_file_that_cannot_be_written_leaves_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    write_json(path, {"old": 1})
    with pytest.raises(TypeError):
        write_json(path, {"new": object()})
    assert json.loads(path.read_text()) == {"old": 1}
    write_json(path, {"new": 2})
    assert json.loads(path.read_text()) == {"new": 2}
