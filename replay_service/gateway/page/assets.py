"""Files that pages load: scripts, styles and the icon, under names that change with their content."""

import hashlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Final

from starlette.requests import Request
from starlette.responses import Response

from replay_service.gateway.packed import Packed

FOLDERS: Final = tuple(Path(__file__).parent / each for each in ("static", "vendor"))
MEDIA_TYPES: Final = {".js": "text/javascript", ".css": "text/css", ".svg": "image/svg+xml"}
PREFIX: Final = "/assets/"

_FOR_EVER: Final = {"Cache-Control": "public, max-age=31536000, immutable"}
"""A file of another content has another name."""


@dataclass(frozen=True)
class Asset(Packed):
    """One file.

    Attributes:
        name: its file name with a hash of its content, such as page.0123456789ab.css.
    """

    name: str

    @classmethod
    def read(cls, path: Path) -> "Asset":
        content = path.read_bytes()
        digest = hashlib.sha256(content).hexdigest()[:12]
        return cls(MEDIA_TYPES[path.suffix], content, f"{path.stem}.{digest}{path.suffix}")


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
        return asset.answer(request, _FOR_EVER)
