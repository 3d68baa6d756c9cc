"""Documents out of files: markup and boilerplate are left out."""

import gzip
import json
import re
from collections.abc import Iterator
from html.parser import HTMLParser
from typing import Final

_CREDITS: Final = (
    "COLOPHON", "ÜBERSETZUNG", "TRADUCTION", "TRADUCCIÓN", "TRADUCCION", "ПЕРЕВОД", "この文書について",
)  # fmt: skip
"""Sections of manual pages that are the same in all of them."""
_BLOCKS: Final = {
    "p", "div", "li", "dt", "dd", "tr", "pre", "h1", "h2", "h3", "h4", "h5", "h6", "table", "ul", "ol", "title",
}  # fmt: skip
_VOID: Final = {"area", "base", "br", "col", "hr", "img", "input", "link", "meta", "wbr"}
_SKIPPED: Final = {"head", "script", "style", "nav", "header", "aside", "footer", "button"}
_NAVIGATION: Final = {"docnav", "navheader", "navfooter", "toc", "indexterm"}
"""Classes of elements that lead to other pages."""
_BANNERS: Final = {"banner", "title", "DonationFrame", "BottomLeft"}
"""Ids of elements that all pages share."""
_SENTENCES: Final = 20
"""Sentences that make a document where a source has nothing else than sentences."""


def plain(content: bytes) -> Iterator[str]:
    """A text file, perhaps compressed."""
    yield _decoded(content)


def manual_page(content: bytes) -> Iterator[str]:
    """The sections of a manual page in its markup, without comments and the credits of its translators."""
    kept: list[str] = []
    skips = True
    for line in _decoded(content).splitlines():
        if line.startswith((".SH", ".Sh")):
            skips = any(each in line.upper() for each in _CREDITS)
        if not skips and not re.match(r"[.']\s*\\\"", line):
            kept.append(line)
    yield "\n".join(kept)


def html_page(content: bytes) -> Iterator[str]:
    """The text of the main part of a page."""
    parser = _Text()
    parser.feed(_decoded(content))
    lines = (re.sub(r"[ \t]+", " ", line).strip() for line in "".join(parser.parts).splitlines())
    yield re.sub(r"\n{2,}", "\n", "\n".join(lines)).strip()


def summaries(content: bytes) -> Iterator[str]:
    """The entries of an encyclopedia: a title and its text."""
    for each in json.loads(content).values():
        yield f"{each['title']}\n{each['extract']}"


def sentences(content: bytes) -> Iterator[str]:
    """A list of sentences, some to a document."""
    found = json.loads(content)
    for first in range(0, len(found), _SENTENCES):
        yield "\n".join(found[first : first + _SENTENCES])


def code_tasks(content: bytes) -> Iterator[str]:
    """JSON lines of a task and the Python code that solves it."""
    for line in _decoded(content).splitlines():
        row = json.loads(line)
        yield f"{row['task_description']}\n{row['input_output_spec']}\n{row['code_sample']}"


def _decoded(content: bytes) -> str:
    if content[:2] == b"\x1f\x8b":
        content = gzip.decompress(content)
    return content.decode("utf-8", errors="ignore")


class _Text(HTMLParser):
    """Collects text; leaves out elements that navigate, and ends a line where a block ends."""

    def __init__(self) -> None:
        super().__init__()
        self.parts: list[str] = []
        self._skipped: list[str] = []
        """Open elements from the outermost one that is left out."""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in _VOID:
            self.handle_startendtag(tag, attrs)
            return
        given = dict(attrs)
        classes = set((given.get("class") or "").split())
        if self._skipped or tag in _SKIPPED or classes & _NAVIGATION or given.get("id") in _BANNERS:
            self._skipped.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "br" and not self._skipped:
            self.parts.append("\n")

    def handle_endtag(self, tag: str) -> None:
        if self._skipped:
            while self._skipped and self._skipped.pop() != tag:
                pass
        elif tag in _BLOCKS:
            self.parts.append("\n")

    def handle_data(self, data: str) -> None:
        if not self._skipped:
            self.parts.append(data)
