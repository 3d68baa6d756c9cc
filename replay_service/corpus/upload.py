"""Upload: a corpus from a local folder to object storage, where any number of services read it."""

from collections.abc import Callable
from pathlib import Path
from typing import Final

from pyarrow import fs

from replay_service.corpus.manifest import MANIFEST_NAME, read_manifest
from replay_service.corpus.object_storage import open_filesystem
from replay_service.corpus.segment_file import checksums_file

_CHUNK_BYTES: Final = 8 << 20


def upload(corpus: Path, corpora_url: str, on_progress: Callable[[int, int], None] = lambda _done, _all: None) -> int:
    """Copy what is not there yet of the corpus at `corpus` into the folder at `corpora_url`; returns how many segments.

    Segments never change, so one that is there with its size is there. The manifest goes last.

    Raises:
        UnknownCorpus: when there is no corpus.
        CorpusError: when the URL cannot be used.
    """
    manifest = read_manifest(corpus)
    filesystem, folder = open_filesystem(corpora_url)
    target = f"{folder.rstrip('/')}/{corpus.name}"
    filesystem.create_dir(f"{target}/segments", recursive=True)
    there = {each.path.removeprefix(f"{target}/"): each.size for each in _files(filesystem, f"{target}/segments")}
    missing = [each for each in manifest.segments if there.get(each.file) != each.num_bytes]
    for done, segment in enumerate(missing):
        on_progress(done, len(missing))
        _copy(corpus / checksums_file(segment.file), filesystem, f"{target}/{checksums_file(segment.file)}")
        _copy(corpus / segment.file, filesystem, f"{target}/{segment.file}")
    _copy(corpus / MANIFEST_NAME, filesystem, f"{target}/{MANIFEST_NAME}")
    on_progress(len(missing), len(missing))
    return len(missing)


def _files(filesystem: fs.FileSystem, folder: str) -> list[fs.FileInfo]:
    found: list[fs.FileInfo] = filesystem.get_file_info(fs.FileSelector(folder, allow_not_found=True))
    return found


def _copy(path: Path, filesystem: fs.FileSystem, target: str) -> None:
    with path.open("rb") as source, filesystem.open_output_stream(target) as sink:
        while chunk := source.read(_CHUNK_BYTES):
            sink.write(chunk)
