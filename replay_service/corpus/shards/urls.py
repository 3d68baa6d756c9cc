"""URLs and local paths of sources, as text: their parts, and their form without the secrets in them."""

import os
import re
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote, unquote

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.:-]*)://")

OBJECT_URL = re.compile(
    r"(?P<scheme>s3|gs|gcs)://(?P<user>[^/@:]*:[^@]*@|[^/@]*@)?(?P<path>.*?)(?P<query>\?[\w.-]+=[^?]*)?", re.DOTALL
)
"""A URL for pyarrow's own filesystems. An access key may hold a slash, and a query stands at the very end."""

_USER = re.compile(r"//(?:[^/@:]*:[^@]*@(?:[^/@]*@)*|[^/@]*@)")

_QUERY = re.compile(r"\?[\w.-]+=.*$", re.DOTALL)

_HARMLESS = ("region", "scheme", "endpoint_override")
"""Keys of a query whose values are no secrets."""


class SplitUrl(NamedTuple):
    """A URL: its scheme, user and password with their `@`, host or bucket and path, and query with its `?`."""

    scheme: str
    user: str
    path: str
    query: str


def is_url(source: str) -> bool:
    return _SCHEME.match(source) is not None


def normal(source: str | Path) -> str:
    """A local path made absolute, or a URL as it is."""
    text = str(source).removeprefix("file://")
    return text if is_url(text) else str(Path(os.path.abspath(text)))  # noqa: PTH100 (`resolve` follows links)


def resolved(url: str) -> str:
    """The same text for every way to name a place: a path with its links resolved, or a URL without secrets."""
    if not is_url(url):
        return os.path.realpath(url)
    server = re.search(r"[?&](endpoint_override=[^&]*)", url)
    return printable(url) + (f"?{server[1]}" if server else "")


def split_url(url: str) -> SplitUrl:
    """The parts of a URL; `scheme://` + user + path + query is the URL again."""
    parts = OBJECT_URL.fullmatch(url)
    if parts is not None:
        return SplitUrl(parts["scheme"], parts["user"] or "", parts["path"], parts["query"] or "")
    scheme, _, rest = url.partition("://")
    path, mark, query = rest.partition("?") if scheme in ("http", "https") else (rest, "", "")
    host, slash, below = path.partition("/")
    user, at, host = host.rpartition("@")
    return SplitUrl(scheme, user + at, host + slash + below, mark + query)


def child_url(url: str, name: str) -> str:
    """The path or URL of `name` below the folder `url`."""
    stem, query = _split_query(url)
    return f"{stem.rstrip('/')}/{name}{query}"


def folder_url(url: str, tail: str) -> str:
    """The path or URL of the folder that has `tail` below it at `url`."""
    stem, query = _split_query(url)
    return stem.rstrip("/").removesuffix(tail) + query


def printable(source: str | Path) -> str:
    """The form of a path or URL that messages and logs may hold: no user, no password, no query."""
    text = str(source)
    return _QUERY.sub("", _USER.sub("//", text)) if is_url(text) else text


def _split_query(url: str) -> tuple[str, str]:
    parts = OBJECT_URL.fullmatch(url)
    query = (parts["query"] or "") if parts else ""
    return url.removesuffix(query), query


def secrets_in(url: str) -> list[str]:
    """The parts of a URL that no message may hold, as written, decoded and encoded; the longest first."""
    if not is_url(url):
        return []
    user, query = _USER.search(url), _QUERY.search(url)
    words = re.split("[:@]", user[0][2:]) if user else []
    for pair in query[0][1:].split("&") if query else []:
        name, _, value = pair.partition("=")
        words += [] if name in _HARMLESS else [value]
    forms = {form for word in words for form in (word, unquote(word), quote(word, safe=""), quote(word, safe="%"))}
    return sorted(forms - {""}, key=len, reverse=True)


def without_secrets(message: str, url: str) -> str:
    """A message about a URL, with every secret of the URL replaced by `***`."""
    message = message.replace(url, printable(url))
    for secret in secrets_in(url):
        message = message.replace(secret, "***")
    return message
