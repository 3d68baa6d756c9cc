"""Pieces of long texts: a tokenizer takes a hundred times the size of what it encodes at once."""

from collections.abc import Iterator
from typing import Final

PIECE_CHARACTERS: Final = 1 << 18


def cut_place(text: str, first: int = 0, most: int = PIECE_CHARACTERS) -> int:
    """Where the piece of at most `most` characters ends that begins at `first`; at the end of a shorter text, there.

    The cut comes between a letter or digit and the space or newline after it, where no usual tokenizer has a token
    across. Without such a place it comes after `most` characters, and the token ids around it may be others than those
    of the whole text.
    """
    if len(text) - first <= most:
        return len(text)
    stop = first + most + 1
    while (place := max(text.rfind(" ", first + 1, stop), text.rfind("\n", first + 1, stop))) > first:
        if text[place - 1].isalnum():
            return place
        stop = place
    return first + most


def pieces_of(text: str, most: int = PIECE_CHARACTERS) -> Iterator[str]:
    """A text in pieces of at most `most` characters, cut by `cut_place`; an empty one is one piece."""
    first = 0
    while True:
        place = cut_place(text, first, most)
        yield text[first:place]
        if place == len(text):
            return
        first = place
