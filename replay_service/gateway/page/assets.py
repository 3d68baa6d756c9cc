"""Files that pages load: scripts, styles and the icon, under names that change with their content."""

import gzip
import hashlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Final

from starlette.requests import Request
from starlette.responses import Response

FOLDERS: Final = tuple(Path(__file__).parent / each for each in ("static", "vendor"))
MEDIA_TYPES: Final = {".js": "text/javascript", ".css": "text/css", ".svg": "image/svg+xml"}
PREFIX: Final = "/assets/"

_FOR_EVER: Final = {"Cache-Control": "public, max-age=31536000, immutable", "Vary": "Accept-Encoding"}
"""A file of another content has another name."""


@dataclass(frozen=True)
class Asset:
    """One file.

    Attributes:
        name: its file name with a hash of its content, such as page.0123456789ab.css.
    """

    name: str
    media_type: str
    content: bytes

    @classmethod
    def read(cls, path: Path) -> "Asset":
        content = path.read_bytes()
        digest = hashlib.sha256(content).hexdigest()[:12]
        return cls(f"{path.stem}.{digest}{path.suffix}", MEDIA_TYPES[path.suffix], content)

    @cached_property
    def compressed(self) -> bytes:
        return gzip.compress(self.content, 9, mtime=0)


class Assets:
    """All files, read when the first one is asked for."""

    @cached_property
    def _by_file(self) -> dict[str, Asset]:
        paths = (path for folder in FOLDERS for path in sorted(folder.iterdir()) if path.suffix in MEDIA_TYPES)
        return {path.name: Asset.read(path) for path in paths}

    @cached_property
    def _by_name(self) -> dict[str, Asset]:
        return {each.name: each for each in self._by_file.values()}

    def url(self, file: str) -> str:
        """The path under which a page loads a file."""
        return PREFIX + self._by_file[file].name

    def answer(self, name: str, request: Request) -> Response | None:
        """The file that has this name with its hash; None if there is none."""
        asset = self._by_name.get(name)
        if asset is None:
            return None
        return packed(request, asset.content, asset.media_type, _FOR_EVER, asset.compressed)


def packed(
    request: Request,
    content: bytes,
    media_type: str,
    headers: dict[str, str],
    compressed: bytes | None = None,
    status: int = 200,
) -> Response:
    """An answer, compressed by gzip where the caller takes that.

    Args:
        compressed: the content as it was compressed before.
    """
    if "gzip" not in request.headers.get("accept-encoding", ""):
        return Response(content, status, headers, media_type)
    body = gzip.compress(content, 6, mtime=0) if compressed is None else compressed
    return Response(body, status, {**headers, "Content-Encoding": "gzip"}, media_type)
