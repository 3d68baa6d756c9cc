"""Upload: a corpus from a local folder to object storage, where any number of services read it."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final

from pyarrow import fs
from zlib_ng.zlib_ng import crc32

from replay_service.corpus.format.manifest import MANIFEST_NAME, Manifest, Segment, no_corpus, parse_manifest
from replay_service.corpus.format.segment_file import checksums_file
from replay_service.corpus.format.texts import TOKENIZER_FILE
from replay_service.corpus.reading.object_storage import open_filesystem
from replay_service.errors import CorpusUnavailable

_CHUNK_BYTES: Final = 8 << 20
_NUM_THREADS: Final = 16


def upload(corpus: Path, corpora_url: str, on_progress: Callable[[int, int], None] = lambda _done, _all: None) -> int:
    """Copy what is not there yet of the corpus at `corpus` into the folder at `corpora_url`; returns how many segments.

    The manifest goes last. Segments that the corpus gains meanwhile are left for the next call.

    Raises:
        UnknownCorpus: when there is no corpus.
        CorpusError: when the URL cannot be used.
        CorpusUnavailable: when a file cannot be copied.
    """
    text = _manifest_text(corpus)
    manifest = parse_manifest(text, str(corpus / MANIFEST_NAME))
    filesystem, folder = open_filesystem(corpora_url)
    target = f"{folder.rstrip('/')}/{corpus.name}"
    try:
        return _upload(corpus, text, manifest, filesystem, target, on_progress)
    except Exception as error:
        # The filesystems of fsspec raise what the libraries below them raise.
        raise CorpusUnavailable(
            f"corpus {corpus.name!r} cannot be copied to {target}: {type(error).__name__}: {error}; see to the "
            "storage, the network and the rights, and ask again: it goes on where it was"
        ) from error


def _manifest_text(corpus: Path) -> bytes:
    try:
        return (corpus / MANIFEST_NAME).read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        raise no_corpus(corpus.name) from None


def _upload(
    corpus: Path,
    text: bytes,
    manifest: Manifest,
    filesystem: fs.FileSystem,
    target: str,
    on_progress: Callable[[int, int], None],
) -> int:
    filesystem.create_dir(f"{target}/segments", recursive=True)
    missing = _missing(manifest, filesystem, target)
    for done, segment in enumerate(missing):
        on_progress(done, len(missing))
        for file in (segment.file, checksums_file(segment.file)):
            copy_file(corpus / file, filesystem, f"{target}/{file}")
    if (corpus / TOKENIZER_FILE).is_file():
        copy_file(corpus / TOKENIZER_FILE, filesystem, f"{target}/{TOKENIZER_FILE}")
    with filesystem.open_output_stream(f"{target}/{MANIFEST_NAME}") as sink:
        sink.write(text)
    on_progress(len(missing), len(missing))
    return len(missing)


def _missing(manifest: Manifest, filesystem: fs.FileSystem, target: str) -> list[Segment]:
    """The segments that are not there whole: those without their size, or without their checksums, which go last.

    Sizes alone do not tell: segments of another corpus that had the name before are as large.
    """
    selector = fs.FileSelector(f"{target}/segments", allow_not_found=True)
    there = {each.path.removeprefix(f"{target}/"): each.size for each in filesystem.get_file_info(selector)}

    def is_missing(segment: Segment) -> bool:
        file = checksums_file(segment.file)
        if there.get(segment.file) != segment.num_bytes or file not in there:
            return True
        with filesystem.open_input_stream(f"{target}/{file}") as stream:
            return crc32(stream.read()) != segment.checksum

    with ThreadPoolExecutor(_NUM_THREADS) as pool:
        are_missing = pool.map(is_missing, manifest.segments)
        return [each for each, is_it in zip(manifest.segments, are_missing, strict=True) if is_it]


def copy_file(path: Path, filesystem: fs.FileSystem, target: str) -> None:
    """Copy a local file to a path of a filesystem."""
    with path.open("rb") as source, filesystem.open_output_stream(target) as sink:
        while chunk := source.read(_CHUNK_BYTES):
            sink.write(chunk)
