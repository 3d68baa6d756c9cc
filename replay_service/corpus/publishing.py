"""Publishing: an ingest's corpus goes to object storage while it is made, generation by generation.

The folder on the disk holds no more than what is being made. What an ingest needs to go on lies beside the corpus, so
that one on another machine can go on there: the list of shards, the centres of clusters and the tokenizer.
"""

import shutil
from pathlib import Path
from typing import Final

from replay_service.corpus.format.manifest import MANIFEST_NAME, Manifest, Segment, parse_manifest, read_manifest
from replay_service.corpus.format.segment_file import checksums_file
from replay_service.corpus.format.texts import TOKENIZER_FILE
from replay_service.corpus.reading.object_storage import ObjectStorage, open_filesystem
from replay_service.corpus.shards.urls import printable
from replay_service.corpus.upload import copy_file
from replay_service.errors import CorpusError

_NEEDED: Final = ("shards.jsonl", "clusters.npy", TOKENIZER_FILE)
_KEPT: Final = frozenset({".lock", "status.json"})
"""What is of the ingest that runs now."""


class Published:
    """The corpus in object storage that the ingest in a local folder makes.

    Methods raise CorpusError when the URL cannot be used or another ingest has written the corpus, and
    CorpusUnavailable when storage does not answer.

    Args:
        corpora_url: of the folder of the corpora.
        folder: where the ingest works; its last part names the corpus.
    """

    def __init__(self, corpora_url: str, folder: Path) -> None:
        filesystem, path = open_filesystem(corpora_url)
        self._storage = ObjectStorage(filesystem)
        self._target = f"{path.rstrip('/')}/{folder.name}"
        self._shown = f"{printable(corpora_url).rstrip('/')}/{folder.name}"
        self._folder = folder

    def bring(self) -> None:
        """Bring the local folder to where the corpus is: publish what a killed ingest left, or begin from the corpus.

        Staged rows stay where the corpus has not changed meanwhile.
        """
        there = self._manifest()
        here = read_manifest(self._folder) if (self._folder / MANIFEST_NAME).exists() else None
        if here is not None and self._goes_on(here, there):
            self.publish(here)
        elif here is not None or there is not None:
            self._begin_from(there)

    def publish(self, manifest: Manifest) -> None:
        """Copy the segments that are not there yet, and then the manifest, which makes them visible."""
        there = self._manifest()
        num_there = 0 if there is None else len(there.segments)
        if there is not None and there.segments != manifest.segments[:num_there]:
            raise CorpusError(
                f"another ingest has written {self._shown} meanwhile, which is at generation {there.generation} now; "
                "let one ingest at a time write a corpus, and start this one again"
            )
        self._storage.patiently(self._shown, self._make_folders)
        for segment in manifest.segments[num_there:]:
            for file in (segment.file, checksums_file(segment.file)):
                self._copy(file)
        aside = sorted(self._folder.glob("set_aside/*.jsonl"))
        for path in aside:
            self._copy(f"set_aside/{path.name}")
        for name in (*_NEEDED, MANIFEST_NAME):
            if (self._folder / name).exists():
                self._copy(name)
        for path in (*aside, *self._files_of(manifest.segments)):
            path.unlink(missing_ok=True)

    def _manifest(self) -> Manifest | None:
        path = f"{self._target}/{MANIFEST_NAME}"
        try:
            return parse_manifest(self._storage.read(path), f"{self._shown}/{MANIFEST_NAME}")
        except FileNotFoundError:
            return None

    def _goes_on(self, here: Manifest, there: Manifest | None) -> bool:
        """Whether what is here continues what is there: the same segments, and files of all others."""
        before = [] if there is None else there.segments
        new = here.segments[len(before) :]
        return here.segments[: len(before)] == before and all(path.exists() for path in self._files_of(new))

    def _files_of(self, segments: list[Segment]) -> list[Path]:
        return [self._folder / name for each in segments for name in (each.file, checksums_file(each.file))]

    def _begin_from(self, there: Manifest | None) -> None:
        for path in self._folder.iterdir():
            if path.is_dir():
                shutil.rmtree(path)
            elif path.name not in _KEPT:
                path.unlink()
        for name in (*_NEEDED, MANIFEST_NAME) if there is not None else ():
            self._fetch(name)

    def _fetch(self, name: str) -> None:
        try:
            content = self._storage.read(f"{self._target}/{name}")
        except FileNotFoundError:
            return
        (self._folder / name).write_bytes(content)

    def _make_folders(self) -> None:
        for name in ("segments", "set_aside"):
            self._storage.filesystem.create_dir(f"{self._target}/{name}", recursive=True)

    def _copy(self, file: str) -> None:
        path, filesystem = self._folder / file, self._storage.filesystem

        def copy() -> None:
            copy_file(path, filesystem, f"{self._target}/{file}")

        self._storage.patiently(f"{self._shown}/{file}", copy)
