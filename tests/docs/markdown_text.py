"""Pages and tables of the reference in Markdown, and types, values and bounds in words."""

from collections.abc import Iterable
from pathlib import Path
from types import UnionType
from typing import Any, Final, Literal, Union, get_args, get_origin

from replay_service.sampling.bounds import choices_of

_NOTE: Final = "<!-- Written by `python -m tests.docs.reference`; change the code instead. -->"
_TYPES: Final = {str: "text", int: "integer", float: "number", bool: "true or false", Path: "path"}
BOUNDS: Final = {"ge": "at least", "gt": "above", "le": "at most", "lt": "below"}
HEAD: Final = ("name", "type", "default", "meaning")


def page(title: str, intro: str, *parts: str) -> str:
    return "\n\n".join([f"# {title}", intro, *parts, _NOTE]) + "\n"


def table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    lines = [head, tuple("---" for _ in head), *rows]
    return "\n".join(f"| {' | '.join(map(cell, line))} |" for line in lines)


def number_in_words(value: float) -> str:
    """A bound, short: large powers of two as such."""
    exponent = int(value).bit_length() - 1
    if isinstance(value, float) or exponent < 20:
        return f"{value:g}"
    return f"2^{exponent}" if value == 1 << exponent else f"2^{exponent + 1} - 1"


def cell(text: str) -> str:
    """A text in a cell of a table: one line, without bars."""
    return " ".join(text.split()).replace("|", "\\|")


def plain(text: str | None) -> str:
    """A docstring as paragraphs, each on one line."""
    return "\n\n".join(" ".join(part.split()) for part in (text or "").split("\n\n"))


def type_in_words(type_: Any) -> str:
    """A type in words; None, which stands for a key that is left out, is not named."""
    if choices := choices_of(type_):
        return ", ".join(f"`{each}`" for each in choices)
    origin, parts = get_origin(type_), [each for each in get_args(type_) if each is not type(None)]
    if origin in (Union, UnionType):
        return " or ".join(dict.fromkeys(map(type_in_words, parts)))
    if origin is tuple:
        return (
            f"list of {type_in_words(parts[0])}"
            if Ellipsis in parts
            else f"pair of {type_in_words(parts[0])} and {type_in_words(parts[1])}"
        )
    if origin is not None and origin is not Literal:
        return type_in_words(parts[0])
    return _TYPES.get(type_, "text")


def value_in_words(value: Any) -> str:
    if value is None:
        return "none"
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    if isinstance(value, list | tuple):
        return f"`{list(value)}`"
    return f"`{value}`" if value != "" else "empty"
