"""Tar archives as streams of members; archives that were laid end to end are read to the last."""

import tarfile
from collections.abc import Callable, Iterator
from contextlib import closing
from functools import partial
from pathlib import PurePosixPath
from typing import IO, NamedTuple, Self

_CHUNK_BYTES = 1 << 20


class Member(NamedTuple):
    """A file of an archive.

    Attributes:
        path: its path.
        content: reads it, before the next member comes; None for a link, whose content stands elsewhere.
    """

    path: PurePosixPath
    content: Callable[[], bytes] | None


def members_of(content: IO[bytes]) -> Iterator[Member]:
    """The files and links of an archive, or of several end to end; hidden ones are passed over.

    Raises:
        tarfile.TarError: when it breaks off, or holds what is no member.
    """
    # Zeros end an archive, and another one may follow.
    with closing(_Archive.open(fileobj=content, mode="r|", ignore_zeros=True, tarinfo=_Header)) as archive:
        while (member := archive.next()) is not None:
            path = PurePosixPath(member.name)
            is_link = member.islnk() or member.issym()
            if (member.isfile() or is_link) and not path.name.startswith("."):
                yield Member(path, None if is_link else partial(_content, archive, member))
            archive.members.clear()  # type: ignore[attr-defined] # it would keep every member of a stream
        while content.read(_CHUNK_BYTES):
            pass  # the end of what was compressed shows whether all of it was there


def _content(archive: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    content = archive.extractfile(member)
    return b"" if content is None else content.read()


class _Archive(tarfile.TarFile):
    ended_at = -1
    """Where the latest block of zeros stands."""


class _Header(tarfile.TarInfo):
    """A header that must be sound: tarfile alone would take a damaged one for the end of the archive, or skip it."""

    @classmethod
    def fromtarfile(cls, archive: tarfile.TarFile) -> Self:
        assert isinstance(archive, _Archive)
        try:
            return super().fromtarfile(archive)
        except tarfile.EOFHeaderError:  # type: ignore[attr-defined]
            archive.ended_at = archive.offset
            raise
        except tarfile.HeaderError as error:
            is_empty = isinstance(error, tarfile.EmptyHeaderError)  # type: ignore[attr-defined]
            if is_empty and archive.ended_at == archive.offset - tarfile.BLOCKSIZE:
                raise
            raise tarfile.ReadError(
                f"the archive breaks off or is damaged at byte {archive.offset}: {error}"
            ) from error
