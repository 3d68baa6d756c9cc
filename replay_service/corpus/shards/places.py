"""Places that shards may come from: what lies within one of them, and what only seems to."""

import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final
from urllib.parse import unquote

from replay_service.corpus.shards.filesystems import Place, locate
from replay_service.corpus.shards.urls import is_url, normal, printable, split_url
from replay_service.errors import SourceForbidden

_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f\\]")
"""Some libraries drop control characters from a URL, and some take a backslash for a slash."""
_MOST_DECODINGS: Final = 4


@dataclass(frozen=True, slots=True)
class AllowedPlaces:
    """The places, local folders and URLs, that the shards of an ingest may come from.

    A URL lies within a place when it has its scheme and host or bucket, and its path segment by segment. User, password
    and query are the place's: a source has the same ones or none. What could lead out of a place is refused: `..`, also
    encoded, chains of filesystems (`::`), and redirects. A local path lies within a place after links are resolved.
    """

    places: tuple[str, ...] = field(repr=False)

    def resolve(self, source: str) -> str:
        """The normal path or URL of a source, with what its place knows of user, password and query.

        Raises:
            SourceForbidden: when it lies in none of the places.
        """
        if not is_url(normal(source)):
            path = normal(source)
            self.check_path(path)
            return path
        url = next(_within_urls(source, self.places), None)
        if url is None:
            raise self._forbidden(source)
        return url

    def check_path(self, path: str) -> None:
        """Raises SourceForbidden when a local path, its links resolved, lies in none of the places."""
        try:
            real = Path(os.path.realpath(path))
        except ValueError:  # a null byte, or half a surrogate pair
            raise self._forbidden(path) from None
        allowed = [Path(os.path.realpath(place)) for place in map(normal, self.places) if not is_url(place)]
        if not any(real == each or each in real.parents for each in allowed):
            raise self._forbidden(path)

    def _forbidden(self, source: str) -> SourceForbidden:
        return SourceForbidden(
            f"shards may not come from {printable(source)!r}; this service takes them from "
            f"{', '.join(map(printable, self.places)) or 'nowhere'}: see its setting ingest_from"
        )


def locate_within(url: str, allowed: AllowedPlaces | None) -> Place:
    """The place of a normal path or URL; with `allowed`, nothing outside is ever read, links and redirects included.

    Raises:
        SourceForbidden: when it lies in none of the allowed places.
        UnusableSource: as `locate`.
    """
    if allowed is None:
        return locate(url)
    return locate(allowed.resolve(url), allowed.check_path)


def _within_urls(source: str, places: Sequence[str]) -> Iterator[str]:
    """The source with the user and the query of each place that it lies in."""
    asked = split_url(source)
    if _may_lead_elsewhere(asked.path):
        return
    for place in filter(is_url, places):
        given = split_url(place)
        segments, base = asked.path.split("/"), given.path.rstrip("/").split("/") if given.path.strip("/") else []
        # Compared as they are written: whether a server decodes them or not, what follows stays below.
        is_below = asked.scheme == given.scheme and segments[: len(base)] == base
        if is_below and asked.user in ("", given.user) and asked.query in ("", given.query):
            yield f"{given.scheme}://{given.user}{asked.path}{given.query}"


def _may_lead_elsewhere(path: str) -> bool:
    """Whether a path holds a chain of filesystems, dots, a backslash or control characters, also encoded."""
    for _ in range(_MOST_DECODINGS):
        if "::" in path or _CONTROL.search(path) or {".", ".."} & set(re.split("[/?#]", path)):
            return True
        decoded = unquote(path)
        if decoded == path:
            return False
        path = decoded
    return True
